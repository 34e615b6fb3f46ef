"""The key is made once, kept private, and refused when others can read it."""

import stat
from pathlib import Path

import pytest

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.identity_file import create_identity, libp2p_path, load_identity


def test_a_created_key_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    key = create_identity(path)
    assert load_identity(path).seed == key.seed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key.public_key.hex() in path.read_text()


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    key = create_identity(path)
    with pytest.raises(NodeError, match="identity already"):
        create_identity(path)
    assert load_identity(path).seed == key.seed


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_readable_by_others_is_refused_with_the_cure(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    create_identity(path)
    path.chmod(mode)
    with pytest.raises(NodeError, match="read by others") as caught:
        load_identity(path)
    assert caught.value.hint == f"chmod 600 {path}"
    assert caught.value.exit_code == ExitCode.PERMISSION


def test_a_missing_key_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="no identity") as caught:
        load_identity(tmp_path / "identity.key")
    assert "fullrank join" in caught.value.hint


def test_a_damaged_key_is_refused_without_showing_its_secret(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    key = create_identity(path)
    good = path.read_bytes()
    seed = key.seed.hex().encode()
    other = b"0" if seed[:1] != b"0" else b"1"
    for damaged in (b"", good[:40], good.replace(seed, other + seed[1:]), b"\xff" * 4096):
        path.write_bytes(damaged)
        with pytest.raises(NodeError, match="damaged") as caught:
            load_identity(path)
        assert key.seed.hex()[1:] not in str(caught.value) + caught.value.hint


def test_the_file_for_p2pd_holds_seed_and_public_key_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    key = create_identity(path)
    file = libp2p_path(path)
    assert file.read_bytes() == bytes.fromhex("08011240") + key.seed + key.public_key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_file_for_p2pd_is_made_again_when_missing_or_another_keys(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    key = create_identity(path)
    file = libp2p_path(path)
    file.unlink()
    load_identity(path)
    assert file.read_bytes()[4:36] == key.seed
    file.write_bytes(bytes(68))
    file.chmod(0o644)
    load_identity(path)
    assert file.read_bytes()[4:36] == key.seed
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

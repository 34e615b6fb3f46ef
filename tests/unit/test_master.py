"""Masters are immutable, shared when equal, and the same bytes whatever the tiles and threads."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from swarms import genesis_message, key_of

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import temporary_file
from fullrank_node.model import master
from fullrank_node.model.master import MasterStore, manifest_digest
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import Module, create_genesis
from fullrank_protocol.parts import Dense, LowRank
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.state import ModulePlan, apply_tile, model_digest, plan_module, tensor_sha256

UP, NORM = sorted(create_genesis(key_of("ada"), genesis_message()).modules, key=lambda m: m.name, reverse=True)
"""Shapes (4, 3) and (5,)."""

ONE = Scaled.of(1.0)
W_UP = np.arange(12, dtype=np.float32).reshape(4, 3)
W_NORM = np.ones(5, dtype=np.float32)


@pytest.fixture
def masters(tmp_path: Path) -> MasterStore:
    return MasterStore(tmp_path / "masters")


@pytest.fixture
def manifest(masters: MasterStore) -> dict[str, str]:
    return {UP.name: masters.write(UP.name, W_UP), NORM.name: masters.write(NORM.name, W_NORM)}


def add_64_to_the_corner(exponent: int = 0) -> tuple[Module, ModulePlan]:
    """Adds 64 * 64 * 2^exponent to the first entry."""
    B_OR = np.array([[64], [0], [0], [0]], dtype=np.int8)
    A_RI = np.array([[64, 0, 0]], dtype=np.int8)
    part = LowRank(module=UP.name, B_OR=B_OR, A_RI=A_RI, scale_mantissa_R=(1,), scale_exponent_R=(exponent,))
    return UP, plan_module(UP, [(part, ONE)])


def names(masters: MasterStore) -> list[str]:
    return sorted(path.name for path in masters.directory.iterdir())


def test_a_tensor_is_named_by_the_hash_that_the_digest_uses(masters: MasterStore, manifest: dict[str, str]) -> None:
    assert manifest[UP.name] == tensor_sha256(W_UP).hex()
    assert names(masters) == sorted(f"{sha256}.f32" for sha256 in manifest.values())
    assert np.array_equal(masters.open(manifest[UP.name], (4, 3)), W_UP)
    assert masters.path(manifest[UP.name]).read_bytes() == W_UP.astype("<f4").tobytes()
    assert masters.total_bytes() == 4 * (12 + 5)
    assert manifest_digest(manifest) == model_digest({UP.name: tensor_sha256(W_UP), NORM.name: tensor_sha256(W_NORM)})


def test_an_opened_tensor_cannot_be_written(masters: MasterStore, manifest: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="read-only"):
        masters.open(manifest[UP.name], (4, 3))[0, 0] = 1.0


def test_only_float32_is_kept(masters: MasterStore) -> None:
    with pytest.raises(ValueError, match="float64"):
        masters.write("w", np.zeros(3))  # type: ignore[arg-type]


def test_an_update_writes_what_changes_and_shares_the_rest(masters: MasterStore, manifest: dict[str, str]) -> None:
    after = masters.apply(manifest, [add_64_to_the_corner(exponent=-12)])
    expected = W_UP.copy()
    expected[0, 0] = 1.0
    assert after[NORM.name] == manifest[NORM.name]
    assert np.array_equal(masters.open(after[UP.name], (4, 3)), expected)
    assert np.array_equal(masters.open(manifest[UP.name], (4, 3)), W_UP)
    assert len(names(masters)) == 3


def test_a_dense_tensor_is_updated_entry_by_entry(masters: MasterStore, manifest: dict[str, str]) -> None:
    values = np.array([64, 0, -64, 0, 127], dtype=np.int8)
    part = Dense(module=NORM.name, values_O=values, scale_mantissa=1, scale_exponent=-6)
    after = masters.apply(manifest, [(NORM, plan_module(NORM, [(part, ONE)]))])
    assert masters.open(after[NORM.name], (5,)).tolist() == [2.0, 1.0, 0.0, 1.0, 2.984375]


@pytest.mark.parametrize("tile_elements", [1, 5, 12, 1 << 20])
@pytest.mark.parametrize("threads", [1, 2])
def test_tiles_and_threads_do_not_show(
    masters: MasterStore, manifest: dict[str, str], tile_elements: int, threads: int
) -> None:
    values = np.array([64, 1, -3, 0, 127], dtype=np.int8)
    dense = Dense(module=NORM.name, values_O=values, scale_mantissa=3, scale_exponent=-9)
    plans = [add_64_to_the_corner(exponent=-20), (NORM, plan_module(NORM, [(dense, ONE)]))]
    once = masters.apply(manifest, plans)
    assert masters.apply(manifest, plans, threads=threads, tile_elements=tile_elements) == once


def test_no_more_plans_are_held_than_threads(masters: MasterStore, manifest: dict[str, str]) -> None:
    asked: list[int] = []

    def plans() -> object:
        for number in range(20):
            asked.append(number)
            yield add_64_to_the_corner(exponent=-number)

    applied = masters.apply(manifest, plans(), threads=2)  # type: ignore[arg-type]
    assert asked == list(range(20))
    assert applied[UP.name] != manifest[UP.name]


def test_a_module_is_computed_while_the_disk_keeps_another(
    masters: MasterStore, manifest: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: set[str] = set()
    both = threading.Event()
    alone = threading.Lock()

    def compute(tile: np.ndarray, plan: ModulePlan, rows: slice) -> np.ndarray:
        assert alone.acquire(blocking=False), "one thread was asked for"
        try:
            computed.add(plan.module)
            if len(computed) == 2:
                both.set()
            return apply_tile(tile, plan, rows)
        finally:
            alone.release()

    def slow(descriptor: int) -> None:
        assert both.wait(60), "the other module waits for this file"
        fsync(descriptor)

    fsync = os.fsync
    part = Dense(module=NORM.name, values_O=np.full(5, 64, np.int8), scale_mantissa=1, scale_exponent=-6)
    plans = [add_64_to_the_corner(), (NORM, plan_module(NORM, [(part, ONE)]))]
    expected = masters.apply(manifest, plans)
    monkeypatch.setattr(os, "fsync", slow)
    monkeypatch.setattr(master, "apply_tile", compute)
    assert masters.apply(manifest, plans, threads=1) == expected


def test_a_result_that_is_not_finite_is_refused_and_leaves_nothing(
    masters: MasterStore, manifest: dict[str, str]
) -> None:
    with pytest.raises(RejectError) as caught:
        masters.apply(manifest, [add_64_to_the_corner(exponent=120)], tile_elements=3)
    assert caught.value.rule == Rule.NON_FINITE
    assert len(names(masters)) == 2


def test_a_missing_or_truncated_master_names_its_tensor(masters: MasterStore, manifest: dict[str, str]) -> None:
    path = masters.path(manifest[UP.name])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(NodeError, match=r"up\.weight.* has 47 bytes, required 48") as caught:
        masters.apply(manifest, [add_64_to_the_corner()])
    assert caught.value.exit_code == ExitCode.DISK
    path.unlink()
    with pytest.raises(NodeError, match=r"up\.weight.* is missing"):
        masters.apply(manifest, [add_64_to_the_corner()])


def test_damage_is_found_by_hashing(masters: MasterStore, manifest: dict[str, str]) -> None:
    assert masters.verify(manifest[UP.name])
    data = bytearray(masters.path(manifest[UP.name]).read_bytes())
    data[5] ^= 1
    masters.path(manifest[UP.name]).write_bytes(data)
    assert not masters.verify(manifest[UP.name])
    assert not masters.verify("00" * 32)
    with pytest.raises(NodeError, match=r"up\.weight.* does not hash to its name"):
        masters.read(manifest[UP.name], (4, 3), name=UP.name)
    with pytest.raises(NodeError, match=r"up\.weight.* does not hash to its name"):
        masters.apply(manifest, [add_64_to_the_corner()], tile_elements=3)
    assert len(names(masters)) == 2


def test_writing_again_mends_a_damaged_file(masters: MasterStore, manifest: dict[str, str]) -> None:
    masters.path(manifest[UP.name]).write_bytes(bytes(48))
    assert masters.write(UP.name, W_UP) == manifest[UP.name]
    assert masters.verify(manifest[UP.name])


def test_collecting_deletes_what_nobody_keeps(masters: MasterStore, manifest: dict[str, str]) -> None:
    after = masters.apply(manifest, [add_64_to_the_corner()])
    held = masters.open(manifest[UP.name], (4, 3))
    assert masters.collect(after.values()) == 48
    assert names(masters) == sorted(f"{sha256}.f32" for sha256 in after.values())
    assert np.array_equal(held, W_UP)
    assert masters.collect(after.values()) == 0


def test_a_full_disk_is_the_operators_error_and_leaves_nothing(
    masters: MasterStore, manifest: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NodeError, match="no space left") as caught:
        masters.apply(manifest, [add_64_to_the_corner()])
    assert caught.value.exit_code == ExitCode.DISK
    assert len(names(masters)) == 2


WRITER = """
import sys
from pathlib import Path
import numpy as np
from fullrank_node.model.master import MasterStore
masters = MasterStore(Path(sys.argv[1]))
def tiles():
    for number in range(10**9):
        yield np.full(1000, number, dtype=np.float32)
        print("wrote", flush=True)
masters.write("whole", np.arange(10, dtype=np.float32))
masters._write_tiles(tiles())
"""


def test_a_kill_in_mid_write_leaves_whole_files_and_the_next_open_cleans_up(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    writer.stdout.readline()
    assert len(names(MasterStore(tmp_path))) == 2, "a living writer's file is left alone"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    masters = MasterStore(tmp_path)
    sha256 = tensor_sha256(np.arange(10, dtype=np.float32)).hex()
    assert names(masters) == [f"{sha256}.f32"]
    assert masters.verify(sha256)


def test_a_file_that_this_process_is_writing_survives_opening(tmp_path: Path) -> None:
    with temporary_file(tmp_path) as file:
        MasterStore(tmp_path)
        assert Path(file.name).exists()

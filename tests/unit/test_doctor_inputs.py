"""What `doctor` says of data and base model before anything is started, and what `data check` exits with."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from swarms import genesis_message, key_of

from fullrank_node import demo
from fullrank_node.cli import input_checks, main
from fullrank_node.config import write_config
from fullrank_node.errors import ExitCode
from fullrank_node.home import Home
from fullrank_node.model.base import base_files
from fullrank_protocol.blob import blob_ref
from fullrank_protocol.genesis import create_genesis
from fullrank_protocol.wire import objects_pb2 as wire

DEMO_BASE = Path(demo.__file__).parent / "base"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    home = Home(tmp_path / "home")
    home.create()
    return home


def give(home: Home, **sections: Any) -> None:
    write_config(home.config_file, sections)


def rows(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return path


def found_swarm(home: Home, *, reference: str, base: Path = DEMO_BASE, weights: bool = False) -> None:
    """A genesis over the files of a base directory."""
    message = genesis_message()
    message.base.reference = reference
    del message.base.files[:]
    for name in base_files(base):
        message.base.files.append(wire.FileEntry(name=name, blob=blob_ref((base / name).read_bytes()).to_wire()))
    if weights:
        message.base.weight_files.add(name="model.safetensors", blob=blob_ref(b"weights").to_wire())
    home.genesis_file.write_bytes(create_genesis(key_of("ada"), message).envelope.encode())


# ---- data ----------------------------------------------------------------------------------------------


def test_without_data_a_node_trains_nothing_and_is_told_so(home: Home) -> None:
    check = input_checks.data(home)
    assert (check.level, "none is given" in check.detail) == ("ok", True)


def test_data_are_counted(home: Home, tmp_path: Path) -> None:
    give(home, data={"path": rows(tmp_path, '{"text": "one"}', '{"text": "two"}'), "valid_fraction": 0.0})
    check = input_checks.data(home)
    assert (check.level, check.detail.startswith("2 rows to train on, 0 held out")) == ("ok", True)


def test_bad_rows_are_a_warning_with_the_first_line_and_the_command_that_lists_them(home: Home, tmp_path: Path) -> None:
    path = rows(tmp_path, '{"text": "one"}', "not json", '{"prompt": "alone"}')
    give(home, data={"path": path})
    check = input_checks.data(home)
    assert check.level == "warning"
    assert "2 cannot be used, first line 2: not JSON" in check.detail
    assert check.cure == f"fullrank data check {path}"


@pytest.mark.parametrize("lines", [None, ["nothing usable"]])
def test_data_that_are_gone_or_useless_are_a_failure(home: Home, tmp_path: Path, lines: list[str] | None) -> None:
    path = tmp_path / "gone.jsonl" if lines is None else rows(tmp_path, *lines)
    give(home, data={"path": path})
    check = input_checks.data(home)
    assert check.level == "failure"
    assert str(path) in check.detail
    assert check.cure


def test_a_large_file_is_not_read_by_the_doctor(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(home, data={"path": rows(tmp_path, "nothing usable")})
    monkeypatch.setattr(input_checks, "READ_DATA_BYTES", 3)
    check = input_checks.data(home)
    assert (check.level, "not read here" in check.detail) == ("ok", True)


def test_data_check_exits_with_its_code_where_rows_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = rows(tmp_path, '{"text": "one"}')
    assert main.run(["data", "check", str(good)]) == ExitCode.OK
    bad = rows(tmp_path, '{"text": "one"}', "not json")
    capsys.readouterr()
    assert main.run(["data", "check", str(bad)]) == ExitCode.CONFIG
    shown = capsys.readouterr().out
    assert "1 to train on, 0 held out, 1 LEFT OUT" in shown
    assert "line 2: not JSON" in shown
    assert main.run(["data", "check", str(bad), "--json"]) == ExitCode.CONFIG
    assert '"ok": false' in capsys.readouterr().out


# ---- base ----------------------------------------------------------------------------------------------


def test_a_home_without_a_swarm_needs_no_base(home: Home) -> None:
    assert input_checks.base(home).detail == "no swarm yet"


def test_an_embedded_base_is_found_and_compared(home: Home) -> None:
    found_swarm(home, reference="embedded:demo")
    check = input_checks.base(home)
    assert (check.level, str(DEMO_BASE) in check.detail) == ("ok", True)


def test_a_base_that_was_changed_is_named_by_its_first_file(home: Home, tmp_path: Path) -> None:
    base = Path(shutil.copytree(DEMO_BASE, tmp_path / "base"))
    found_swarm(home, reference="", base=base)
    give(home, base={"path": base})
    assert input_checks.base(home).level == "ok"
    (base / "config.json").write_text("{}")
    check = input_checks.base(home)
    assert check.level == "failure"
    assert "base differs from the genesis at config.json" in check.detail
    assert "--base DIR" in check.cure


def test_a_base_that_is_gone_is_a_failure_where_nobody_serves_it(home: Home, tmp_path: Path) -> None:
    found_swarm(home, reference="")
    check = input_checks.base(home)
    assert (check.level, "it is not on this machine" in check.detail) == ("failure", True)
    give(home, base={"path": tmp_path / "nowhere"})
    assert "is no model directory" in input_checks.base(home).detail


@pytest.mark.parametrize(
    ("reference", "weights", "source"),
    [("", True, "from peers"), ("org/name", False, "from the Hugging Face cache or hub")],
)
def test_a_base_that_comes_from_elsewhere_is_said_to(home: Home, reference: str, weights: bool, source: str) -> None:
    found_swarm(home, reference=reference, weights=weights)
    check = input_checks.base(home)
    assert (check.level, check.detail.endswith(source)) == ("ok", True)


def test_a_damaged_genesis_is_a_failure(home: Home) -> None:
    home.genesis_file.write_bytes(b"genesis")
    check = input_checks.base(home)
    assert (check.level, "is damaged" in check.detail) == ("failure", True)

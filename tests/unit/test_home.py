"""A home belongs to one daemon at a time, and a killed one leaves nothing that misleads."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import TEMP_SUFFIX, remove_temporary_files, write_atomically
from fullrank_node.home import MAX_SOCKET_PATH_BYTES, SOCKET_NAME, Home, RunInfo

HOLDER = """
import sys
from pathlib import Path
from fullrank_node.home import Home, RunInfo
import os
home = Home(Path(sys.argv[1]))
home.create()
with home.locked():
    directory = home.make_runtime_dir()
    home.write_run(RunInfo(pid=os.getpid(), socket=str(directory / "control.sock"), token_file="t", started_at_ms=1))
    print(directory, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def start_holder(home: Home) -> tuple[subprocess.Popen[str], Path]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    return holder, Path(holder.stdout.readline().strip())


def stop_holder(holder: subprocess.Popen[str], number: int) -> None:
    holder.send_signal(number)
    holder.communicate()


def test_the_flag_wins_over_the_environment_and_both_over_the_default(tmp_path: Path) -> None:
    environment = {"FULLRANK_HOME": str(tmp_path / "b")}
    assert Home.resolve(tmp_path / "a", environment=environment).path == tmp_path / "a"
    assert Home.resolve(environment=environment).path == tmp_path / "b"
    assert Home.resolve(environment={}).path.name == "fullrank"


def test_a_new_home_is_readable_by_its_owner_alone(home: Home) -> None:
    for directory in (home.path, home.blobs_dir, home.masters_dir, home.logs_dir, home.work_dir):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not home.exists()


def test_a_home_that_is_a_file_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NodeError, match="not a directory") as caught:
        Home(tmp_path / "file").create()
    assert caught.value.exit_code == ExitCode.CONFIG
    assert "--home" in caught.value.hint


def test_a_second_daemon_is_told_who_holds_the_home(home: Home) -> None:
    holder, _ = start_holder(home)
    try:
        with pytest.raises(NodeError, match=rf"already running .*pid {holder.pid}"), home.locked():
            pass
        info = home.read_run()
        assert info is not None
        assert info.pid == holder.pid
    finally:
        stop_holder(holder, signal.SIGKILL)


def test_the_lock_of_a_killed_daemon_is_free_and_its_run_file_stale(home: Home) -> None:
    holder, directory = start_holder(home)
    stop_holder(holder, signal.SIGKILL)
    assert home.run_file.exists()
    assert home.read_run() is None
    assert directory.is_dir()
    with home.locked():
        home.clear_run()
    assert not home.run_file.exists()
    assert not directory.exists()


def test_a_run_file_whose_process_id_belongs_to_somebody_else_now_is_stale(home: Home) -> None:
    home.write_run(RunInfo(pid=os.getpid(), socket="/nowhere/s", token_file="t", started_at_ms=1))
    assert home.read_run() is None
    with home.locked():
        assert home.read_run() is not None


def test_a_damaged_run_file_counts_as_none(home: Home) -> None:
    home.run_file.write_text('{"pid": ')
    assert home.read_run() is None
    home.clear_run()
    assert not home.run_file.exists()


def test_clearing_never_deletes_a_directory_that_is_not_ours(home: Home, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    home.write_run(RunInfo(pid=1, socket=str(precious / "s"), token_file="t", started_at_ms=1))
    home.clear_run()
    assert precious.is_dir()


def test_the_runtime_directory_is_private_and_short_enough_even_for_a_deep_home(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    directory = Home(deep).make_runtime_dir(environment={"XDG_RUNTIME_DIR": str(deep)})
    try:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert len(os.fsencode(directory / SOCKET_NAME)) <= MAX_SOCKET_PATH_BYTES
    finally:
        directory.rmdir()


def test_the_runtime_directory_of_the_session_is_preferred(home: Home, tmp_path: Path) -> None:
    directory = home.make_runtime_dir(environment={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert directory.parent == tmp_path


def test_a_file_is_replaced_as_a_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_half_written_files_are_removed_at_start(home: Home) -> None:
    (home.path / f"abc{TEMP_SUFFIX}").write_bytes(b"half")
    home.create()
    assert remove_temporary_files(home.path) == 0

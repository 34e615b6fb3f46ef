"""`fullrank demo` as a person runs it: what it prints, and that nothing of it is left, however it ends."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

GONE_S = 60.0
"""How long the processes of an ended demo may take to go: they are asked to before it ends."""

pytestmark = pytest.mark.timeout(900)


class RunningDemo:
    """The command as a process of its own, in an empty current directory, with a short TMPDIR of its own."""

    def __init__(self, *arguments: str, directory: Path, temporary: Path) -> None:
        self.mark = secrets.token_hex(8)
        self.temporary = temporary
        environment = os.environ | {"TMPDIR": str(temporary), "DEMO_MARK": self.mark, "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from fullrank_node.cli.main import main; main()", "demo", *arguments],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self.lines.append("(end)")
            self._changed.notify_all()

    @property
    def shown(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str) -> None:
        """Return once a line with the text was shown."""
        with self._changed:
            found = self._changed.wait_for(lambda: any(text in line or line == "(end)" for line in self.lines), 600)
        assert found, self.shown
        assert text in self.shown, self.shown

    def ended(self) -> tuple[int, str]:
        """Exit code and standard output, once it has ended."""
        assert self.process.stdout is not None
        output = self.process.stdout.read()
        code = self.process.wait(timeout=60)
        self._reader.join(timeout=60)
        return code, output

    def processes(self) -> list[psutil.Process]:
        """Everything that the demo started and that still runs, itself included."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("DEMO_MARK") == self.mark
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def nodes(self) -> dict[str, psutil.Process]:
        """The daemons by the name of their node; a child that has not begun its own program yet looks like one."""
        found = {}
        for process in self.processes():
            arguments = process.cmdline()
            if "fullrank_node.daemon" in arguments and process.ppid() == self.process.pid:
                found[Path(arguments[arguments.index("--home") + 1]).name] = process
        return found

    def assert_nothing_is_left(self) -> None:
        _, alive = psutil.wait_procs(self.processes(), timeout=GONE_S)
        assert not alive, [process.cmdline() for process in alive]
        assert list(self.temporary.rglob("*")) == []

    def kill(self) -> None:
        for process in self.processes():
            process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory with a path short enough for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="fd", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def start(tmp_path: Path, temporary: Path) -> Iterator[Any]:
    demos: list[RunningDemo] = []

    def run(*arguments: str) -> RunningDemo:
        demos.append(RunningDemo(*arguments, directory=tmp_path, temporary=temporary))
        return demos[-1]

    yield run
    for demo in demos:
        demo.kill()


def test_two_nodes_train_a_model_that_a_reader_pulls_and_transformers_loads(start: Any, tmp_path: Path) -> None:
    demo = start("--nodes", "2", "--rounds", "2", "--json")
    code, output = demo.ended()
    assert code == 0, demo.shown
    figures = json.loads(output)

    assert (figures["nodes"], figures["rounds"], figures["final_round"]) == (2, 2, 2)
    assert figures["digests_equal"]
    assert len(figures["digest"]) == 64
    assert figures["loss_after"] < figures["loss_before"]
    assert figures["swarm_beats_best_single"] == (figures["loss_after"] < figures["loss_best_single"])
    assert figures["loss_best_single"] == min(figures["losses_single"])
    assert figures["loss_best_single"] < figures["loss_before"]
    assert len(figures["rank_per_round"]) == len(figures["rank_noise_control"]) == 2
    assert 1 < figures["rank_per_round"][-1] < figures["rank_full"]
    assert sum(figures["accepted_per_round"]) in {3, 4}
    assert 1_000 < figures["bytes_per_contribution"] < 200_000
    assert figures["sample_before"] != figures["sample_after"]
    assert figures["seconds"] > 0

    model = Path(figures["model_dir"])
    assert model == tmp_path / "fullrank-demo-model"
    assert json.loads((model / "fullrank.json").read_text())["model_digest"] == figures["digest"]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoModelForCausalLM.from_pretrained(model).num_parameters() > 1_000_000
    assert len(AutoTokenizer.from_pretrained(model)) == 2048
    demo.assert_nothing_is_left()


@pytest.mark.parametrize("moment", ["join by its link", "  training 20 rounds"])
def test_ctrl_c_leaves_nothing_behind(start: Any, tmp_path: Path, moment: str) -> None:
    demo = start("--nodes", "2", "--rounds", "20")
    demo.wait_for(moment)
    assert len(demo.nodes()) >= 1
    os.killpg(demo.process.pid, signal.SIGINT)  # As a terminal does.
    code, output = demo.ended()

    assert code == 130, demo.shown
    assert output == ""
    assert "no process of the demo is left" in demo.shown
    demo.assert_nothing_is_left()
    assert list(tmp_path.iterdir()) == []


def test_a_daemon_that_dies_ends_the_demo_with_its_name_and_its_log(start: Any) -> None:
    demo = start("--nodes", "2", "--rounds", "20")
    demo.wait_for("  training 20 rounds")
    demo.nodes()["node-2"].kill()
    code, output = demo.ended()

    assert code == 1, demo.shown
    assert output == ""
    assert "error: node-2 ended unexpectedly (signal 9); the end of its log:" in demo.shown
    assert "is up." in demo.shown
    demo.assert_nothing_is_left()


def test_killing_the_demo_itself_leaves_no_process(start: Any) -> None:
    demo = start("--nodes", "2", "--rounds", "20")
    demo.wait_for("join by its link")
    demo.process.kill()
    demo.process.wait()

    _, alive = psutil.wait_procs(demo.processes(), timeout=GONE_S)
    assert not alive, [process.cmdline() for process in alive]

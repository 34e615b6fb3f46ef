"""Makes the virtual environment of this checkout: `.venv`, with exactly the versions of `constraints.txt`.

Standard library only, because it runs before anything is installed. It does nothing when the
environment already matches: a stamp in `.venv` holds the hash of everything that decides what gets
installed. Lines about what happens go to stderr.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "scripts" / "constraints.txt"
STAMP_NAME = "fullrank-install.json"

HEARTBEAT_S = 15.0
"""Longest silence on the terminal: unpacking the largest wheel takes longer than people wait without doubt."""

WHEELS_ONLY = "hivemind,torch,tokenizers,grpcio,grpcio-tools"
"""Built from source these need compilers and fetch torch a second time: no wheel is a clearer answer."""

TAIL_LINES = 25


class SetupError(Exception):
    """Something the person at the terminal has to mend; the message says how."""


def main() -> int:
    """Make or refresh the environment; the exit code is 0 when it is ready for use."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dev", action="store_true", help="also install the tools that the tests need")
    arguments = parser.parse_args()
    try:
        make_environment(dev=arguments.dev)
    except SetupError as problem:
        print(f"fullrank: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fullrank: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def make_environment(*, dev: bool, venv: Path = ROOT / ".venv") -> None:
    """Create `venv` if need be and install the project into it.

    Raises:
        SetupError: The folder is not ours, or Python or pip failed.
    """
    key = install_key()
    installed = read_stamp(venv)
    if installed.get("key") == key and (installed.get("dev") or not dev):
        return
    dev = dev or bool(installed.get("dev"))
    started = time.monotonic()
    create_venv(venv)
    (venv / STAMP_NAME).unlink(missing_ok=True)
    say(f"installing into {venv.name}/ (a few minutes the first time, mostly PyTorch; nothing outside it changes)")
    pip_install(venv, ["pip"], started)
    group = ["--group", f"{ROOT / 'pyproject.toml'}:dev"] if dev else []
    pip_install(
        venv,
        ["--build-constraint", str(CONSTRAINTS), "--only-binary", WHEELS_ONLY, *group, "--editable", str(ROOT)],
        started,
    )
    (venv / STAMP_NAME).write_text(json.dumps({"key": key, "dev": dev}), encoding="utf-8")
    say(f"installed in {time.monotonic() - started:.0f} s")


def install_key() -> str:
    """Hash of everything that decides what gets installed and where."""
    digest = hashlib.sha256()
    for part in (
        (ROOT / "pyproject.toml").read_bytes(),
        CONSTRAINTS.read_bytes(),
        Path(__file__).read_bytes(),
        str(ROOT).encode(),
    ):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def read_stamp(venv: Path) -> dict[str, object]:
    """What was installed last; empty when there is no usable environment."""
    if not python_of(venv).exists():  # Also when the Python that the environment was made with is gone.
        return {}
    try:
        stamp = json.loads((venv / STAMP_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def python_of(venv: Path) -> Path:
    """The interpreter inside an environment."""
    return venv / "bin" / "python"


def create_venv(venv: Path) -> None:
    """Make an empty environment, or keep the one that is there if it works and belongs to this folder.

    Raises:
        SetupError: `venv` is something else, or Python cannot make environments.
    """
    if venv.exists():
        if not (venv / "pyvenv.cfg").exists():
            raise SetupError(f"{venv} exists and is no virtual environment: move it away and run this again")
        if works(venv):
            return
        say(f"{venv.name}/ does not work here (moved, or its Python is gone): making it anew")
        shutil.rmtree(venv)
    say(f"making {venv.name}/ with Python {sys.version.split()[0]}")
    command = [sys.executable, "-m", "venv", str(venv)]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode != 0:
        shutil.rmtree(venv, ignore_errors=True)
        hint = f"on Debian and Ubuntu: apt install python{sys.version_info.major}.{sys.version_info.minor}-venv"
        raise SetupError(f"Python could not make an environment ({hint})\n{made.stdout}{made.stderr}".rstrip())


def works(venv: Path) -> bool:
    """Whether the environment runs with a Python that we support, and its commands were made for this very path."""
    program = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    try:
        found = subprocess.run([str(python_of(venv)), "-c", program], check=False, capture_output=True)
        command = (venv / "bin" / "pip").read_text(encoding="utf-8")
    except OSError:
        return False
    return found.returncode == 0 and str(venv) in command


def pip_install(venv: Path, arguments: list[str], started: float) -> None:
    """Run `pip install` within the constraints and show its progress in few lines.

    Raises:
        SetupError: pip failed; carries the end of what it printed.
    """
    command = [str(python_of(venv)), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    command += ["--constraint", str(CONSTRAINTS), *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1", "PIP_REQUIRE_VIRTUALENV": "0"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as pip:
        assert pip.stdout is not None
        progress = Progress(started)
        try:
            for line in pip.stdout:
                progress.take(line.rstrip())
        finally:
            progress.close()
            if sys.exc_info()[0] is not None:
                pip.terminate()
    if pip.returncode != 0:
        tail = "\n".join(progress.tail)
        raise SetupError(
            f"pip failed with exit code {pip.returncode}; the end of what it said:\n{tail}\n"
            "fullrank: without a network connection or disk space this cannot work; otherwise run it again"
        )


class Progress:
    """Turns pip's many lines into a line when something slow begins, and one now and then in between."""

    def __init__(self, started: float) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._started = started
        self._doing = "starting pip"
        self._said_at = time.monotonic()
        self._closed = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, daemon=True)
        self._heartbeat.start()

    def take(self, line: str) -> None:
        """Note one line of pip's output."""
        self.tail.append(line)
        words = line.split()
        if not words:
            return
        if words[0] in ("Collecting", "Obtaining") and len(words) > 1:
            self._doing = f"looking up {words[1]}"
        elif words[0] in ("Downloading", "Processing") and len(words) > 1:
            self._doing = " ".join(["fetching", words[1].rpartition("/")[2], *words[2:4]])
        elif words[0] == "Building":
            self._doing = line.strip()
        elif line.startswith("Installing collected packages") and "," in line:
            self._doing = f"unpacking {line.count(',') + 1} packages"
            self._say()

    def close(self) -> None:
        """Stop the heartbeat."""
        self._closed.set()
        self._heartbeat.join()

    def _beat(self) -> None:
        while not self._closed.wait(1.0):
            if time.monotonic() - self._said_at >= HEARTBEAT_S:
                self._say()

    def _say(self) -> None:
        self._said_at = time.monotonic()
        say(f"{self._said_at - self._started:4.0f} s  {self._doing}")


def say(line: str) -> None:
    """One line to the person at the terminal."""
    print(f"fullrank: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())

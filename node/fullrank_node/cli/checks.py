"""What `doctor` looks at: each check gives one line, and a cure where something is wrong.

Nothing here imports torch or hivemind: the device is looked at in a process of its own, and p2pd is
started by itself, so that one broken library does not keep the other answers from being given.
"""

import json
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib import metadata, util
from pathlib import Path

from fullrank_node.cli.check import Check
from fullrank_node.cli.input_checks import base, data
from fullrank_node.errors import NodeError
from fullrank_node.home import Home

LIBRARIES = ("torch", "transformers", "peft", "hivemind", "grpcio", "protobuf", "numpy", "cryptography")

DEVICE_TIMEOUT_S = 120.0
"""Importing torch from a cold disk takes tens of seconds."""

P2PD_TIMEOUT_S = 15.0
"""It prints its peer id within half a second on an idle machine."""

LOW_MEMORY_BYTES = 2_000_000_000
"""The daemon, its p2pd, a worker and a trainer of a small model need about this much together."""

LOW_DISK_BYTES = 5_000_000_000
VERY_LOW_DISK_BYTES = 1_000_000_000
"""Masters of head and final checkpoint and some rounds of deltas, even of a small model, outgrow this soon."""

_LINUX_CLOCK_UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)

_DEVICE_PROGRAM = """
import json, sys
from dataclasses import asdict
from fullrank_node.errors import NodeError
from fullrank_node.training.hardware import describe_hardware
try:
    print(json.dumps(asdict(describe_hardware(sys.argv[1]))))
except NodeError as error:
    print(json.dumps({"error": str(error), "hint": error.hint}))
"""


def versions(_home: Home) -> Check:
    """The libraries that everything stands on."""
    found, missing = [f"Python {sys.version.split()[0]}"], []
    for library in LIBRARIES:
        try:
            found.append(f"{library} {metadata.version(library)}")
        except metadata.PackageNotFoundError:
            missing.append(library)
    if missing:
        detail = f"not installed: {', '.join(missing)}"
        return Check(name="versions", level="failure", detail=detail, cure="Install again: pip install fullrank")
    return Check(name="versions", level="ok", detail=", ".join(found))


def config(home: Home) -> Check:
    """Whether the configuration can be read."""
    from fullrank_node.config import load_config

    try:
        load_config(home.config_file)
    except NodeError as error:
        return Check(name="config", level="failure", detail=str(error), cure=error.hint)
    where = str(home.config_file) if home.config_file.exists() else "nothing is set, all is default"
    return Check(name="config", level="ok", detail=where)


def device(home: Home) -> Check:
    """What training would run on, as torch sees it."""
    command = [sys.executable, "-P", "-c", _DEVICE_PROGRAM, _configured_device(home)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEVICE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        detail = f"torch did not load within {DEVICE_TIMEOUT_S:.0f} s"
        return Check(name="device", level="failure", detail=detail, cure="Try again; the disk may be very slow.")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        detail = f"torch does not load: {last}"
        return Check(name="device", level="failure", detail=detail, cure="Install torch again, for this machine.")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if "error" in found:
        return Check(name="device", level="failure", detail=found["error"], cure=found["hint"])
    size = f"{found['memory_bytes'] / 1e9:.0f} GB"
    detail = f"{found['name']}, {size}, computes in {found['dtype']}, {found['num_cores']} processor threads"
    if found["device"] == "cpu":
        return Check(name="device", level="ok", detail=f"{detail} (no GPU: training works, and takes longer)")
    return Check(name="device", level="ok", detail=detail)


def memory(_home: Home) -> Check:
    """Free memory of the machine."""
    import psutil

    state = psutil.virtual_memory()
    detail = f"{state.available / 1e9:.1f} of {state.total / 1e9:.1f} GB free"
    if state.available < LOW_MEMORY_BYTES:
        cure = "Close other programs; several nodes on one machine need about 1.5 GB each."
        return Check(name="memory", level="warning", detail=detail, cure=cure)
    return Check(name="memory", level="ok", detail=detail)


def disk(home: Home) -> Check:
    """Free space where the home is, or will be."""
    place = next(path for path in (home.path, *home.path.parents) if path.exists())
    free = shutil.disk_usage(place).free
    detail = f"{free / 1e9:.1f} GB free at {place}"
    cure = "Free some space, or name a home on a larger disk with --home DIR."
    if free < VERY_LOW_DISK_BYTES:
        return Check(name="disk", level="failure", detail=detail, cure=cure)
    if free < LOW_DISK_BYTES:
        return Check(name="disk", level="warning", detail=detail, cure=cure)
    return Check(name="disk", level="ok", detail=detail)


def clock(home: Home) -> Check:
    """Whether the clock can be right: slots are cut by it, and peers refuse what is 10 s ahead."""
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    shown = now.strftime("%Y-%m-%d %H:%M:%S UTC")
    cure = "Set the clock: timedatectl set-ntp true"
    newest = max((path.stat().st_mtime for path in (home.genesis_file, Path(__file__)) if path.exists()), default=0.0)
    if now.timestamp() < newest - 10:
        detail = f"{shown} lies before files that were written here earlier"
        return Check(name="clock", level="failure", detail=detail, cure=cure)
    if _kernel_says_unsynchronised():
        detail = f"{shown}, and the system does not keep it synchronised"
        return Check(name="clock", level="warning", detail=detail, cure=cure)
    return Check(name="clock", level="ok", detail=shown)


def home_directory(home: Home) -> Check:
    """Whether the home exists, can be written, and keeps its key private."""
    if not home.exists():
        detail = f"no node at {home.path} yet"
        return Check(name="home", level="ok", detail=detail)
    mode = stat.S_IMODE(home.identity_file.stat().st_mode)
    if mode & 0o077:
        detail = f"the key {home.identity_file} can be read by others (mode {mode:04o}, required 0600)"
        return Check(name="home", level="failure", detail=detail, cure=f"chmod 600 {home.identity_file}")
    try:
        with tempfile.TemporaryFile(dir=home.path):
            pass
    except OSError as error:
        detail = f"{home.path} cannot be written: {error.strerror}"
        return Check(name="home", level="failure", detail=detail, cure="Run as its owner, or name another with --home.")
    swarm = "" if home.genesis_file.exists() else ", no swarm yet"
    return Check(name="home", level="ok", detail=f"{home.path}{swarm}")


def daemon(home: Home) -> Check:
    """Whether a daemon runs on the home, and answers."""
    from fullrank_node.cli.lifecycle import answers

    if not home.is_locked():
        return Check(name="daemon", level="ok", detail="not running")
    run = home.read_run()
    if run is not None and answers(home):
        return Check(name="daemon", level="ok", detail=f"running (process {run.pid})")
    cure = "See `fullrank logs`; then `fullrank stop` and `fullrank start`."
    return Check(name="daemon", level="failure", detail="running, but does not answer", cure=cure)


def ports(home: Home) -> Check:
    """Whether the configured ports are free for this node."""
    import socket

    from fullrank_node.config import load_config

    try:
        network = load_config(home.config_file).network
    except NodeError:
        return Check(name="ports", level="warning", detail="not checked: the configuration cannot be read")
    if network.no_listen:
        return Check(name="ports", level="ok", detail="only dials out; serves over the connections it dialled")
    if home.is_locked():
        return Check(name="ports", level="ok", detail=f"in use by the running daemon: {', '.join(network.listen)}")
    for address in network.listen:
        host, port = _host_and_port(address)
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.bind((host, port))
        except OSError as error:
            detail = f"{address}: {error.strerror or error}"
            cure = "Choose another: fullrank config set network.listen /ip4/0.0.0.0/tcp/PORT"
            return Check(name="ports", level="failure", detail=detail, cure=cure)
    return Check(name="ports", level="ok", detail=f"free: {', '.join(network.listen)}")


def p2pd(_home: Home) -> Check:
    """Whether the network's own process starts on this machine."""
    package = util.find_spec("hivemind")
    binary = Path(package.origin).parent / "hivemind_cli" / "p2pd" if package and package.origin else None
    cure = "Install hivemind again, with a wheel for this system."
    if binary is None or not binary.exists():
        return Check(name="p2pd", level="failure", detail="not part of this installation", cure=cure)
    with tempfile.TemporaryDirectory(prefix="fullrank-") as folder:
        command = [str(binary), f"-listen=/unix{folder}/control.sock", "-noListenAddrs", "-idleTimeout=5s"]
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except OSError as error:
            return Check(name="p2pd", level="failure", detail=f"cannot be run: {error}", cure=cure)
        with process:
            line = _first_line_with(process, "Peer ID:")
            process.kill()
    if line is None:
        return Check(name="p2pd", level="failure", detail="ended without a word of its peer id", cure=cure)
    return Check(name="p2pd", level="ok", detail="starts")


ALL = (versions, config, home_directory, daemon, data, base, disk, memory, clock, ports, p2pd, device)
"""In the order of the report; the slow ones last."""


def as_fields(check: Check) -> dict[str, str]:
    """A check as JSON knows it."""
    return asdict(check)


def _configured_device(home: Home) -> str:
    from fullrank_node.config import load_config

    try:
        return load_config(home.config_file).train.device
    except NodeError:
        return "auto"


def _kernel_says_unsynchronised() -> bool:
    """What adjtimex(2) says on Linux; other systems are believed."""
    import ctypes

    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    # The first field, modes = 0, asks and changes nothing; 512 bytes are more than struct timex has anywhere.
    return bool(library.adjtimex(ctypes.create_string_buffer(512)) == _LINUX_CLOCK_UNSYNCHRONISED)


def _host_and_port(address: str) -> tuple[str, int]:
    """Of a multiaddress such as /ip4/0.0.0.0/tcp/7700; any free port where it names none."""
    parts = address.strip("/").split("/")
    values = dict(zip(parts[::2], parts[1::2], strict=False))
    port = values.get("tcp", "0")
    return values.get("ip4") or values.get("ip6") or "", int(port) if port.isdecimal() else 0


def _first_line_with(process: "subprocess.Popen[str]", start: str) -> str | None:
    import threading

    watchdog = threading.Timer(P2PD_TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        return next((line for line in process.stdout or () if line.startswith(start)), None)
    finally:
        watchdog.cancel()

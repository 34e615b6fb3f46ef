"""Networks that can be cut: hosts in network namespaces of this machine, joined by bridges.

Nothing outside these namespaces is touched, and all of them vanish with `Lan.close`. Needs root, `ip` (iproute2)
and `nft` (nftables): `missing()` names what is not there.
"""

import contextlib
import functools
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Self

_numbers = itertools.count()

INSIDE = "10.77.1"
"""The network behind the router, which nobody outside can dial."""

OUTSIDE = "10.77.0"

SLOW_LINE = Path(__file__).with_name("slow_line.py")


@functools.cache
def missing() -> str:
    """What this machine lacks; empty when namespaces can be made."""
    if os.geteuid() != 0:
        return "root"
    lacking = [tool for tool in ("ip", "nft", "nsenter", "tc") if shutil.which(tool) is None]
    if lacking:
        return " and ".join(lacking) + " (apt-get install iproute2 nftables util-linux)"
    try:
        with Lan() as lan:
            lan.router("r")
    except subprocess.CalledProcessError as error:
        return f"network namespaces ({error.stderr.strip()})"
    return ""


class Lan:
    """Hosts on one network, some perhaps behind a router that hides them; a context manager."""

    def __init__(self) -> None:
        self._prefix = f"fullrank-{os.getpid()}-{next(_numbers)}"
        self._namespaces: list[str] = []
        self._lines: list[subprocess.Popen[str]] = []
        self._next_address = itertools.count(10)
        self.addresses: dict[str, str] = {}
        self._switch = self._namespace("switch")
        for bridge in ("here", "there"):
            self._ip(self._switch, "link", "add", bridge, "type", "bridge")
            self._ip(self._switch, "link", "set", bridge, "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything that was made here."""
        for line in self._lines:
            line.terminate()
            line.communicate()
        self._lines.clear()
        for namespace in reversed(self._namespaces):
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "del", namespace)
        self._namespaces.clear()

    # ---- building ----------------------------------------------------------------------------------

    def host(self, name: str) -> str:
        """A host that everybody can dial; its address."""
        namespace = self._namespace(name)
        return self._plug(namespace, name)

    def far_host(self, name: str, *, delay_ms: int, kbit_per_s: int) -> str:
        """A host at the end of a long and narrow line: so much later, each way, and so much of it; its address."""
        namespace = self._namespace(name)
        ends = (namespace, "eth0", self._switch, name)
        line = subprocess.Popen([sys.executable, SLOW_LINE, *ends, str(delay_ms)], stdout=subprocess.PIPE, text=True)
        self._lines.append(line)
        assert line.stdout is not None
        if not line.stdout.readline():
            raise subprocess.CalledProcessError(line.wait(), line.args, stderr="the slow line ended")
        bucket = ("tbf", "rate", f"{kbit_per_s}kbit", "burst", "32kb", "latency", "500ms")
        for where, device in ((namespace, "eth0"), (self._switch, name)):
            _run(*enter(where), "tc", "qdisc", "add", "dev", device, "root", *bucket)
        return self._address(namespace, name)

    def router(self, name: str) -> str:
        """A router that hides one host behind its own address, as those at home do; the hidden host's address."""
        router, hidden = self._namespace(f"{name}-router"), self._namespace(name)
        self._plug(router, name)
        self._ip(hidden, "link", "add", "eth0", "type", "veth", "peer", "name", "inside", "netns", router)
        for namespace, device, address in ((hidden, "eth0", f"{INSIDE}.2"), (router, "inside", f"{INSIDE}.1")):
            self._ip(namespace, "address", "add", f"{address}/24", "dev", device)
            self._ip(namespace, "link", "set", device, "up")
        self._ip(hidden, "route", "add", "default", "via", f"{INSIDE}.1")
        _run(*enter(router), "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        rules = """
            table ip home {
                chain out { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }
                chain through {
                    type filter hook forward priority filter; policy drop;
                    iifname "inside" accept
                    ct state established,related accept
                }
                chain itself { type filter hook input priority filter; iifname "eth0" ip protocol tcp reject; }
            }
        """
        _run(*enter(router), "nft", "-f", "-", given=rules)
        self.addresses[name] = f"{INSIDE}.2"
        return self.addresses[name]

    def way_into(self, name: str) -> tuple[str, ...]:
        """What to put before a command that shall run on a host."""
        return enter(f"{self._prefix}-{name}")

    # ---- faults ------------------------------------------------------------------------------------

    def part(self, names: Iterable[str]) -> None:
        """Cut the network: these hosts hear each other only, and so do the others. Nobody is told."""
        for name in names:
            self._ip(self._switch, "link", "set", name, "master", "there")

    def heal(self) -> None:
        """Join the two parts again."""
        for name in self.addresses:
            self._ip(self._switch, "link", "set", name, "master", "here")

    def lose(self, name: str, *, percent: int) -> None:
        """Lose that share of all packets that a host is sent."""
        rules = f"""
            table ip loss {{
                chain in {{
                    type filter hook input priority filter;
                    iifname != "lo" numgen random mod 100 < {percent} drop
                }}
            }}
        """
        _run(*self.way_into(name), "nft", "-f", "-", given=rules)

    def lose_nothing(self, name: str) -> None:
        """Let every packet pass again."""
        _run(*self.way_into(name), "nft", "delete", "table", "ip", "loss")

    # ---- inside ------------------------------------------------------------------------------------

    def _namespace(self, name: str) -> str:
        namespace = f"{self._prefix}-{name}"
        _run("ip", "netns", "add", namespace)
        self._namespaces.append(namespace)
        self._ip(namespace, "link", "set", "lo", "up")
        return namespace

    def _plug(self, namespace: str, name: str) -> str:
        self._ip(namespace, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", self._switch)
        return self._address(namespace, name)

    def _address(self, namespace: str, name: str) -> str:
        """Join the host's end of its line to the others, and give it an address."""
        address = f"{OUTSIDE}.{next(self._next_address)}"
        self._ip(self._switch, "link", "set", name, "master", "here", "up")
        self._ip(namespace, "address", "add", f"{address}/24", "dev", "eth0")
        self._ip(namespace, "link", "set", "eth0", "up")
        self.addresses[name] = address
        return address

    @staticmethod
    def _ip(namespace: str, *words: str) -> None:
        _run("ip", "-n", namespace, *words)


def enter(namespace: str) -> tuple[str, ...]:
    """How a command gets into a namespace; unlike `ip netns exec` it leaves the mounts alone."""
    return ("nsenter", f"--net=/run/netns/{namespace}")


def _run(*words: str, given: str | None = None) -> None:
    subprocess.run(words, input=given, check=True, capture_output=True, text=True, timeout=30)

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
from collections.abc import Iterable
from typing import Self

_numbers = itertools.count()

INSIDE = "10.77.1"
"""The network behind the router, which nobody outside can dial."""

OUTSIDE = "10.77.0"


@functools.cache
def missing() -> str:
    """What this machine lacks; empty when namespaces can be made."""
    if os.geteuid() != 0:
        return "root"
    lacking = [tool for tool in ("ip", "nft", "nsenter") if shutil.which(tool) is None]
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
        for namespace in reversed(self._namespaces):
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "del", namespace)
        self._namespaces.clear()

    # ---- building ----------------------------------------------------------------------------------

    def host(self, name: str) -> str:
        """A host that everybody can dial; its address."""
        namespace = self._namespace(name)
        return self._plug(namespace, name)

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
        address = f"{OUTSIDE}.{next(self._next_address)}"
        self._ip(namespace, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", self._switch)
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

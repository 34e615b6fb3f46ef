"""Multiaddresses as people write them: host, port and the peer that must answer there.

Only what this node has to understand itself; p2pd reads the rest.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fullrank_protocol.errors import RejectError
from fullrank_protocol.identity import peer_id, public_key_of_peer_id
from fullrank_protocol.limits import MAX_ADDRESS_BYTES

_HOSTS: Final = frozenset({"ip4", "ip6", "dns", "dns4", "dns6", "dnsaddr"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a peer can be dialled.

    Attributes:
        base: The part before the peer id, e.g. "/ip4/203.0.113.7/tcp/4001".
        key: The peer that must answer there.
    """

    base: str
    key: bytes

    def __str__(self) -> str:
        return f"{self.base}/p2p/{peer_id(self.key)}"


def parse_address(text: str) -> Address:
    """Reads an address that ends in /p2p/<peer id>.

    Raises:
        ValueError: It does not; the message is fit for people.
    """
    if len(text.encode()) > MAX_ADDRESS_BYTES:
        raise ValueError(f"an address of {len(text.encode())} bytes, at most {MAX_ADDRESS_BYTES} allowed")
    base, separator, identity = text.strip().rpartition("/p2p/")
    if not separator:
        raise ValueError(f"{text!r} does not end in /p2p/ and a peer id")
    try:
        key = public_key_of_peer_id(identity)
    except RejectError as error:
        raise ValueError(f"{text!r} does not end in an acceptable peer id") from error
    host_and_port(base)
    return Address(base=base, key=key)


def host_and_port(base: str) -> tuple[str, str, int]:
    """The host's kind, the host and the TCP or UDP port of an address.

    Raises:
        ValueError: It has none.
    """
    parts = base.split("/")
    if len(parts) < 5 or parts[0] or parts[1] not in _HOSTS or not parts[2] or parts[3] not in {"tcp", "udp"}:
        raise ValueError(f"{base!r} is no address like /ip4/203.0.113.7/tcp/4001")
    if not parts[4].isascii() or not parts[4].isdigit() or not 0 <= int(parts[4]) < 1 << 16:
        raise ValueError(f"{base!r} has no port from 0 to 65535")
    if parts[1] in {"ip4", "ip6"}:
        ipaddress.ip_address(parts[2])
    return parts[1], parts[2], int(parts[4])


def dialable(bases: Iterable[str], *, key: bytes) -> list[str]:
    """Those of `bases` that others can dial, with the peer id of `key`, the most widely usable first."""
    kept = []
    for base in bases:
        plain = base.partition("/p2p/")[0]
        try:
            host_and_port(plain)
        except ValueError:
            continue
        if "/p2p-circuit" not in base:
            kept.append(plain)
    return [str(Address(base=base, key=key)) for base in sorted(kept, key=usefulness)]


def with_port(base: str, port: int) -> str:
    """The same address with another port."""
    parts = base.split("/")
    return "/".join([*parts[:4], str(port), *parts[5:]])


def is_loopback(base: str) -> bool:
    """Whether only this machine can use the address."""
    kind, host, _ = host_and_port(base)
    return host == "localhost" if kind.startswith("dns") else ipaddress.ip_address(host).is_loopback


def usefulness(base: str) -> int:
    """Sorts addresses, the most widely usable first: names and public ones, private ones, this machine's own."""
    kind, host, _ = host_and_port(base)
    if kind.startswith("dns"):
        return 0
    address = ipaddress.ip_address(host)
    if address.is_loopback or address.is_link_local:
        return 2
    return 1 if address.is_private else 0

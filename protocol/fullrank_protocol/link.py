"""A swarm as one line of text that people pass on (protocol section 3).

    fullrank:<swarm id>?peer=<multiaddr>&peer=<multiaddr>&invite=<secret>&final=<id>

Ids and the invite's secret are 64 hexadecimal digits. Nothing but the swarm id is needed where peers are known already.
"""

import itertools
import string
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import unquote

from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.hints import check_address
from fullrank_protocol.identity import SigningKey, public_key_of_peer_id
from fullrank_protocol.limits import ID_BYTES, MAX_LINK_CHARS, MAX_LINK_PEERS

SCHEME: Final = "fullrank:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Where a swarm is found, and what its bearer may do there.

    Attributes:
        swarm: Swarm id, against which the genesis is checked.
        peers: Multiaddresses that end in a peer id; none of them is privileged.
        invite: Secret seed of an invite, 32 bytes. Whoever has it can join: its text form is not for logs.
        final: A final checkpoint known to the sender; without it, departed certifiers' keys could forge a history.
    """

    swarm: bytes
    peers: tuple[str, ...] = ()
    invite: bytes | None = field(default=None, repr=False)
    final: bytes | None = None

    def __str__(self) -> str:
        parts = [f"peer={peer}" for peer in self.peers]
        parts += [] if self.invite is None else [f"invite={self.invite.hex()}"]
        parts += [] if self.final is None else [f"final={self.final.hex()}"]
        return SCHEME + self.swarm.hex() + ("?" + "&".join(parts) if parts else "")

    def without_invite(self) -> "Link":
        """The same for readers: it lets nobody join."""
        return replace(self, invite=None)

    def invite_key(self) -> bytes | None:
        """Public key of the invite: the grant is found by it."""
        return None if self.invite is None else SigningKey.from_seed(self.invite).public_key


def parse_link(text: str) -> Link:
    """Reads a link as people paste it: white space around it and percent-encoding do no harm.

    Raises:
        RejectError: SCHEMA, naming the part that is wrong.
    """
    text = text.strip()
    if len(text) > MAX_LINK_CHARS:
        raise RejectError(Rule.SCHEMA, f"the link has {len(text)} characters, at most {MAX_LINK_CHARS} allowed")
    if not text.startswith(SCHEME):
        raise RejectError(Rule.SCHEMA, f"a link begins with {SCHEME!r}, this text with {text[: len(SCHEME)]!r}")
    swarm, _, query = text[len(SCHEME) :].partition("?")
    peers: list[str] = []
    secrets: dict[str, bytes] = {}
    for part in query.split("&") if query else []:
        name, _, value = part.partition("=")
        value = unquote(value)
        if name == "peer":
            peers.append(_peer(value))
        elif name in ("invite", "final"):
            if name in secrets:
                raise RejectError(Rule.SCHEMA, f"the link names {name} twice")
            secrets[name] = _hex(value, what=f"the link's {name}")
        else:
            raise RejectError(
                Rule.SCHEMA, f"the link has the unknown part {name[:32]!r}; is this program too old for it?"
            )
    if len(peers) > MAX_LINK_PEERS:
        raise RejectError(Rule.SCHEMA, f"the link names {len(peers)} peers, at most {MAX_LINK_PEERS} allowed")
    return Link(
        swarm=_hex(swarm, what="the link's swarm id"),
        peers=tuple(dict.fromkeys(peers)),
        invite=secrets.get("invite"),
        final=secrets.get("final"),
    )


def _hex(text: str, *, what: str) -> bytes:
    if len(text) != 2 * ID_BYTES or any(character not in string.hexdigits for character in text):
        raise RejectError(Rule.SCHEMA, f"{what} has {len(text)} characters, {2 * ID_BYTES} hexadecimal digits required")
    return bytes.fromhex(text)


def _peer(address: str) -> str:
    check_address(address)
    if any(character in address for character in "?&#%="):
        raise RejectError(Rule.SCHEMA, f"the link's peer {address!r} is not a plain multiaddress")
    parts = address.split("/")
    for name, value in itertools.pairwise(parts):
        if name == "p2p":
            public_key_of_peer_id(value)
    return address

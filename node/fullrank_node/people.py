"""Members as people see them: names, and keys given by name or by their first digits."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fullrank_node.api import control_pb2 as wire
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.names import name_of
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.membership import ROLE_CONTRIBUTE, Members

if TYPE_CHECKING:
    from fullrank_node.runner import Runner

MIN_DIGITS = 4
"""Fewer hex digits than this name too many keys."""

HANDLE_DIGITS = 8
"""Of a key whose owner has no name that can be typed."""

_PLAIN_WORD = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
"""A name that a shell takes as one word; names come from strangers, and commands with them are copied and run."""


def name_of_member(key: bytes, members: Members | None) -> str:
    """The name that a member gave itself, or one made from its key."""
    found = members.find(key) if members is not None else None
    return found.name if found is not None and found.name else name_of(key)


def handle_of(key: bytes, members: Members) -> str:
    """What a person types for a member: its name where it is a plain word that nobody else has, else digits."""
    return handles_of([key], members)[key]


def handles_of(keys: Iterable[bytes], members: Members) -> dict[bytes, str]:
    """The same for several: names are counted once."""
    num_called = Counter(name_of_member(key, members).lower() for key in _everybody(members))
    handles = {}
    for key in keys:
        name = name_of_member(key, members)
        is_own = num_called[name.lower()] == 1 and _PLAIN_WORD.fullmatch(name)
        handles[key] = name if is_own else key.hex()[:HANDLE_DIGITS]
    return handles


def member_line(key: bytes, runner: "Runner") -> wire.MemberLine:
    """One member with its standing and what it has done, as far as this node remembers."""
    members = runner.state.tree.head().members
    found = members.find(key)
    line = wire.MemberLine(
        key=key,
        name=name_of_member(key, members),
        contributes=members.may(key, ROLE_CONTRIBUTE),
        certifies=key in members.certifiers,
        admitted_slot=found.admitted_slot if found is not None else 0,
        standing=_standing(key, members),
        root=key in runner.genesis.membership.root_keys,
        me=key == runner.key.public_key,
    )
    note_last_vote(line, key, runner.state.tree)
    for row in runner.store.contributions(key, limit=10_000):
        if row.status == "accepted":
            line.accepted += 1
            if row.round is not None and not line.HasField("last_round"):
                line.last_round = row.round
        elif row.status == "refused":
            line.refused += 1
    return line


def note_last_vote(line: wire.MemberLine | wire.PeerLine | wire.CertifierLine, key: bytes, tree: Tree) -> None:
    """Write down for which slot a key voted last, as far as votes are known here."""
    vote = tree.latest_vote(key)
    if vote is not None:
        line.last_vote_slot = vote.target_slot
        line.last_vote_ms = tree.genesis.slot_end_ms(vote.target_slot)


def resolve_key(text: str, members: Members) -> bytes:
    """The member or invite key meant by a name or by the first digits of a key.

    Raises:
        NodeError: Nobody, or more than one, is meant.
    """
    return _only(_meant(text, _everybody(members), members), text, what="in this swarm")


def resolve_certifier(text: str, members: Members) -> bytes:
    """The certifier meant by a name or by the first digits of a key.

    Raises:
        NodeError: Nobody, or more than one, is meant; or a member that is no certifier.
    """
    found = _meant(text, members.certifiers, members)
    if not found and (others := _meant(text, _everybody(members), members)):
        names = ", ".join(sorted(name_of_member(key, members) for key in others))
        listed = ", ".join(sorted(handle_of(key, members) for key in members.certifiers))
        raise NodeError(
            f"{names} is no certifier: there is nothing to retire",
            hint=f"Certifiers are: {listed}. `fullrank revoke` takes all rights away from anybody.",
            exit_code=ExitCode.USAGE,
        )
    return _only(found, text, what="among the certifiers")


def _everybody(members: Members) -> set[bytes]:
    return {
        *members.members,
        *members.former,
        *members.certifiers,
        *(grant.invite_key for grant in members.grants.values()),
    }


def _meant(text: str, keys: Iterable[bytes], members: Members) -> set[bytes]:
    wanted = text.strip().lower()
    found = {key for key in keys if name_of_member(key, members).lower() == wanted}
    if not found and len(wanted) >= MIN_DIGITS:
        found = {key for key in keys if key.hex().startswith(wanted)}
    return found


def _only(found: set[bytes], text: str, *, what: str) -> bytes:
    if len(found) == 1:
        return next(iter(found))
    number = "nobody" if not found else f"more than one ({', '.join(sorted(key.hex()[:12] for key in found))})"
    raise NodeError(
        f"{number} {what} is called {text!r}",
        hint="Give more digits of the key; `fullrank members` lists them.",
        exit_code=ExitCode.USAGE,
    )


def _standing(key: bytes, members: Members) -> str:
    if key in members.members:
        return "active"
    if key in members.excluded:
        return "excluded"
    return "revoked" if key in members.revoked else "left"

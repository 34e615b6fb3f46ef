"""Members as people see them: names, and keys given by name or by their first digits."""

from typing import TYPE_CHECKING

from fullrank_node.api import control_pb2 as wire
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.names import name_of
from fullrank_protocol.membership import ROLE_CONTRIBUTE, Members

if TYPE_CHECKING:
    from fullrank_node.runner import Runner

MIN_DIGITS = 4
"""Fewer hex digits than this name too many keys."""


def name_of_member(key: bytes, members: Members | None) -> str:
    """The name that a member gave itself, or one made from its key."""
    found = members.find(key) if members is not None else None
    return found.name if found is not None and found.name else name_of(key)


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
    for row in runner.store.contributions(key, limit=10_000):
        if row.status == "accepted":
            line.accepted += 1
            if row.round is not None and not line.HasField("last_round"):
                line.last_round = row.round
        elif row.status == "refused":
            line.refused += 1
    return line


def resolve_key(text: str, members: Members) -> bytes:
    """The member or invite key meant by a name or by the first digits of a key.

    Raises:
        NodeError: Nobody, or more than one, is meant.
    """
    keys = {*members.members, *members.former, *(grant.invite_key for grant in members.grants.values())}
    wanted = text.strip().lower()
    found = {key for key in keys if name_of_member(key, members).lower() == wanted}
    if not found and len(wanted) >= MIN_DIGITS:
        found = {key for key in keys if key.hex().startswith(wanted)}
    if len(found) == 1:
        return found.pop()
    what = "nobody" if not found else f"{len(found)} keys"
    raise NodeError(
        f"{what} in this swarm is called {text!r}",
        hint="Give more digits of the key; `fullrank members` lists them.",
        exit_code=ExitCode.USAGE,
    )


def _standing(key: bytes, members: Members) -> str:
    if key in members.members:
        return "active"
    if key in members.excluded:
        return "excluded"
    return "revoked" if key in members.revoked else "left"

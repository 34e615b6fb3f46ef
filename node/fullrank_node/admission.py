"""How a node that holds an invite becomes a member, and what its owner is told while it is none (protocol section 4).

The admission is offered as soon as the invite's grant is known and until a checkpoint has carried it. Of several
that race for the last place of an invite, the chain decides; the others read here why they were left out.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fullrank_protocol.envelope import Envelope, decode_payload
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.membership import ROLE_CERTIFY, Members, grant_id, make_admission
from fullrank_protocol.wire import objects_pb2 as wire

if TYPE_CHECKING:
    from fullrank_node.runner import Runner

WARNING = "admission"
"""Under this name the runner's warnings say why the node is no member."""

_CURE = "ask a founder for a new invite (`fullrank invite`) and join with it into a new --home"


def offer_admission(runner: "Runner", *, invite_seed: bytes, certify: bool, name: str) -> None:
    """Offer our admission, unless we are or were a member already; where it has no chance, warn of why.

    Args:
        runner: Of this node.
        invite_seed: The secret in the link.
        certify: Whether the owner wants the certifier role.
        name: As the node calls itself.
    """
    head = runner.state.tree.head()
    members = head.members
    if members.find(runner.key.public_key) is not None:
        runner.warnings.pop(WARNING, None)
        return
    invite_key = SigningKey.from_seed(invite_seed).public_key
    grant = find_grant(invite_key, members, runner.state.records.values())
    if grant is None:
        runner.warnings[WARNING] = "waiting to see the invite's grant on the chain"
        return
    found_id, roles = grant
    if not certify:
        roles &= ~ROLE_CERTIFY
    envelope = make_admission(
        runner.key, swarm=runner.genesis.swarm, invite_seed=invite_seed, grant_id=found_id, roles=roles, name=name
    )
    slot = max(runner.genesis.slot_at(runner.clock.now_ms()), head.slot + 1)
    try:
        members.apply(envelope, slot=slot, genesis=runner.genesis)
    except RejectError as error:
        if error.rule is not Rule.MEMBERSHIP:  # That one is: the grant is not carried itself yet.
            reason = _reason(members, invite_key, error, ends_ms=runner.genesis.slot_end_ms(slot))
            runner.warnings[WARNING] = f"this node was not admitted: {reason}; {_CURE}"
            return
    runner.warnings.pop(WARNING, None)
    if envelope.id not in runner.state.records:
        runner.submit(envelope)


def find_grant(invite_key: bytes, members: Members, waiting: Iterable[Envelope]) -> tuple[bytes, int] | None:
    """Id and roles of an invite's grant: in force, or waiting to be carried."""
    grant = members.grant_of_invite(invite_key)
    if grant is not None:
        return grant.id, grant.roles
    for envelope in waiting:
        if envelope.type == wire.GRANT:
            message = decode_payload(envelope, wire.Grant)
            if message.invite_key == invite_key:
                return grant_id(envelope), message.roles
    return None


def _reason(members: Members, invite_key: bytes, error: RejectError, *, ends_ms: int) -> str:
    """The invite's fault in words, with a date that a person can read; else what the protocol says."""
    grant = members.grant_of_invite(invite_key)
    if grant is None:
        return error.detail
    if grant.revoked:
        return "the invite was revoked"
    if grant.used >= grant.count:
        return f"the invite is used up ({grant.used} of {grant.count} admitted)"
    if ends_ms > grant.not_after_ms:
        return f"the invite expired at {datetime.fromtimestamp(grant.not_after_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    return error.detail

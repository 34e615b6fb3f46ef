"""How a node that holds an invite becomes a member, and what its owner is told while it is none (protocol section 4).

The admission is offered as soon as the invite's grant is known and until a checkpoint has carried it. Of several
that race for the last place of an invite, the chain decides; the others read here why they were left out.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import RejectError
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.membership import ROLE_CERTIFY, Grant, Members, make_admission
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
    if head.members.find(runner.key.public_key) is not None:
        runner.warnings.pop(WARNING, None)
        return
    slot = max(runner.genesis.slot_at(runner.clock.now_ms()), head.slot + 1)
    grants = [record for record in runner.state.records.values() if record.type == wire.GRANT]
    members = _with_records(head.members, grants, slot=slot, genesis=runner.genesis)
    grant = members.grant_of_invite(SigningKey.from_seed(invite_seed).public_key)
    if grant is None:
        runner.warnings[WARNING] = "waiting to see the invite's grant on the chain"
        return
    roles = grant.roles if certify else grant.roles & ~ROLE_CERTIFY
    envelope = make_admission(
        runner.key, swarm=runner.genesis.swarm, invite_seed=invite_seed, grant_id=grant.id, roles=roles, name=name
    )
    try:
        members.apply(envelope, slot=slot, genesis=runner.genesis)
    except RejectError as error:
        reason = _reason(grant, error, ends_ms=runner.genesis.slot_end_ms(slot))
        runner.warnings[WARNING] = f"this node was not admitted: {reason}; {_CURE}"
        return
    runner.warnings.pop(WARNING, None)
    runner.submit(envelope)


def _with_records(members: Members, records: Iterable[Envelope], *, slot: int, genesis: Genesis) -> Members:
    """The membership as it will be when these records are carried, as far as they hold."""
    for record in records:
        try:
            members = members.apply(record, slot=slot, genesis=genesis)
        except RejectError:
            continue
    return members


def _reason(grant: Grant, error: RejectError, *, ends_ms: int) -> str:
    """The invite's fault in words, with a date that a person can read; else what the protocol says."""
    if grant.revoked:
        return "the invite was revoked"
    if grant.used >= grant.count:
        return f"the invite is used up ({grant.used} of {grant.count} admitted)"
    if ends_ms > grant.not_after_ms:
        return f"the invite expired at {datetime.fromtimestamp(grant.not_after_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    return error.detail

"""Strangers who come with invites that do not hold, or not for long: one kind for each way in which that can be.

Nobody runs a node for them. Where the rules are kept they stay outside, or come in as far as the invite goes.
"""

from typing import TYPE_CHECKING

from simulation.node import key_of

from fullrank_protocol.envelope import Envelope
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.membership import (
    ALL_ROLES,
    ROLE_CONTRIBUTE,
    grant_id,
    make_admission,
    make_grant,
    make_revocation,
)

if TYPE_CHECKING:
    from simulation.faults import Fault
    from simulation.world import World

KINDS = ("too late", "too many", "revoked invite", "more roles", "false secret", "back again")
"""What is wrong: the invite ends about then, admits one and two come, is revoked at that time, gives less than they
ask for, is one whose secret they do not have, or is good but the root has shut them out."""

LONG_MS = 10**9
"""Until then an invite holds that ends for other reasons."""


def invite(world: "World", fault: "Fault") -> None:
    """The root invites, and who is to come back comes for the first time."""
    _hand_in(world, _grant(world, fault))
    if fault.kind == "back again":
        _hand_in(world, _admission(world, fault))


def come(world: "World", fault: "Fault") -> None:
    """They come, and what makes their invite bad happens at the same moment."""
    root, swarm, now_ms = world.nodes[0].key, world.genesis.swarm, world.now_ms
    if fault.kind in ("revoked invite", "back again"):
        subject = _invite_key(fault) if fault.kind == "revoked invite" else key_of(fault.node)
        _hand_in(world, make_revocation(root, swarm=swarm, subject=subject.public_key, issued_at_ms=now_ms))
    _hand_in(world, _admission(world, fault, name="again"), turn=1)
    if fault.kind == "too many":
        _hand_in(world, _admission(world, fault, stranger=fault.node + 1_000), turn=2)


def _invite_key(fault: "Fault") -> SigningKey:
    return key_of(20_000 + fault.node)


def _grant(world: "World", fault: "Fault") -> Envelope:
    until_ms = fault.end_ms + world.genesis.timing.slot_window_ms // 2 if fault.kind == "too late" else LONG_MS
    return make_grant(
        world.nodes[0].key,
        swarm=world.genesis.swarm,
        invite_key=_invite_key(fault).public_key,
        roles=ROLE_CONTRIBUTE,
        count=2 if fault.kind == "back again" else 1,
        not_after_ms=world.genesis.created_at_ms + until_ms,
    )


def _admission(world: "World", fault: "Fault", *, stranger: int | None = None, name: str = "") -> Envelope:
    secret = key_of(0) if fault.kind == "false secret" else _invite_key(fault)
    return make_admission(
        key_of(fault.node if stranger is None else stranger),
        swarm=world.genesis.swarm,
        invite_seed=secret.seed,
        grant_id=grant_id(_grant(world, fault)),
        roles=ALL_ROLES if fault.kind == "more roles" else ROLE_CONTRIBUTE,
        name=name,
    )


def _hand_in(world: "World", envelope: Envelope, *, turn: int = 0) -> None:
    """To some honest node that is up: another one for another turn, where there are as many."""
    nodes = [node for node in world.honest() if node.is_up]
    if nodes:
        nodes[turn % len(nodes)].receive(envelope)

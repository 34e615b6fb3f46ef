"""Retiring certifiers that are gone for good, and cutting off all whom an invite admitted (protocol sections 4 and 8).

Both need the root. In a stall, retirements take effect at once and together; at other times the certifiers change by
one, and again when that is final. Either way the records are signed here all at the same time: the round machine
carries each as soon as the rules allow.
"""

from typing import TYPE_CHECKING

from fullrank_node.api import control_pb2 as wire
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.finality_reply import certifier_lines, open_slot
from fullrank_node.people import name_of_member, resolve_certifier, resolve_key
from fullrank_node.root_actions import (
    RootAction,
    members_to_be,
    missing_signatures,
    newer_than_all,
    require_root,
    sign_or_join,
)
from fullrank_node.standing import listed, waits_since
from fullrank_protocol.chain import is_stalled
from fullrank_protocol.membership import Members, make_retirement, make_revocation
from fullrank_protocol.wire import objects_pb2

if TYPE_CHECKING:
    from fullrank_node.runner import Runner

LATE_SLOTS = 4
"""Slots that something may wait for finality in normal running: votes are a slot late, and a slot may be lost."""


# ---- retire --------------------------------------------------------------------------------------------


def retire(runner: "Runner", request: wire.RetireRequest) -> wire.RetireReply:
    """Sign the retirement of certifiers, or tell what it would do.

    Raises:
        NodeError: No root key is here, a name means nobody or somebody else, or nobody would be left.
    """
    require_root(runner)
    members = runner.state.tree.head().members
    keys = list(dict.fromkeys(resolve_certifier(subject, members) for subject in request.subjects))
    if not keys:
        raise NodeError("nobody is named", hint="Use `fullrank retire NAME...`.", exit_code=ExitCode.USAGE)
    stay = _lasting(runner) - set(keys)
    if not stay:
        raise NodeError(
            f"no certifier would be left without {listed([name_of_member(key, members) for key in keys])}",
            hint="Leave one that works; `fullrank members` lists them.",
        )
    if not request.preview:
        for key in keys:
            sign_retirement(runner, key)
    reply = wire.RetireReply(
        retired=certifier_lines(runner, keys),
        remaining=sorted(name_of_member(key, members) for key in stay),
        signatures_needed=runner.genesis.membership.root_threshold,
        peers_connected=len(runner.network.peers()) if runner.network is not None else 0,
    )
    _add_effect(reply, runner)
    if not request.preview:
        handles = " ".join(line.handle for line in reply.retired)
        fewest = min(line.retirement_signatures for line in reply.retired)
        reply.note = missing_signatures(fewest, reply.signatures_needed, command=f"fullrank retire {handles}")
    return reply


def sign_retirement(runner: "Runner", key: bytes, *, after_ms: int = 0) -> RootAction:
    """Sign one retirement, or join the one that another root key has signed.

    Args:
        runner: Of this node, whose key is a root key.
        key: The certifier.
        after_ms: A new one is issued later than that.
    """
    return sign_or_join(
        runner,
        objects_pb2.RETIREMENT,
        about=key,
        says=lambda message: message.certifier == key,
        make=lambda: make_retirement(
            runner.key,
            swarm=runner.genesis.swarm,
            certifier=key,
            issued_at_ms=max(newer_than_all(runner, key), after_ms + 1),
        ),
    )


def _lasting(runner: "Runner") -> frozenset[bytes]:
    """Certifiers whom nothing that waits to be carried removes; who only asks to be one does not count yet."""
    return runner.state.tree.head().members.certifiers & members_to_be(runner).certifiers


def _add_effect(reply: wire.RetireReply, runner: "Runner") -> None:
    """Whether they stop counting at once, because the chain is stalled, or when it will be."""
    genesis, head = runner.genesis, runner.state.tree.head()
    slot = max(open_slot(runner), head.slot + 1)
    waiting = waits_since(runner.state.tree)
    if is_stalled(head, slot=slot, genesis=genesis):
        reply.stalled = True
    elif waiting is not None and slot - waiting.slot >= LATE_SLOTS:
        reply.stalls_in_slots = head.final.slot + genesis.timing.stall_slots - slot
        reply.stalls_in_ms = reply.stalls_in_slots * genesis.timing.slot_window_ms


# ---- revoke --------------------------------------------------------------------------------------------


def revoke(runner: "Runner", request: wire.RevokeRequest) -> wire.RevokeReply:
    """Take a member's or an invite's rights away, with `whole_tree` those of all whom the invite admitted.

    The certifiers among those stay certifiers until they are retired: their retirements are signed with it.

    Raises:
        NodeError: No root key is here, nobody is meant, or the swarm would refuse it.
    """
    require_root(runner)
    members = runner.state.tree.head().members
    subject = resolve_key(request.subject, members)
    tree = _tree_of(subject, members) if request.whole_tree else []
    retiring = [key for key in members.certifiers if request.whole_tree and _came_by(key, subject, members)]
    retiring.sort(key=lambda key: (name_of_member(key, members), key))
    stays = retiring[0] if retiring and not _lasting(runner) - set(retiring) else None
    retiring = [key for key in retiring if key != stays]
    reply = wire.RevokeReply(
        subject=subject,
        admitted=[name_of_member(key, members) for key in tree],
        retiring=[name_of_member(key, members) for key in retiring],
    )
    if request.preview:
        return reply
    action = sign_or_join(
        runner,
        objects_pb2.REVOCATION,
        about=subject,
        says=lambda message: (message.subject, message.whole_tree) == (subject, request.whole_tree),
        make=lambda: make_revocation(
            runner.key,
            swarm=runner.genesis.swarm,
            subject=subject,
            whole_tree=request.whole_tree,
            issued_at_ms=newer_than_all(runner, subject),
        ),
    )
    for key in retiring:
        sign_retirement(runner, key, after_ms=action.message.issued_at_ms)
    command = f"fullrank revoke {request.subject}{' --whole-tree' if request.whole_tree else ''}"
    needed = runner.genesis.membership.root_threshold
    notes = [
        missing_signatures(len(action.signers), needed, command=command) or "It takes effect with the next checkpoint."
    ]
    if retiring:
        notes.append(f"Retiring with it: {', '.join(reply.retiring)}; one after another, in a stall together.")
    if stays is not None:
        name = name_of_member(stays, members)
        notes.append(f"{name} stays a certifier, because no other is left: retire it when there is one.")
    reply.note = " ".join(notes)
    return reply


def _tree_of(invite: bytes, members: Members) -> list[bytes]:
    """Members that an invite has admitted, by name."""
    if members.grant_of_invite(invite) is None:
        raise NodeError(
            f"{name_of_member(invite, members)} is no invite: it has no tree",
            hint="`fullrank members` lists the invites by the first digits of their keys.",
            exit_code=ExitCode.USAGE,
        )
    admitted = [key for key in members.members if _came_by(key, invite, members)]
    return sorted(admitted, key=lambda key: (name_of_member(key, members), key))


def _came_by(key: bytes, invite: bytes, members: Members) -> bool:
    member, grant = members.find(key), members.grant_of_invite(invite)
    return member is not None and grant is not None and member.grant_id == grant.id

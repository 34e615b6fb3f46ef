"""What `status` says of finality: who is missing, what stands in a stall, and what to do about either (section 8)."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fullrank_node.api import control_pb2 as wire
from fullrank_node.finality_watch import silent_certifiers
from fullrank_node.people import handles_of, name_of_member, note_last_vote
from fullrank_node.root_actions import pending_actions
from fullrank_node.standing import choice_in_effect, short_id, stall_of
from fullrank_protocol.chain import ChainState, Mark
from fullrank_protocol.wire import objects_pb2

if TYPE_CHECKING:
    from fullrank_node.runner import Runner


def checkpoint_line(state: ChainState, runner: "Runner") -> wire.CheckpointLine:
    """A checkpoint with the digest of its model."""
    digest = state.model_digest or runner.state.base_digest
    return wire.CheckpointLine(id=state.id, slot=state.slot, round=state.round, digest=digest)


def open_slot(runner: "Runner") -> int:
    """The slot that is open by this node's clock."""
    return max(runner.genesis.slot_at(runner.clock.now_ms()), 0)


def finality_reply(runner: "Runner") -> wire.Finality:
    """Votes for the newest checkpoint, and whose votes are missing where finality lags."""
    tree = runner.state.tree
    head = tree.head()
    counted = head.newest_set | head.second_set
    finality = wire.Finality(
        votes=len(counted) - len(tree.missing_voters(head.id)), needed=2 * len(head.newest_set) // 3 + 1
    )
    if tree.is_final(head):
        return finality
    missing = sorted(name_of_member(key, head.members) for key in silent_certifiers(tree, head))
    finality.waiting_for.extend(missing)
    if missing:
        finality.reason = f"waiting for certifiers: {', '.join(missing)}"
    else:
        finality.reason = "waiting for the next slot's checkpoint"
    return finality


# ---- stalls --------------------------------------------------------------------------------------------


def stall_reply(runner: "Runner") -> wire.Stall | None:
    """Since when finality is missing, who is there, and how to go on; None where it is not missing for long."""
    tree = runner.state.tree
    stall = stall_of(tree, slot=open_slot(runner))
    if stall is None:
        return None
    reply = wire.Stall(
        since_slot=tree.final.slot,
        since_ms=runner.genesis.slot_end_ms(tree.final.slot),
        present=_by_name(runner, stall.present),
        missing=_by_name(runner, stall.missing),
    )
    if stall.at is not None:
        reply.provisional.CopyFrom(checkpoint_line(tree.state(stall.at.checkpoint), runner))
    reply.advice = _stall_advice(runner, reply)
    return reply


def certifier_lines(runner: "Runner", keys: Iterable[bytes], *, since_slot: int = 0) -> list[wire.CertifierLine]:
    """Certifiers with when they were last heard, and how far their retirement is, in the order of the keys.

    Args:
        runner: Of this node.
        keys: The certifiers.
        since_slot: What root keys signed, and a checkpoint up to this slot carried, is not looked for.
    """
    assert runner.network is not None
    tree, keys = runner.state.tree, list(keys)
    members = tree.head().members
    handles = handles_of(keys, members)
    connected = {info.key for info in runner.network.peers()}
    retirements = pending_actions(runner, objects_pb2.RETIREMENT, since_slot=since_slot)
    lines = []
    for key in keys:
        line = wire.CertifierLine(
            key=key, name=name_of_member(key, members), handle=handles[key], connected=key in connected
        )
        note_last_vote(line, key, tree)
        for action in retirements:
            if action.message.certifier == key and len(action.signers) > line.retirement_signatures:
                line.retirement_signatures = len(action.signers)
                line.retirement_issued_ms = action.message.issued_at_ms
        lines.append(line)
    return lines


def _by_name(runner: "Runner", keys: Iterable[bytes]) -> list[wire.CertifierLine]:
    lines = certifier_lines(runner, keys, since_slot=runner.state.tree.final.slot)
    return sorted(lines, key=lambda line: (line.name, line.key))


def _stall_advice(runner: "Runner", stall: wire.Stall) -> str:
    """What brings finality back, for whoever reads this node's status."""
    certifiers, policy = runner.state.tree.head().members.certifiers, runner.genesis.membership
    missing = [line for line in stall.missing if line.key in certifiers]
    gone = [line.handle for line in missing if line.retirement_signatures < policy.root_threshold]
    if not missing:
        return "all certifiers that count are there: finality comes with the next slots"
    if not gone:
        return "their retirement is signed: finality comes with the next slots"
    assert runner.network is not None
    if not runner.network.peers():
        return "this node is connected to nobody: it may be the one that is cut off, and the others may be well"
    if not stall.present:
        return "no certifier is there: they come back, or this node does not hear of them"
    command = f"`fullrank retire {' '.join(gone)}`"
    if runner.key.public_key in policy.root_keys:
        return f"they come back; or, when you are sure that they are gone for good, {command}"
    return f"they come back; or the founder, when sure that they are gone for good, retires them with {command}"


# ---- conflicts -----------------------------------------------------------------------------------------


def conflict_reply(runner: "Runner") -> wire.Conflict | None:
    """Two conflicting final checkpoints, who stands behind each, and what to do; None where there are none."""
    tree = runner.state.tree
    if tree.conflict is None:
        return None
    ours, theirs = tree.conflict
    reply = wire.Conflict(ours=_conflict_line(runner, ours), theirs=_conflict_line(runner, theirs))
    chosen = choice_in_effect(tree)
    if chosen is not None:
        reply.chosen.CopyFrom(checkpoint_line(tree.state(chosen.checkpoint), runner))
    reply.advice = _conflict_advice(runner, reply)
    return reply


def _conflict_line(runner: "Runner", mark: Mark) -> wire.ConflictLine:
    node = runner.state.tree.nodes[mark.checkpoint]
    names = sorted(name_of_member(key, node.state.members) for key in node.voters)
    return wire.ConflictLine(checkpoint=checkpoint_line(node.state, runner), voters=names)


def _conflict_advice(runner: "Runner", conflict: wire.Conflict) -> str:
    if conflict.chosen.id:
        return f"the founder has chosen the other history: `fullrank adopt {short_id(conflict.chosen.id)}` follows it"
    ours, theirs = short_id(conflict.ours.checkpoint.id), short_id(conflict.theirs.checkpoint.id)
    if runner.key.public_key in runner.genesis.membership.root_keys:
        return f"choose which one the swarm keeps: `fullrank adopt {ours}` or `fullrank adopt {theirs}`"
    return f"tell the founder, who chooses between {ours} and {theirs} with `fullrank adopt`; nothing is lost meanwhile"

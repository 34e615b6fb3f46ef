"""One look at a running node: what it is doing and why (`status`)."""

import os
import shutil
from importlib.metadata import version
from typing import TYPE_CHECKING

import psutil

from fullrank_node.api import control_pb2 as wire
from fullrank_node.finality_reply import checkpoint_line, conflict_reply, finality_reply, stall_reply
from fullrank_node.keeping import disk_limit_bytes
from fullrank_node.model.rank_estimate import sample_of
from fullrank_node.node_keys import BASE_LOSS_KEY
from fullrank_node.people import name_of_member
from fullrank_protocol.chain import is_ancestor
from fullrank_protocol.identity import peer_id
from fullrank_protocol.limits import PROTOCOL_VERSION
from fullrank_protocol.round_state import FUTURE

if TYPE_CHECKING:
    from fullrank_node.node import Node
    from fullrank_node.runner import Runner

SOFTWARE = f"fullrank {version('fullrank')}"

NEWEST_ROUNDS = 50
"""Rounds among which the newest measured one is looked for; a figure older than that says little of the head."""


def status_reply(node: "Node") -> wire.StatusReply:
    """The state of a node now; reads memory, one directory size and a few counters."""
    genesis, now_ms = node.genesis, node.clock.now_ms()
    runner = node.runner
    slot = max(genesis.slot_at(now_ms), 0)
    peers = node.network.peers()
    members = runner.state.tree.head().members if runner is not None else None
    reply = wire.StatusReply(
        node_name=node.config.node.name or name_of_member(node.key.public_key, members),
        member_key=node.key.public_key,
        peer_id=peer_id(node.key.public_key),
        software=SOFTWARE,
        protocol_version=PROTOCOL_VERSION,
        swarm=genesis.swarm,
        swarm_name=genesis.name,
        base=genesis.base.reference or "local directory",
        slot=slot,
        slot_ends_in_ms=max(genesis.slot_end_ms(slot) - now_ms, 0),
        slot_window_ms=genesis.timing.slot_window_ms,
        peers_connected=len(peers),
        peers_known=len(peers) + len(node.network.connection_errors()),
        reachability="outbound only" if node.config.network.no_listen else "listening",
        addresses=node.network.addresses(),
        disk_used_bytes=node.store.blobs.total_bytes(),
        disk_limit_bytes=disk_limit_bytes(node.config) or 0,
        archive=node.config.archive,
        disk_free_bytes=shutil.disk_usage(node.home.path).free,
        now_ms=now_ms,
        uptime_ms=now_ms - node.started_at_ms,
        training=_training(node, now_ms),
        device=wire.ComputeDevice(
            name=node.trainer.device_name,
            memory_total_bytes=node.trainer.device_memory_bytes,
            threads=node.trainer.threads,
        ),
        processes=wire.Processes(
            daemon=os.getpid(),
            trainer=node.trainer.pid or 0,
            worker=node.worker.pid or 0,
            p2pd=node.network.process_id or 0,
            daemon_resident_bytes=psutil.Process().memory_info().rss,
        ),
    )
    traffic = node.network.traffic()
    reply.bytes_up, reply.bytes_down = traffic.bytes_up, traffic.bytes_down
    for address, detail in node.network.connection_errors().items():
        reply.connection_failures.add(address=address, detail=detail)
    if runner is not None:
        _add_chain(reply, runner)
        _add_own(reply, runner)
        reply.warnings.extend(runner.warnings.values())
        if FUTURE in runner.state.parked:
            reply.warnings.append("checkpoints arrive from the future: this machine's clock is behind the swarm's")
    if node.trouble is not None:
        reply.warnings.append(node.trouble)
    reply.state, reply.reason = _state(node, reply)
    return reply


def _training(node: "Node", now_ms: int) -> wire.TrainingProgress:
    now = node.trainer.now
    busy_ms = now.busy_ms + (now_ms - now.started_at_ms if now.started_at_ms is not None else 0)
    progress = wire.TrainingProgress(
        step=now.step,
        of=now.of,
        ends_in_ms=max(now.deadline_ms - now_ms, 0),
        num_tokens=now.num_tokens,
        tokens_per_second=now.tokens_per_second,
        share_of_time=busy_ms / max(now_ms - node.started_at_ms, 1),
    )
    if now.loss_last is not None and now.loss_first is not None:
        progress.loss_first, progress.loss_last = now.loss_first, now.loss_last
    return progress


def _add_chain(reply: wire.StatusReply, runner: "Runner") -> None:
    tree = runner.state.tree
    head = tree.head()
    reply.round = head.round
    reply.head.CopyFrom(checkpoint_line(head, runner))
    reply.justified.CopyFrom(checkpoint_line(tree.highest_justified(), runner))
    reply.final.CopyFrom(checkpoint_line(tree.state(tree.final.checkpoint), runner))
    members = head.members
    reply.members, reply.certifiers = len(members.members), len(members.certifiers)
    reply.member = members.is_member(runner.key.public_key)
    reply.certifier = runner.key.public_key in members.certifiers
    reply.finality.CopyFrom(finality_reply(runner))
    if (stall := stall_reply(runner)) is not None:
        reply.finality.provisional = stall.HasField("provisional")
        reply.stall.CopyFrom(stall)
    if (conflict := conflict_reply(runner)) is not None:
        reply.conflict.CopyFrom(conflict)
    losses = [row for row in runner.store.rounds(NEWEST_ROUNDS) if row.heldout_loss is not None]
    base_loss = runner.store.get_meta(BASE_LOSS_KEY)
    if base_loss is not None:
        reply.held_out_loss_base = float(base_loss)
    if losses and losses[-1].heldout_loss is not None:
        reply.held_out_loss_now, reply.held_out_loss_round = losses[-1].heldout_loss, losses[-1].round
    if (rank := rank_reply(runner)) is not None:
        reply.rank.CopyFrom(rank)


def rank_reply(runner: "Runner") -> wire.AccumulatedRank | None:
    """The newest rank that was measured of a round on the head's chain; None without one."""
    tree, sample = runner.state.tree, sample_of(runner.genesis.modules)
    for row in reversed(runner.store.rounds(NEWEST_ROUNDS)):
        node = tree.nodes.get(row.checkpoint)
        if row.effective_rank is None or node is None or not sample.matrices:
            continue
        if not is_ancestor(node.state.here, tree.head(), lookup=tree.lookup):
            continue
        return wire.AccumulatedRank(
            effective=row.effective_rank,
            of=round(sample.full),
            round=row.round,
            sampled=len(sample.matrices),
            matrices=sample.num_matrices,
            relative_error=sample.relative_error,
        )
    return None


def _add_own(reply: wire.StatusReply, runner: "Runner") -> None:
    mine = reply.mine
    for row in runner.store.contributions(runner.key.public_key, limit=10_000):
        if row.status == "refused" and not mine.last_refusal:
            mine.last_refusal = row.detail
        field = {"accepted": "accepted", "refused": "refused", "late": "late"}.get(row.status, "pending")
        setattr(mine, field, getattr(mine, field) + 1)


def _state(node: "Node", reply: wire.StatusReply) -> tuple["wire.NodeState", str]:
    """The state in one word, and its reason: the first line that holds."""
    runner = node.runner
    if runner is None or node.stop.is_set():
        if node.stop.is_set():
            return wire.NODE_STOPPING, ""
        return (wire.NODE_TROUBLED, node.trouble) if node.trouble is not None else (wire.NODE_STARTING, node.phase)
    total = node.genesis.training.total_rounds
    alone = not reply.peers_connected and reply.certifiers > 1
    wants_data = node.config.train.enabled and node.config.data.path is not None
    states: list[tuple[bool, wire.NodeState, str]] = [
        (node.trouble is not None, wire.NODE_TROUBLED, node.trouble or ""),
        (runner.state.alarmed, wire.NODE_TROUBLED, runner.warnings.get("conflict", "")),
        (node.finishing, wire.NODE_FINISHING, "after the delta in the making"),
        (alone, wire.NODE_NO_PEERS, "no peer is connected; trying again and again"),
        (not reply.member and "admission" in runner.warnings, wire.NODE_WAITING, _no_member(runner)),
        (wants_data and not node.trainer.data_summary, wire.NODE_STARTING, "preparing the data"),
        (node.pause_reason is not None, wire.NODE_PAUSED, node.pause_reason or ""),
        (runner.is_training, wire.NODE_TRAINING, ""),
        (bool(runner.state.unverified), wire.NODE_SYNCING, _syncing(runner)),
        (not reply.member, wire.NODE_WAITING, _no_member(runner)),
        (bool(total) and reply.round >= total, wire.NODE_WAITING, f"all {total} rounds are done"),
    ]
    found = next((line for line in states if line[0]), (True, wire.NODE_WAITING, "for the next round"))
    return found[1], found[2]


def _no_member(runner: "Runner") -> str:
    """Why this node is no member: not yet, or not any more."""
    key, members = runner.key.public_key, runner.state.tree.head().members
    if members.is_banned(key) or key in members.former:
        return f"this member {members.why_shut_out(key)}; the node serves and reads"
    return runner.warnings.get("admission", "to be admitted")


def _syncing(runner: "Runner") -> str:
    sought = runner.state.arrival.sought
    if sought is None:
        return f"{len(runner.state.unverified)} checkpoints to recompute"
    num_bytes, _ = runner.snapshots.progress()
    done = sought.blob.num_bytes if runner.store.blobs.has(sought.blob.id) else num_bytes
    return f"arriving by a snapshot of slot {sought.slot}: {100 * done // sought.blob.num_bytes} % of it is here"

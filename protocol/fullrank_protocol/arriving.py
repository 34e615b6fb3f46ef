"""Arriving late: by replay, or by a snapshot where that is fewer bytes (protocol section 12).

A node that is behind first takes in the checkpoints, then compares. While a snapshot is being fetched, the
deltas below it wait. A snapshot that holds makes its checkpoint and all before it verified and final.
"""

import math
from collections.abc import Iterator

from fullrank_protocol.checkpoint import contributions
from fullrank_protocol.duties import forget_old
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.fork_choice import Node
from fullrank_protocol.round_io import Action, Drop, FetchSnapshot, SnapshotRefused, Verified
from fullrank_protocol.round_state import DeltaStatus, RoundState, note_if_beside
from fullrank_protocol.snapshot import Offer, Snapshot, fewest_bytes
from fullrank_protocol.verifying import merge_key

CATCH_UP_MS = 60_000
"""Old deltas wait at most this long while a neighbour tells what it has; ten thousand checkpoints take seconds."""

CATCH_UP_AGAIN_MS = 600_000
"""Time between two such waits: a neighbour that only claims to be ahead costs a tenth of the time at most."""

LOOK_AGAIN_MS = 1_000
"""Time between two comparisons of the ways."""

SET_ASIDE_MS = 60_000
"""A snapshot that was not to be had is tried again after this; the replay goes on meanwhile."""

MAX_MISSES = 3
"""A delta that was not to be had this often makes a replay impossible, as far as this node can tell."""


def catching_up(state: RoundState, now_ms: int) -> None:
    """A neighbour far ahead begins to tell what it has."""
    arrival = state.arrival
    if now_ms >= arrival.hold_again_ms:
        arrival.hold_until_ms = now_ms + CATCH_UP_MS
        arrival.hold_again_ms = now_ms + CATCH_UP_AGAIN_MS


def seek_snapshot(state: RoundState, now_ms: int) -> Iterator[Action]:
    """Go for a snapshot where that is the way with the fewest bytes."""
    arrival = state.arrival
    if arrival.sought is not None or now_ms < max(arrival.hold_until_ms, arrival.look_at_ms):
        return
    usable = _usable(state, now_ms)
    if not usable:
        return
    arrival.look_at_ms = now_ms + LOOK_AGAIN_MS
    tree = state.tree
    nodes = tree.chain(tree.voted_final.checkpoint, above_slot=tree.final.slot)
    open_nodes = [node for node in nodes if node.verdict is None]
    missing = [(node.state.slot, _missing_bytes(state, node)) for node in open_nodes]
    offers = {Offer(slot=each.slot, num_bytes=_bytes_of(state, each)): each for each in usable}
    best = fewest_bytes(missing, list(offers), last_resort=arrival.prefers_replay)
    if best is None:
        return
    snapshot = arrival.sought = offers[best]
    below = [node for node in open_nodes if node.state.slot <= best.slot]
    deltas = [contribution.id for node in below if node.checkpoint for contribution in contributions(node.checkpoint)]
    arrival.held = frozenset([*(node.state.id for node in below), *deltas])
    yield FetchSnapshot(
        snapshot=snapshot,
        round=tree.state(snapshot.checkpoint).round,
        model_digest=tree.state(snapshot.checkpoint).model_digest,
        num_deltas=len(deltas),
        num_bytes=sum(num_bytes for slot, num_bytes in missing if slot <= best.slot),
    )


def snapshot_applied(state: RoundState, checkpoint: bytes) -> Iterator[Action]:
    """Its weights are here: the checkpoint holds, and all before it."""
    sought = state.arrival.sought
    if sought is None or sought.checkpoint != checkpoint:
        return
    _stop_seeking(state)
    node = state.tree.nodes[checkpoint]
    if node.verdict is None and node.checkpoint is not None and state.tree.is_voted_final(node.state):
        believe(state, checkpoint)
        forget_old(state)  # Before anybody looks for deltas that are not held back any more.
        yield Verified(checkpoint=checkpoint, holds=True, key=merge_key(node.checkpoint), believed=True)


def believe(state: RoundState, checkpoint: bytes) -> None:
    """Take a checkpoint and all before it as verified, as a snapshot has shown or had shown before a restart."""
    tree, arrival = state.tree, state.arrival
    if checkpoint not in tree.nodes:
        return
    opened = tree.believe(checkpoint)
    if not opened:
        return
    arrival.believed = tree.state(checkpoint).here
    for ancestor in opened:
        state.unverified.pop(ancestor, None)
    for others in (state.left_behind, state.unverified):
        for other in list(others):  # In order of arrival: parents first.
            if note_if_beside(state, tree.state(other)):
                del others[other]


def snapshot_refused(state: RoundState, event: SnapshotRefused) -> Iterator[Action]:
    """It was not what its author said: nothing more of this author, and the next best way."""
    sought = state.arrival.sought
    if sought is not None and sought.id == event.snapshot_id:
        _stop_seeking(state)
        distrust(state, sought.envelope)
        yield Drop(envelope=sought.envelope, rule=event.rule, detail=event.detail)


def distrust(state: RoundState, envelope: Envelope) -> None:
    """Heed no more snapshots of the author of this one."""
    arrival = state.arrival
    arrival.distrusted.add(envelope.public_key)
    arrival.snapshots.pop(envelope.public_key, None)
    arrival.begun = {key: each for key, each in arrival.begun.items() if each.author != envelope.public_key}


def snapshot_unavailable(state: RoundState, snapshot_id: bytes, now_ms: int) -> None:
    """Nobody gave it, or this machine could not use it now."""
    sought = state.arrival.sought
    if sought is not None and sought.id == snapshot_id:
        _stop_seeking(state)
        state.arrival.set_aside[snapshot_id] = now_ms + SET_ASIDE_MS


def _stop_seeking(state: RoundState) -> None:
    state.arrival.sought = None
    state.arrival.held = frozenset()
    state.arrival.look_at_ms = 0


def _usable(state: RoundState, now_ms: int) -> list[Snapshot]:
    """Snapshots of checkpoints that are final by votes and not verified here; the best of several last."""
    arrival, tree = state.arrival, state.tree
    if arrival.pinned is not None:
        pinned = tree.lookup(arrival.pinned)
        if pinned is None or not tree.is_voted_final(pinned):
            return []
    found = []
    for snapshot in (*arrival.snapshots.values(), *arrival.begun.values()):
        node = tree.nodes[snapshot.checkpoint]
        if node.verdict is not None or arrival.set_aside.get(snapshot.id, 0) > now_ms:
            continue
        if arrival.highest_round is not None and node.state.round > arrival.highest_round:
            continue
        if tree.is_voted_final(node.state):
            found.append(snapshot)
    return sorted(found, key=lambda snapshot: snapshot.author)


def _bytes_of(state: RoundState, snapshot: Snapshot) -> int:
    blob, arrival = snapshot.blob, state.arrival
    return 0 if blob.id in arrival.blobs_here else blob.num_bytes - arrival.partly_here.get(blob.id, 0)


def _missing_bytes(state: RoundState, node: Node) -> float:
    """Bytes to fetch before a checkpoint can be recomputed; infinite where a delta is not to be had."""
    assert node.checkpoint is not None
    total = 0.0
    for contribution in contributions(node.checkpoint):
        candidate = state.candidates[contribution.id]
        if candidate.status in (DeltaStatus.READY, DeltaStatus.REFUSED):
            continue
        if contribution.blob.id not in state.arrival.blobs_here:
            total += math.inf if candidate.num_misses >= MAX_MISSES else contribution.blob.num_bytes
    return total

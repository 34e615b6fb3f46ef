"""The round machine: every slot as a node lives it (protocol section 5).

`step(state, event, now_ms)` returns the state and the actions to carry out. It reads no clock,
no network and no disk; the daemon, the simulator and the tests run this very function.

Handlers take in what an event says. Then the duties look at the whole state and emit whatever is
due and not yet under way, so nothing depends on the order of events, and a node that restarts
with the objects from its store goes on where it was.

```
object ──> parked ──(what it refers to arrives)──┐
   └─────> tree / candidates / records / votes <─┘
contribution:  WAITING ─> CHECKING ─> READY | REFUSED | UNAVAILABLE ─(later)─> CHECKING
checkpoint:    placed ─> deltas checked ─> merged here ─> holds | refused ─> descendants too
               below what is final: left behind; below a snapshot: beside (all in `transitions`)
own duty:      adopt head ─> vote ─> finalise ─> propose at our turn ─> train
```
"""

import math
from collections.abc import Iterable, Iterator

from fullrank_protocol.arriving import (
    believe,
    catching_up,
    distrust,
    seek_snapshot,
    snapshot_applied,
    snapshot_refused,
    snapshot_unavailable,
)
from fullrank_protocol.duties import (
    MIN_TRAINING_SHARE,
    adopt_choice,
    adopt_head,
    finalise,
    forget_old,
    propose,
    remind,
    take_up,
    train,
    vote,
)
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.intake import ask, receive, release
from fullrank_protocol.left_behind import is_open, leave_behind
from fullrank_protocol.local_clock import follow_clock
from fullrank_protocol.round_io import (
    Action,
    CatchingUp,
    ChoiceAdopted,
    DeltaChecked,
    DeltaUnavailable,
    Event,
    Merged,
    MergeFailed,
    ObjectReceived,
    SnapshotApplied,
    SnapshotRefused,
    SnapshotUnavailable,
    Synced,
    Tick,
    TrainingAllowed,
    TrainingEnded,
)
from fullrank_protocol.round_state import (
    ASK_AGAIN_MS,
    FUTURE,
    MAX_CACHED_MERGES,
    DeltaStatus,
    RoundState,
    candidate_being_checked,
    is_held,
)
from fullrank_protocol.verifying import check_deltas, merge_failed, verify_checkpoints


def step(state: RoundState, event: Event, now_ms: int) -> tuple[RoundState, list[Action]]:
    """Take in one event, then do what is due.

    Args:
        state: Changed in place and returned; the caller must not use it elsewhere.
        event: What happened.
        now_ms: This node's clock, milliseconds since the Unix epoch; may be off.
    """
    return step_all(state, [event], now_ms)


def step_all(state: RoundState, events: Iterable[Event], now_ms: int) -> tuple[RoundState, list[Action]]:
    """Take in several events that are here at the same time, then do what is due once."""
    follow_clock(state, now_ms)
    actions = [action for event in events for action in _handle(state, event, now_ms)]
    actions.extend(_duties(state, now_ms))
    return state, actions


def restore(
    state: RoundState,
    envelopes: Iterator[Envelope],
    verdicts: dict[bytes, bool],
    now_ms: int,
    *,
    believed: frozenset[bytes] = frozenset(),
    adopted: bytes | None = None,
) -> RoundState:
    """Take in the objects of the store, and what had been recomputed, without acting on them.

    Args:
        state: Of a node that knows nothing yet.
        envelopes: In the order of arrival.
        verdicts: Checkpoints that were recomputed, and whether they held; snapshots that did not hold.
        now_ms: This node's clock.
        believed: Checkpoints that were taken by a snapshot.
        adopted: The root's choice that the owner adopted.
    """
    state.now_ms = now_ms
    state.adopting = adopted
    state.is_restoring = True
    for envelope in envelopes:
        for _ in receive(state, envelope, now_ms):
            pass
        if envelope.id in believed:
            believe(state, envelope.id)
        elif (verdict := verdicts.get(envelope.id)) is not None and is_open(state, envelope.id):
            state.tree.set_verdict(envelope.id, holds=verdict)
            state.unverified.pop(envelope.id, None)
            state.left_behind.pop(envelope.id, None)
        elif verdict is False:
            distrust(state, envelope)
    state.is_restoring = False
    adopt_choice(state)
    state.adopted = state.tree.head().here
    state.finalised = state.tree.final
    leave_behind(state, state.tree.root.here)
    forget_old(state)
    return state


def _handle(state: RoundState, event: Event, now_ms: int) -> Iterator[Action]:  # noqa: C901, PLR0912 - one flat table
    match event:
        case Tick():
            if now_ms >= state.future_due_ms:
                state.future_due_ms = math.inf
                yield from release(state, FUTURE, now_ms)
        case ObjectReceived(envelope=envelope):
            yield from receive(state, envelope, now_ms)
        case DeltaChecked():
            if (candidate := candidate_being_checked(state, event.contribution_id)) is not None:
                candidate.status = DeltaStatus.READY if event.rule is None else DeltaStatus.REFUSED
                candidate.rule, candidate.detail = event.rule, event.detail
        case DeltaUnavailable(contribution_id=contribution_id):
            if (candidate := candidate_being_checked(state, contribution_id)) is not None:
                candidate.status = DeltaStatus.UNAVAILABLE
                state.unchecked[contribution_id] = candidate
                candidate.retry_at_ms = now_ms + ASK_AGAIN_MS
                candidate.num_misses += not is_held(state, candidate.contribution, now_ms)
        case Merged():
            state.merging.pop(event.key, None)
            state.merges[event.key] = event
            while len(state.merges) > MAX_CACHED_MERGES:
                state.merges.pop(next(iter(state.merges)))
        case MergeFailed():
            yield from merge_failed(state, event, now_ms)
        case TrainingEnded(base=base, produced=produced):
            state.training = None
            if produced:
                state.trained_on.add(base)
            else:
                state.train_not_before_ms = now_ms + state.genesis.timing.slot_window_ms // MIN_TRAINING_SHARE
        case TrainingAllowed(allowed=allowed):
            state.trains = allowed
        case ChoiceAdopted(checkpoint=checkpoint):
            state.adopting = checkpoint
        case Synced():
            state.listen_until_ms = state.arrival.hold_until_ms = 0
        case CatchingUp():
            catching_up(state, now_ms)
        case SnapshotApplied(checkpoint=checkpoint):
            yield from snapshot_applied(state, checkpoint)
        case SnapshotRefused():
            yield from snapshot_refused(state, event)
        case SnapshotUnavailable(snapshot_id=snapshot_id):
            snapshot_unavailable(state, snapshot_id, now_ms)


def _duties(state: RoundState, now_ms: int) -> Iterator[Action]:
    yield from seek_snapshot(state, now_ms)
    yield from check_deltas(state, now_ms)
    yield from verify_checkpoints(state, now_ms)
    yield from adopt_head(state, now_ms)
    yield from finalise(state, now_ms)
    yield from vote(state, now_ms)
    yield from propose(state, now_ms)
    yield from train(state, now_ms)
    yield from take_up(state, now_ms)
    yield from remind(state, now_ms)
    yield from ask(state, [i for i, retry in state.asked.items() if retry <= now_ms and i in state.parked], now_ms)

"""Keeps a node's own pauses and patience right when its clock is set back (protocol section 5).

Retries, waits and "first seen" are moments on the node's own clock. Set back by an hour, a node would not ask,
propose or vote for that hour: so the moments go back with the clock.
"""

from fullrank_protocol.round_state import RoundState


def follow_clock(state: RoundState, now_ms: int) -> None:
    """Move every remembered moment by as much as the clock went back since the last step."""
    back = state.now_ms - now_ms
    state.now_ms = now_ms
    if back <= 0:
        return
    for moments in (state.asked, state.first_seen_ms, state.unverified, state.left_behind, state.arrival.set_aside):
        for key in moments:
            moments[key] -= back
    for merge, retry_ms in state.merging.items():
        state.merging[merge] = retry_ms and max(retry_ms - back, 1)  # 0: under way.
    for candidate in state.candidates.values():
        candidate.received_at_ms -= back
        candidate.retry_at_ms -= back
    state.listen_until_ms -= back
    state.train_not_before_ms -= back
    state.arrival.hold_until_ms -= back
    state.arrival.hold_again_ms -= back
    state.arrival.look_at_ms -= back
    slot = state.genesis.slot_at(now_ms)
    state.proposed_slot = min(state.proposed_slot, slot - 1)
    state.took_up_slot = min(state.took_up_slot, slot)
    state.reminded_slot = min(state.reminded_slot, slot)

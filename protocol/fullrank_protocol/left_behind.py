"""Branches that left the chain below this node's final checkpoint: known, and not worth a recomputation (section 5).

Nobody here builds on them, so whoever makes such checkpoints must not cost this node their deltas and merges. Votes
for them are counted all the same. Where votes make one of them final, too, the root may choose it: then they are
recomputed after all.
"""

from fullrank_protocol.chain import ChainState, Mark, is_ancestor
from fullrank_protocol.checkpoint import Checkpoint, contributions
from fullrank_protocol.round_state import Candidate, RoundState, offer


def open_up(state: RoundState, checkpoint: Checkpoint, seen_ms: int, now_ms: int) -> None:
    """Have a checkpoint recomputed, and the deltas that it decides on fetched for that."""
    state.unverified[checkpoint.id] = seen_ms
    for contribution in contributions(checkpoint):
        offer(state, Candidate(contribution, received_at_ms=now_ms))


def is_open(state: RoundState, checkpoint: bytes) -> bool:
    """Whether a checkpoint has a place here and was not recomputed."""
    return checkpoint in state.unverified or checkpoint in state.left_behind


def is_left_behind(state: RoundState, parent: ChainState) -> bool:
    """Whether a child of `parent` does not follow this node's final checkpoint.

    While the parent is open, so is the child: both are left together.
    """
    tree = state.tree
    if tree.conflict is not None or parent.id in state.unverified:
        return False
    return not is_ancestor(tree.final, parent, lookup=tree.lookup)


def leave_behind(state: RoundState, before: Mark) -> None:
    """The final checkpoint has moved on from `before`: what branches off between them is not recomputed any more."""
    tree = state.tree
    path = [tree.nodes[before.checkpoint], *tree.chain(tree.final.checkpoint, above_slot=before.slot)]
    kept = {node.state.id for node in path}
    beside = [child for node in path[:-1] for child in node.children if child not in kept]
    while beside:
        checkpoint_id = beside.pop()
        beside.extend(tree.nodes[checkpoint_id].children)
        seen_ms = state.unverified.pop(checkpoint_id, None)
        if seen_ms is not None:
            state.left_behind[checkpoint_id] = seen_ms


def look_again(state: RoundState, now_ms: int) -> None:
    """Votes contradict each other, or the root has chosen: what was left behind is to be recomputed, parents first."""
    for checkpoint_id, seen_ms in sorted(state.left_behind.items(), key=lambda item: state.tree.state(item[0]).slot):
        checkpoint = state.tree.nodes[checkpoint_id].checkpoint
        assert checkpoint is not None
        open_up(state, checkpoint, seen_ms, now_ms)
    state.left_behind.clear()

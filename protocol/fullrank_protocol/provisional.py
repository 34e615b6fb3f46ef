"""What would be final if only those counted who are there (protocol section 8, provisional finality).

When finality has been missing for long, a reader may look at the votes of the certifiers that are present. What this
gives is shown and can be pulled by whoever asks for it; no rule heeds it, and it may still be replaced.
"""

from dataclasses import dataclass

from fullrank_protocol.chain import Mark, is_stalled
from fullrank_protocol.fork_choice import Node, Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisional:
    """A stalled chain, as those who are there see it.

    Attributes:
        at: The newest checkpoint that more than two thirds of those present stand behind, and its child's; None
            where there is none above the final one.
        present: Certifiers of the head's sets whose votes for recent checkpoints of its chain are known.
        missing: The others.
    """

    at: Mark | None
    present: frozenset[bytes]
    missing: frozenset[bytes]


def provisional_finality(tree: Tree, *, slot: int) -> Provisional | None:
    """Provisional finality on the chain of the head at the open `slot`; None where the chain is not stalled.

    Present is who voted for a checkpoint of the newest `stall_slots` slots. A checkpoint counts when more than two
    thirds of those present in both of its sets voted for it, and likewise for its child in the very next slot.
    """
    head = tree.head()
    final = tree.state(tree.final.checkpoint)
    stall_slots = tree.genesis.timing.stall_slots
    if slot - final.slot < stall_slots or not is_stalled(head, slot=slot, genesis=tree.genesis):
        return None
    chain = tree.chain(head.id, above_slot=final.slot)
    certifiers = head.newest_set | head.second_set
    recent = (node.voters for node in chain if node.state.slot > slot - stall_slots)
    present = certifiers.intersection(frozenset[bytes]().union(*recent))
    at = next(
        (
            lower.state.here
            for lower, upper in zip(chain[-2::-1], chain[:0:-1], strict=True)
            if lower.state.slot + 1 == upper.state.slot and _holds(lower, present) and _holds(upper, present)
        ),
        None,
    )
    return Provisional(at=at, present=present, missing=certifiers - present)


def _holds(node: Node, present: frozenset[bytes]) -> bool:
    counting = (present & node.state.newest_set, present & node.state.second_set)
    return all(3 * len(node.voters & certifiers) > 2 * len(certifiers) for certifiers in counting)

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
        at: The newest checkpoint that more than two thirds of those present voted for; None where there is none
            above the final one.
        present: Certifiers of the head's sets whose votes for recent checkpoints of its chain are known.
        missing: The others.
    """

    at: Mark | None
    present: frozenset[bytes]
    missing: frozenset[bytes]


def provisional_finality(tree: Tree, *, slot: int) -> Provisional | None:
    """Provisional finality on the chain of the head at the open `slot`; None where the chain is not stalled.

    Present is who voted for a checkpoint of the newest `stall_slots` slots. More than two thirds of those present in
    both of its sets must have voted for a checkpoint. No child in the very next slot is asked for, as finality does:
    a chain that nobody justifies grows every few slots only.
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
    at = next((node.state.here for node in reversed(chain) if _holds(node, present)), None)
    return Provisional(at=at, present=present, missing=certifiers - present)


def _holds(node: Node, present: frozenset[bytes]) -> bool:
    counting = (present & node.state.newest_set, present & node.state.second_set)
    return all(3 * len(node.voters & certifiers) > 2 * len(certifiers) for certifiers in counting)

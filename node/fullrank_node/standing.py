"""How sure a chain is, as people are told: final, provisionally final in a stall, or neither (protocol section 8).

The protocol calls a chain stalled by its slots alone. A swarm in which nobody trained for a week has nothing that
waits for finality, and its first round afterwards is final two slots later: people hear of a stall only where
something has waited for as long as the genesis says.
"""

import enum
from collections.abc import Sequence

from fullrank_protocol.chain import ChainState, Mark, is_ancestor
from fullrank_protocol.checkpoint import CheckpointKind
from fullrank_protocol.fork_choice import Node, Tree
from fullrank_protocol.provisional import Provisional, provisional_finality

ID_DIGITS = 12
"""Digits of a checkpoint's id in sentences and commands: unique in any chain, short enough to read out."""


class Standing(enum.StrEnum):
    """How sure a checkpoint is."""

    FINAL = "final"
    PROVISIONAL = "provisional"
    NOT_FINAL = "not final"


def waits_since(tree: Tree) -> ChainState | None:
    """The oldest checkpoint on the head's chain that waits for finality: a round, or a change of the certifiers."""
    chain = tree.chain(tree.head().id, above_slot=tree.final.slot)
    return next((node.state for node in chain if _has_to_become_final(node)), None)


def stall_of(tree: Tree, *, slot: int) -> Provisional | None:
    """Who is there and what they stand behind, where finality is long missing; None where it is not.

    Args:
        tree: Of this node.
        slot: The open slot.
    """
    waiting = waits_since(tree)
    # A chain in constant use waits from the slot after its final one on: then this is the protocol's own measure.
    if waiting is None or slot - (waiting.slot - 1) < tree.genesis.timing.stall_slots:
        return None
    return provisional_finality(tree, slot=slot)


def standing_of(tree: Tree, state: ChainState, *, slot: int) -> Standing:
    """How sure a checkpoint is, as far as this node knows."""
    if tree.is_final(state):
        return Standing.FINAL
    stall = stall_of(tree, slot=slot)
    if stall is not None and stall.at is not None:
        provisional = tree.state(stall.at.checkpoint)
        if is_ancestor(state.here, provisional, lookup=tree.lookup):
            return Standing.PROVISIONAL
    return Standing.NOT_FINAL


def choice_in_effect(tree: Tree) -> Mark | None:
    """The root's choice, where one of the two conflicting final checkpoints is the chosen one or descends from it."""
    if tree.chosen is None or tree.conflict is None:
        return None
    chosen = tree.chosen
    tips = (tree.state(mark.checkpoint) for mark in tree.conflict)
    return chosen if any(is_ancestor(chosen, tip, lookup=tree.lookup) for tip in tips) else None


def short_id(checkpoint: bytes) -> str:
    """A checkpoint as sentences and commands name it."""
    return checkpoint.hex()[:ID_DIGITS]


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them; "nobody" where there are none."""
    return ", ".join(names) if names else "nobody"


def _has_to_become_final(node: Node) -> bool:
    is_round = node.checkpoint is not None and node.checkpoint.kind == CheckpointKind.NORMAL
    return is_round or node.state.certifier_change == node.state.here

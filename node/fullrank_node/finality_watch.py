"""Tells the log when rounds go on without becoming final, for whom they wait, and when that is over (section 8)."""

import logging

from fullrank_node.people import name_of_member
from fullrank_protocol.chain import ChainState
from fullrank_protocol.fork_choice import Tree

log = logging.getLogger(__name__)

LAG_ROUNDS = 3
"""The head is one round above the final one, and after a skipped slot two: from here on it is news."""


class FinalityWatch:
    """Looks at the tree after each of its changes; says something once when it begins and once when it ends."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._waits_since: int | None = None

    def look(self) -> None:
        """Called whenever the head or the final checkpoint moved."""
        tree = self._tree
        head, final_slot = tree.head(), tree.final.slot
        lag = head.round - tree.state(tree.final.checkpoint).round
        if self._waits_since is not None and final_slot > self._waits_since:
            log.info("Rounds become final again: slot %d is.", final_slot)
            self._waits_since = None
        if self._waits_since is None and lag >= LAG_ROUNDS:
            absent = sorted(name_of_member(key, head.members) for key in self._absent(head))
            if absent:
                log.warning(
                    "Rounds go on, but none has become final since slot %d: waiting for certifiers %s.",
                    final_slot,
                    ", ".join(absent),
                )
                self._waits_since = final_slot

    def _absent(self, head: ChainState) -> frozenset[bytes]:
        """Certifiers that voted for none of the newest checkpoints; whoever voted for one is only slow."""
        tree = self._tree
        missing = tree.missing_voters(head.id)
        for node in tree.chain(head.id, above_slot=tree.final.slot)[-LAG_ROUNDS:]:
            missing &= tree.missing_voters(node.state.id)
        return missing


def silent_certifiers(tree: Tree, head: ChainState) -> frozenset[bytes]:
    """Certifiers that voted neither for the head nor for its parent: the newest votes may still be on their way."""
    missing = tree.missing_voters(head.id)
    if head.parent is not None and head.parent != tree.root.id:
        missing &= tree.missing_voters(head.parent)
    return missing

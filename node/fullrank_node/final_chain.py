"""Follows a node's final chain: what has become final since the last look."""

from fullrank_protocol.chain import Mark, is_ancestor
from fullrank_protocol.checkpoint import contributions
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.fork_choice import Tree


class FinalChain:
    """How far somebody has followed the final checkpoints of a tree."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._upto: Mark = tree.root.here

    def has_moved_away(self) -> bool:
        """Whether the chain followed so far is not the final one any more: then everything is told anew.

        Finality has no way back. It is the owner who takes the root's choice of another chain.
        """
        final = self._tree.state(self._tree.final.checkpoint)
        if is_ancestor(self._upto, final, lookup=self._tree.lookup):
            return False
        self._upto = self._tree.root.here
        return True

    def news(self) -> list[tuple[int, Contribution]]:
        """Contributions that checkpoints final since the last call decided on, with their slots, oldest first."""
        tree, found = self._tree, []
        for node in tree.chain(tree.final.checkpoint, above_slot=self._upto.slot):
            if node.checkpoint is not None:
                found += [(node.state.slot, contribution) for contribution in contributions(node.checkpoint)]
        self._upto = tree.final
        return found

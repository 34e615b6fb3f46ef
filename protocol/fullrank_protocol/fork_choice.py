"""Which checkpoint to build on, and what is justified and final for a reader (protocol section 8).

A `Tree` holds every checkpoint of well-formed place that this node knows, and every valid vote,
carried or loose. Finality is a property of the votes, so a reader counts loose ones too; sources
and certifier sets always come from the chain (`chain`). Only checkpoints that this node has
recomputed itself can become its head.
"""

from collections import Counter
from collections.abc import Iterator, KeysView
from dataclasses import dataclass, field

from fullrank_protocol.chain import ChainState, Mark, check_vote, extend, genesis_state, has_quorum, is_ancestor
from fullrank_protocol.checkpoint import Checkpoint
from fullrank_protocol.errors import IgnoreError, RejectError, Rule
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.vote import Vote
from fullrank_protocol.vote_record import VoteRecord


@dataclass(slots=True)
class Node:
    """One checkpoint in the tree.

    Attributes:
        checkpoint: The signed object; None for the genesis.
        verdict: None until recomputed here, then whether it held.
        votes: Valid votes for it that are known here, by certifier: there is only one that each can cast.
    """

    state: ChainState
    checkpoint: Checkpoint | None
    verdict: bool | None = None
    children: list[bytes] = field(default_factory=list)
    votes: dict[bytes, Vote] = field(default_factory=dict)
    is_justified: bool = False
    is_final: bool = False

    @property
    def voters(self) -> KeysView[bytes]:
        """Certifiers whose valid vote for it is known here."""
        return self.votes.keys()


@dataclass(frozen=True, slots=True, kw_only=True)
class Offence:
    """Two votes of one certifier that break a rule; `first` has the lower id."""

    first: Vote
    second: Vote


class Tree:
    """Checkpoints and votes as one node knows them.

    Attributes:
        final: This node's final checkpoint: recomputed here, or taken by a snapshot.
        conflict: Two checkpoints that known votes make final on different chains, or None. The first is the one on
            the chain of `final`, where one of them is.
        voted_final: The highest checkpoint that known votes make final, recomputed here or not.
        chosen: Where there are two such chains: the checkpoint whose chain the root says the swarm keeps.
    """

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        root = genesis_state(genesis)
        self.nodes: dict[bytes, Node] = {
            root.id: Node(root, None, verdict=True, is_justified=True, is_final=True),
        }
        self.root = root
        self.final: Mark = root.here
        self.conflict: tuple[Mark, Mark] | None = None
        self.voted_final: Mark = root.here
        self.chosen: Mark | None = None
        self._finals: list[Mark] = []  # Final by votes, the newest of each chain.
        self._votes_of: dict[bytes, VoteRecord] = {}
        self._head_cache: ChainState | None = None

    # ---- reading ---------------------------------------------------------------------------------

    def lookup(self, checkpoint: bytes) -> ChainState | None:
        """State of a known checkpoint."""
        node = self.nodes.get(checkpoint)
        return node.state if node is not None else None

    def state(self, checkpoint: bytes) -> ChainState:
        """State of a checkpoint that must be known."""
        return self.nodes[checkpoint].state

    def head(self) -> ChainState:
        """What to build on: from the highest justified descendant of the final one, follow the latest votes."""
        if self._head_cache is None:
            self._head_cache = self._find_head()
        return self._head_cache

    def highest_justified(self) -> ChainState:
        """The highest justified checkpoint on or above the final one that this node has recomputed."""
        best = self.state(self.final.checkpoint)
        for node in self._verified_below(best.id):
            if node.is_justified and (node.state.slot, best.id) > (best.slot, node.state.id):
                best = node.state
        return best

    def chain(self, tip: bytes, *, above_slot: int = -1) -> list[Node]:
        """The checkpoints from just above `above_slot` up to `tip`, oldest first, without the genesis."""
        path: list[Node] = []
        node = self.nodes[tip]
        while node.checkpoint is not None and node.state.slot > above_slot:
            path.append(node)
            node = self.nodes[node.checkpoint.parent]
        return path[::-1]

    def is_justified(self, checkpoint: bytes) -> bool:
        """Whether a reader may call it justified."""
        return self.nodes[checkpoint].is_justified

    def is_final(self, state: ChainState) -> bool:
        """Whether it is this node's final checkpoint or an ancestor of it."""
        return is_ancestor(state.here, self.state(self.final.checkpoint), lookup=self.lookup)

    def is_voted_final(self, state: ChainState) -> bool:
        """Whether votes make it or a descendant final, recomputed here or not, and none on another chain."""
        if self.conflict is not None:
            return False
        return is_ancestor(state.here, self.state(self.voted_final.checkpoint), lookup=self.lookup)

    def votes_for(self, checkpoint: bytes) -> list[Vote]:
        """Valid votes for a target, ascending by id; one a certifier."""
        return sorted(self.nodes[checkpoint].votes.values(), key=_vote_id)

    def missing_voters(self, checkpoint: bytes) -> frozenset[bytes]:
        """Certifiers that count for a checkpoint and have not voted for it."""
        node = self.nodes[checkpoint]
        return (node.state.newest_set | node.state.second_set) - node.voters

    def latest_vote(self, voter: bytes) -> Vote | None:
        """The valid vote of a certifier with the highest target slot; None where none is known."""
        record = self._votes_of.get(voter)
        return record.latest if record is not None else None

    # ---- changing --------------------------------------------------------------------------------

    def follow(self, checkpoint: Checkpoint) -> ChainState:
        """The state after a checkpoint, without placing it.

        Raises:
            RejectError: It breaks a rule that needs no recomputation.
            IgnoreError: It is known already, or its parent or a base it names is not known.
        """
        if checkpoint.id in self.nodes:
            raise IgnoreError("is known already")
        parent = self.nodes.get(checkpoint.parent)
        if parent is None:
            raise IgnoreError(f"parent {checkpoint.parent.hex()[:12]} is not known")
        if parent.verdict is False:
            raise RejectError(Rule.PARENT, f"follows {checkpoint.parent.hex()[:12]}, which was refused")
        return extend(parent.state, checkpoint, genesis=self.genesis, lookup=self.lookup)

    def add(self, checkpoint: Checkpoint) -> tuple[ChainState, list[Offence]]:
        """Place a checkpoint whose parent is known, with the votes that it carries.

        Raises:
            RejectError, IgnoreError: As `follow`.
        """
        state = self.follow(checkpoint)
        self.nodes[checkpoint.id] = Node(state, checkpoint)
        self.nodes[checkpoint.parent].children.append(checkpoint.id)
        offences = [offence for vote in checkpoint.votes for offence in self.add_vote(vote)]
        return state, offences

    def add_vote(self, vote: Vote) -> list[Offence]:
        """Count a valid vote; returns the offences that it completes.

        Raises:
            RejectError: The vote does not fit its target.
            IgnoreError: Its target is not known yet.
        """
        node = self.nodes.get(vote.target)
        if node is None:
            raise IgnoreError(f"target {vote.target.hex()[:12]} is not known")
        check_vote(vote, node.state)
        if vote.voter in node.votes:
            return []
        offences = [
            Offence(first=min(vote, other, key=_vote_id), second=max(vote, other, key=_vote_id))
            for other in self._votes_of.setdefault(vote.voter, VoteRecord()).add(vote)
        ]
        node.votes[vote.voter] = vote
        if self._head_cache is not None and self._head_cache.id != vote.target:  # A vote for the head moves nothing.
            self._head_cache = None
        if not node.is_justified and has_quorum(node.voters, node.state):
            node.is_justified = True
            self._finalise_source_of(node)
        return offences

    def set_verdict(self, checkpoint: bytes, *, holds: bool) -> None:
        """Record the outcome of recomputing a checkpoint here; a refused one takes its descendants along."""
        node = self.nodes[checkpoint]
        node.verdict = holds
        self._head_cache = None
        if not holds:
            below = list(node.children)
            while below:  # Not by recursion: a node that catches up may have thousands of descendants open.
                child = self.nodes[below.pop()]
                child.verdict = False
                below.extend(child.children)
            return
        for candidate in [node, *(self.nodes[child] for child in node.children)]:
            if candidate.is_justified:
                self._finalise_source_of(candidate)

    def believe(self, checkpoint: bytes) -> list[bytes]:
        """Take a checkpoint that is final by votes as verified and final, and its ancestors with it.

        Returns:
            Those that were open until now, oldest first.
        """
        opened = []
        node = self.nodes[checkpoint]
        while node.verdict is None:
            assert node.checkpoint is not None
            opened.append(node.state.id)
            node = self.nodes[node.checkpoint.parent]
        opened.reverse()
        for ancestor in opened:
            self.set_verdict(ancestor, holds=True)
        node = self.nodes[checkpoint]
        if opened and self.conflict is None and is_ancestor(self.final, node.state, lookup=self.lookup):
            node.is_final = True
            self.final = node.state.here
            self._head_cache = None
        return opened

    def choose(self, mark: Mark) -> None:
        """Heed the root's choice of a known checkpoint: what is final on another chain than its own counts no more.

        It has no effect while votes make checkpoints of one chain final only: the root cannot undo finality.
        A node whose own final checkpoint is on another chain keeps it until its owner adopts the choice.
        """
        self.chosen = mark
        self._compare_finals()
        if self.conflict is None:
            self._advance(self.final)

    def adopt_chosen(self) -> bool:
        """Leave the own final checkpoint for the newest final one of the chosen chain; False while none is verified."""
        return self.chosen is not None and self._advance(self.chosen)

    # ---- inside ----------------------------------------------------------------------------------

    def _finalise_source_of(self, node: Node) -> None:
        """A justified checkpoint in the slot right after its source makes the source final."""
        source = node.state.justified
        if source.slot + 1 != node.state.slot:
            return
        source_node = self.nodes[source.checkpoint]
        if not source_node.is_final:
            source_node.is_final = True
            self._note_voted_final(source_node.state)
        is_newer = source.slot > self.final.slot
        if self.conflict is None and is_newer and source_node.verdict and self._is_kept(source_node.state):
            self.final = source
            self._head_cache = None

    def _advance(self, start: Mark) -> bool:
        """Take the newest checkpoint from `start` on that is final by votes, chosen, and recomputed here as the own."""
        finals = [
            node.state for node in self.nodes.values() if node.verdict and (node.is_final or node.state.here == start)
        ]
        held = [state.here for state in finals if self._follows(state, start) and self._is_kept(state)]
        if not held:
            return False
        self.final = max(held)
        self.nodes[self.final.checkpoint].is_final = True
        self._head_cache = None
        self._compare_finals()
        return True

    def _note_voted_final(self, state: ChainState) -> None:
        if any(self._follows(self.state(tip.checkpoint), state.here) for tip in self._finals):
            return
        self._finals = [tip for tip in self._finals if not self._follows(state, tip)] + [state.here]
        self._compare_finals()

    def _compare_finals(self) -> None:
        """Whether what is final by votes lies on one chain, and on that of the own final checkpoint.

        Finality is a property of the votes: a contradiction counts before it is recomputed here.
        """
        kept = sorted(tip for tip in self._finals if self._is_kept(self.state(tip.checkpoint)))
        own = self.state(self.final.checkpoint)
        self.voted_final = max(kept, default=self.root.here)
        kept.sort(key=lambda tip: not self._is_in_line(own, tip))
        if kept and not self._is_in_line(own, kept[0]):
            kept.insert(0, self.final)
        self.conflict = (kept[0], kept[1]) if len(kept) > 1 else None

    def _is_kept(self, state: ChainState) -> bool:
        """Whether the root's choice, if there is one that says anything, leaves this final checkpoint standing."""
        if self.chosen is None or not any(
            self._follows(self.state(tip.checkpoint), self.chosen) for tip in self._finals
        ):
            return True
        return self._is_in_line(state, self.chosen)

    def _is_in_line(self, state: ChainState, mark: Mark) -> bool:
        return self._follows(state, mark) or self._follows(self.state(mark.checkpoint), state.here)

    def _follows(self, state: ChainState, mark: Mark) -> bool:
        return is_ancestor(mark, state, lookup=self.lookup)

    def _find_head(self) -> ChainState:
        state = self.highest_justified()
        votes = [self._votes_of[voter].latest for voter in state.members.certifiers if voter in self._votes_of]
        support: Counter[bytes] = Counter()
        for target, num_votes in Counter(vote.target for vote in votes).items():
            for node in self.chain(target, above_slot=state.slot):
                support[node.state.id] += num_votes
        while True:
            children = [c for c in self.nodes[state.id].children if self.nodes[c].verdict]
            if not children:
                return state
            state = self.state(min(children, key=lambda child: (-support[child], child)))

    def _verified_below(self, checkpoint: bytes) -> Iterator[Node]:
        stack = [checkpoint]
        while stack:
            node = self.nodes[stack.pop()]
            if node.verdict:
                yield node
                stack.extend(node.children)


def _vote_id(vote: Vote) -> bytes:
    return vote.id

"""What a node knows and has under way in the round machine (protocol section 5)."""

import enum
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from fullrank_protocol.chain import ChainState, Mark
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import Rule
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.parking import Parking
from fullrank_protocol.round_io import Merged, MergeKey
from fullrank_protocol.snapshot import Snapshot
from fullrank_protocol.vote import Evidence, Vote

MAX_CACHED_MERGES = 16
"""Merge results kept: the head's rivals of a few slots."""

MAX_REFUSED = 8192
"""Refused objects that are remembered, so that the same one is not looked at again: half a megabyte."""

MAX_RECORDS_OF_ONE = 8
"""Membership records of one author, not the root, that wait to be carried: an honest one has two at most."""

MAX_ASKED = 8192
"""Objects asked for that are remembered, before those that nothing waits for are forgotten."""

MAX_ASKED_FOR_ONE = 64
"""Objects that one author's objects wait for, and that are asked for at once; the next inventory brings the rest."""


ASK_AGAIN_MS = 3_000
"""Pause before the same object or blob is asked for again: a few round trips of the slowest peers."""

RECENT_SLOTS = 4
"""Deltas on bases of the newest slots are fetched also while a neighbour tells what there is: no snapshot has them."""

ANY_HEAD = b"head"
"""Parked under this: tried again when the head moves or a record arrives."""

FUTURE = b"future"
"""Parked under this: a checkpoint ahead of this clock."""


class DeltaStatus(enum.Enum):
    """Where a known contribution stands on this node."""

    WAITING = "waiting"
    CHECKING = "checking"
    READY = "ready"
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"


@dataclass(slots=True)
class Candidate:
    """A contribution that a checkpoint may take.

    Attributes:
        retry_at_ms: When an unavailable blob is asked for again.
        num_misses: How often it was not to be had.
    """

    contribution: Contribution
    received_at_ms: int
    status: DeltaStatus = DeltaStatus.WAITING
    rule: Rule | None = None
    detail: str = ""
    retry_at_ms: int = 0
    num_misses: int = 0


@dataclass(slots=True)
class Arrival:
    """How this node gets from what it has verified to the head: by replay, or by a snapshot (section 12).

    Attributes:
        prefers_replay: Take a snapshot only where a delta is not to be had.
        highest_round: Take no snapshot of a later round; None: of any.
        pinned: A checkpoint that the swarm's link says is final; a chain without it is a forgery.
        blobs_here: Blobs on this disk at the start: they need not be fetched.
        partly_here: Bytes on this disk at the start of blobs whose download was broken off.
        snapshots: The newest hint of each author.
        begun: Older hints of which something is here already.
        distrusted: Authors of snapshots that were not what they said.
        set_aside: Snapshots that were not to be had, with the time of the next attempt.
        sought: The snapshot that is being fetched and applied.
        held: Checkpoints up to the sought one, and their contributions: not fetched nor recomputed meanwhile.
        hold_until_ms: Until then a neighbour tells what there is, and old deltas wait.
        hold_again_ms: Not before then do they wait again: a neighbour cannot hold this node up for long.
        look_at_ms: When the ways are compared again.
        believed: The newest checkpoint taken by a snapshot.
        beside: Checkpoints that do not follow it: the weights to recompute them from are not here.
    """

    prefers_replay: bool = False
    highest_round: int | None = None
    pinned: bytes | None = None
    blobs_here: frozenset[bytes] = frozenset()
    partly_here: Mapping[bytes, int] = field(default_factory=dict)
    snapshots: dict[bytes, Snapshot] = field(default_factory=dict)
    begun: dict[bytes, Snapshot] = field(default_factory=dict)
    distrusted: set[bytes] = field(default_factory=set)
    set_aside: dict[bytes, int] = field(default_factory=dict)
    sought: Snapshot | None = None
    held: frozenset[bytes] = frozenset()
    hold_until_ms: int = 0
    hold_again_ms: int = 0
    look_at_ms: int = 0
    believed: Mark | None = None
    beside: set[bytes] = field(default_factory=set)

    def note(self, snapshot: Snapshot) -> None:
        """Of an author the newest hint counts, and an older one whose download goes on after a restart."""
        older = self.snapshots.get(snapshot.author)
        if older is not None and older.blob.id in self.partly_here:
            self.begun[older.id] = older
        self.snapshots[snapshot.author] = snapshot


@dataclass(slots=True, kw_only=True)
class Proposal:
    """A checkpoint that this node is making."""

    slot: int
    parent: bytes
    key: MergeKey


@dataclass(slots=True, kw_only=True)
class RoundState:
    """All that the round machine knows; `step` owns and changes it.

    Attributes:
        key: This node's public key.
        base_digest: Model digest of the genesis masters.
        wants_certify: Take up the certifier role where the grant allows it.
        trains: The owner has data here and lets the node train.
        listen_until_ms: No vote leaves before, unless a neighbour has told all it has: a disk restored from a
            backup may lack votes that this key cast.
        own_votes: Every vote this key ever cast, as far as known here; grows before a signature leaves.
        voted_for: Targets of those votes.
        known: Ids of objects handled already.
        refused: Those of them that were refused, the oldest first.
        num_refused: How many checkpoints of each proposer were refused in the slot `num_refused_slot` of this clock.
        parked: Objects that wait for something they refer to, by what they wait for.
        asked: Objects asked of neighbours, with the time of the next attempt.
        first_seen_ms: When each checkpoint was placed in the tree here.
        unverified: Checkpoints in the tree that are not recomputed yet, with when they came.
        left_behind: Checkpoints that branch off below the final one, with when they came: not recomputed.
        in_turn: Checkpoints looked at, by slot and proposer.
        refused_by: Certifiers whose refusals of a checkpoint are kept.
        records: Membership records that no final checkpoint carries yet.
        choices: Root keys that signed each choice between conflicting final checkpoints, by root action.
        chosen_at_ms: When the choice that is heeded was made.
        adopting: The choice that this node's owner adopts, although it means leaving the own final checkpoint.
        merges: Recent merge results.
        merging: Merges under way, with the time of the next attempt.
        arrival: By replay or by a snapshot.
        candidates: Contributions that a checkpoint may take; `offer` adds and `withdraw` removes them.
        offered: How many of them a member has on a base.
        unchecked: Those whose delta is to be fetched, now or later.
        now_ms: This node's clock at the last step.
        future_due_ms: When the first of the checkpoints ahead of this clock is looked at again.
        is_restoring: What comes in is what this node kept before a restart.
    """

    genesis: Genesis
    key: bytes
    base_digest: bytes
    wants_certify: bool = True
    trains: bool = True
    tree: Tree
    listen_until_ms: int = 0
    own_votes: dict[bytes, Vote] = field(default_factory=dict)
    voted_for: set[bytes] = field(default_factory=set)
    known: set[bytes] = field(default_factory=set)
    refused: dict[bytes, None] = field(default_factory=dict)
    num_refused: Counter[bytes] = field(default_factory=Counter)
    num_refused_slot: int = 0
    parked: Parking = field(default_factory=Parking)
    asked: dict[bytes, int] = field(default_factory=dict)
    first_seen_ms: dict[bytes, int] = field(default_factory=dict)
    unverified: dict[bytes, int] = field(default_factory=dict)
    left_behind: dict[bytes, int] = field(default_factory=dict)
    in_turn: dict[tuple[int, bytes], set[bytes]] = field(default_factory=dict)
    refused_by: dict[bytes, set[bytes]] = field(default_factory=dict)
    candidates: dict[bytes, Candidate] = field(default_factory=dict)
    offered: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)
    unchecked: dict[bytes, Candidate] = field(default_factory=dict)
    records: dict[bytes, Envelope] = field(default_factory=dict)
    evidence: dict[bytes, Evidence] = field(default_factory=dict)
    choices: dict[bytes, set[bytes]] = field(default_factory=dict)
    chosen_at_ms: int = 0
    adopting: bytes | None = None
    merges: dict[MergeKey, Merged] = field(default_factory=dict)
    merging: dict[MergeKey, int] = field(default_factory=dict)
    proposal: Proposal | None = None
    proposed_slot: int = 0
    casting: set[bytes] = field(default_factory=set)
    training: Mark | None = None
    trained_on: set[bytes] = field(default_factory=set)
    train_not_before_ms: int = 0
    adopted: Mark
    finalised: Mark
    alarmed: bool = False
    took_up_slot: int = -1
    reminded_slot: int = 0
    now_ms: int = 0
    future_due_ms: float = math.inf
    is_restoring: bool = False
    arrival: Arrival = field(default_factory=Arrival)

    def is_no_checkpoint(self, object_id: bytes) -> bool:
        """Whether it is another kind of object that is here: nothing need wait for a checkpoint of that id."""
        return object_id in self.known and object_id not in self.refused and object_id not in self.tree.nodes

    def has(self, object_id: bytes) -> bool:
        """Whether an object was handled already, or waits: it need not be asked for."""
        return object_id in self.known or self.parked.holds(object_id)


def new_state(
    genesis: Genesis, *, key: bytes, base_digest: bytes, wants_certify: bool = True, trains: bool = True
) -> RoundState:
    """A node that knows nothing but the genesis."""
    tree = Tree(genesis)
    return RoundState(
        genesis=genesis,
        key=key,
        base_digest=base_digest,
        wants_certify=wants_certify,
        trains=trains,
        tree=tree,
        adopted=tree.root.here,
        finalised=tree.root.here,
    )


def offer(state: RoundState, candidate: Candidate) -> None:
    """Remember a contribution and that its delta is to be fetched, unless it is known already."""
    contribution = candidate.contribution
    if contribution.id in state.candidates:
        return
    state.candidates[contribution.id] = state.unchecked[contribution.id] = candidate
    state.offered[contribution.member, contribution.base_checkpoint] += 1


def withdraw(state: RoundState, contribution_id: bytes) -> None:
    """Forget a contribution."""
    contribution = state.candidates.pop(contribution_id).contribution
    state.unchecked.pop(contribution_id, None)
    pair = (contribution.member, contribution.base_checkpoint)
    state.offered[pair] -= 1
    if not state.offered[pair]:
        del state.offered[pair]


def candidate_being_checked(state: RoundState, contribution_id: bytes) -> Candidate | None:
    """The candidate that an answer about a delta is for; None where it was withdrawn, or answered already."""
    candidate = state.candidates.get(contribution_id)
    return candidate if candidate is not None and candidate.status is DeltaStatus.CHECKING else None


def note_if_beside(state: RoundState, at: ChainState) -> bool:
    """Whether a checkpoint branches off below one that was taken by a snapshot: nobody here can recompute it."""
    arrival = state.arrival
    if arrival.believed is None or at.parent is None or (at.slot <= arrival.believed.slot and state.tree.is_final(at)):
        return False
    if at.parent in arrival.beside or state.tree.state(at.parent).slot < arrival.believed.slot:
        arrival.beside.add(at.id)
        return True
    return False


def is_held(state: RoundState, contribution: Contribution, now_ms: int) -> bool:
    """Whether a delta need not be fetched now: a snapshot may make it, or is about to make it, unnecessary."""
    arrival = state.arrival
    if contribution.id in arrival.held:
        return True
    return now_ms < arrival.hold_until_ms and contribution.base_slot < state.genesis.slot_at(now_ms) - RECENT_SLOTS

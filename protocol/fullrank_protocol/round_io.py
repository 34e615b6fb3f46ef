"""Events into the round machine and actions out of it (protocol section 5).

The runner feeds what happened as events and carries the actions out; nothing else passes between
them. Every action may be repeated by the machine after a restart, and carrying it out twice is
harmless.
"""

from dataclasses import dataclass

from fullrank_protocol.blob import BlobRef
from fullrank_protocol.chain import Mark
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import Rule
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.snapshot import Snapshot
from fullrank_protocol.vote import Vote
from fullrank_protocol.weights import PastUpdate
from fullrank_protocol.wire import objects_pb2 as wire

# ---- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectReceived:
    """A signed object arrived, by any way; its signature has been verified."""

    envelope: Envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaChecked:
    """A contribution's blob is here and was decoded; `rule` is None when it holds."""

    contribution_id: bytes
    rule: Rule | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaUnavailable:
    """A contribution's blob could not be had for now."""

    contribution_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeKey:
    """What is merged onto what: contribution ids ascend."""

    parent: bytes
    contribution_ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The outcome of merging, the same on every node bit for bit."""

    key: MergeKey
    weights: tuple[Scaled, ...]
    update_norm: Scaled
    model_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeFailed:
    """The merge could not be carried out here.

    Attributes:
        rule: Set when every node finds the same (a non-finite result); None for local trouble.
    """

    key: MergeKey
    rule: Rule | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEnded:
    """The trainer stopped; a contribution, if any, arrives as an object of our own."""

    base: bytes
    produced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingAllowed:
    """The owner, or a limit set by the owner, lets this node train or not."""

    allowed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceAdopted:
    """The owner follows the root's choice between two conflicting final checkpoints, off the own one if need be."""

    checkpoint: bytes


@dataclass(frozen=True, slots=True)
class Synced:
    """A neighbour has told all it has: our own votes of an earlier life are among what is known now."""


@dataclass(frozen=True, slots=True)
class CatchingUp:
    """A neighbour is far ahead and tells what it has: do not fetch old deltas before it is known what else there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotApplied:
    """The sought snapshot has given weights with the digest of its checkpoint; they are durable here."""

    checkpoint: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRefused:
    """The sought snapshot is not what its author said."""

    snapshot_id: bytes
    rule: Rule
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotUnavailable:
    """The sought snapshot could not be had or applied here for now."""

    snapshot_id: bytes


Event = (
    Tick
    | ObjectReceived
    | DeltaChecked
    | DeltaUnavailable
    | Merged
    | MergeFailed
    | TrainingEnded
    | TrainingAllowed
    | ChoiceAdopted
    | Synced
    | CatchingUp
    | SnapshotApplied
    | SnapshotRefused
    | SnapshotUnavailable
)

# ---- actions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Store a valid new object durably, then pass it on to neighbours."""

    envelope: Envelope
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Say why an object was not taken; `rule` is None when nobody is to blame.

    Attributes:
        blames_sender: It is wrong wherever it is looked at, so whoever passes it on has not looked or lies. An object
            that is refused as things stand here, such as a second one of its author, may be the first elsewhere.
    """

    envelope: Envelope
    rule: Rule | None
    detail: str
    blames_sender: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchObjects:
    """Ask neighbours for objects that others refer to."""

    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckDelta:
    """Fetch a contribution's blob and decode it; answer with `DeltaChecked` or `DeltaUnavailable`.

    Attributes:
        base_round: Round of the base checkpoint; fixes the period of a seeded A.
    """

    contribution: Contribution
    blob: BlobRef
    base_round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeEntry:
    """One contribution to merge."""

    contribution: Contribution
    staleness: int
    stranger: bool
    base_round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """Weigh the contributions, apply them to the parent's masters; answer with `Merged` or `MergeFailed`."""

    key: MergeKey
    entries: tuple[MergeEntry, ...]
    trailing: tuple[PastUpdate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignCheckpoint:
    """Sign and publish a checkpoint of our own."""

    checkpoint: wire.Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class CastVote:
    """Record durably, then sign and publish; the recorded vote comes back as an object."""

    source: Mark
    target: Mark


@dataclass(frozen=True, slots=True, kw_only=True)
class SignRefusal:
    """Sign and publish why this node does not vote for a checkpoint."""

    checkpoint: bytes
    slot: int
    rule: Rule
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignEvidence:
    """Sign and publish two votes that break a rule together; `first` has the lower id."""

    first: Vote
    second: Vote


@dataclass(frozen=True, slots=True, kw_only=True)
class SignTakeUp:
    """Ask to become a certifier, as our grant allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A checkpoint was recomputed here, or taken by a snapshot: remember the verdict across restarts.

    Attributes:
        believed: Taken by a snapshot: its ancestors hold with it, and it is final.
    """

    checkpoint: bytes
    holds: bool
    key: MergeKey
    detail: str = ""
    believed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """The head moved: train and serve from here on."""

    head: Mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalised:
    """This checkpoint is irrevocable in this node's view."""

    final: Mark


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingContribution:
    """A contribution on its way into a merge, and the round of its base."""

    contribution: Contribution
    base_round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train on the head until the deadline and contribute; answer with `TrainingEnded`.

    Attributes:
        num_averaged: How many contributions the next merge can be expected to average.
        num_late: How many of these can be expected to be late.
        pending: Contributions of this node that its head has not merged and still may.
    """

    base: Mark
    base_round: int
    num_averaged: int
    num_late: int
    pending: tuple[PendingContribution, ...]
    deadline_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Two conflicting final checkpoints exist: this node stops finalising and says so."""

    ours: Mark
    theirs: Mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The root's choice has ended the conflict for this node: it goes on from its final checkpoint."""

    final: Mark


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSnapshot:
    """Fetch a snapshot and apply it to the base; answer with `SnapshotApplied`, `-Refused` or `-Unavailable`.

    Attributes:
        round: Of its checkpoint.
        num_deltas: Deltas that need not be fetched then, ...
        num_bytes: ... and their bytes; infinite where one is not to be had.
    """

    snapshot: Snapshot
    round: int
    model_digest: bytes
    num_deltas: int
    num_bytes: float


Action = (
    Keep
    | Drop
    | FetchObjects
    | CheckDelta
    | Merge
    | SignCheckpoint
    | CastVote
    | SignRefusal
    | SignEvidence
    | SignTakeUp
    | Verified
    | Adopt
    | Finalised
    | Train
    | Alarm
    | Settled
    | FetchSnapshot
)

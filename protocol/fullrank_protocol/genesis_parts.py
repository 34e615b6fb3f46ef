"""The parts of a genesis as checked values, with the fields of the wire message (protocol section 3)."""

import enum
from dataclasses import dataclass

from fullrank_protocol.blob import BlobRef
from fullrank_protocol.scaled import Scaled


class ModuleKind(enum.IntEnum):
    """How an adapted tensor may change."""

    LINEAR = 1
    DENSE = 2


class TrainingMode(enum.IntEnum):
    """Which factors are trained and sent."""

    MODE_B = 1
    MODE_AB = 2


class Policy(enum.IntEnum):
    """Who may contribute."""

    INVITE = 1
    OPEN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHash:
    """One parameter of the base model.

    Attributes:
        name: Parameter name.
        shape: Sizes; empty for a single number.
        sha256: Hash of its float32 little-endian bytes in row-major order.
    """

    name: str
    shape: tuple[int, ...]
    sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of the base model: a plain relative path, and the blob that it holds."""

    name: str
    blob: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """What the swarm starts from.

    Attributes:
        reference: Hub name, "embedded:NAME", or empty for a local directory.
        revision: Commit hash on the hub, or empty.
        tensors: Every parameter, ascending by name.
        files: Configuration and tokenizer files, ascending by name.
        weight_files: The weights themselves, when peers may serve them.
        licence: For people.
    """

    reference: str
    revision: str
    tensors: tuple[TensorHash, ...]
    files: tuple[FileEntry, ...]
    weight_files: tuple[FileEntry, ...]
    licence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One adapted tensor, seen as a matrix (out_features, in_features); a dense one has in_features 1."""

    name: str
    kind: ModuleKind
    out_features: int
    in_features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Length of a slot, the time between the turns of proposers, and when missing finality counts as a stall.

    Attributes:
        slot_window_ms: Length of a slot.
        grace_ms: Time between the turns of two proposers.
        stall_slots: A chain is stalled once its newest final checkpoint is this many slots back (section 8).
    """

    slot_window_ms: int
    grace_ms: int
    stall_slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How honest nodes train unless their owners say otherwise; `period_rounds` binds everyone.

    Attributes:
        mode: Which factors travel.
        rank: Components of one contribution for each linear module.
        bits_b: Bits of one entry of B as sent.
        bits_a: Bits of one entry of A as sent, in mode AB.
        learning_rate_nano: Peak learning rate in billionths.
        warmup_steps: Re-warm-up at the start of each contribution.
        max_steps: Most optimiser steps in one contribution.
        batch_size: Blocks in one step.
        block_length: Tokens in one block.
        period_rounds: Rounds for which a node keeps its A, from which seeded A is derived.
        total_rounds: Length of the learning-rate schedule; 0 for a constant rate.
    """

    mode: TrainingMode
    rank: int
    bits_b: int
    bits_a: int
    learning_rate_nano: int
    warmup_steps: int
    max_steps: int
    batch_size: int
    block_length: int
    period_rounds: int
    total_rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationRule:
    """Constants of the weights rule (protocol section 7).

    Attributes:
        max_contributions: Cohort of one checkpoint.
        token_cap: Most tokens that count for one contribution.
        max_staleness_rounds: Later contributions are refused.
        duplicate_cosine_micro: Above this cosine, in millionths, two deltas share one weight.
        weiszfeld_steps: Steps of the geometric median; 0 switches it off.
        update_norm_cap_milli: Aggregate norm over its trailing median, in thousandths, at most.
        trailing_rounds: Updates in that median, and in the mean of what breadth is usual.
        outer_step: Factor on the aggregate.
        open_share_micro: Most weight and places for strangers in an open swarm, in millionths.
    """

    max_contributions: int
    token_cap: int
    max_staleness_rounds: int
    duplicate_cosine_micro: int
    weiszfeld_steps: int
    update_norm_cap_milli: int
    trailing_rounds: int
    outer_step: Scaled
    open_share_micro: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in bytes and scale exponents that this swarm accepts."""

    max_delta_bytes: int
    min_scale_exponent: int
    max_scale_exponent: int
    max_checkpoint_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipPolicy:
    """Who may contribute, and who decides on it.

    Attributes:
        policy: Invited members only, or strangers too.
        root_keys: Ascending.
        root_threshold: Distinct root signatures that a root record needs.
        founders: Members and certifiers from the start, ascending.
        founder_names: As the founders call themselves, one each, or none at all.
    """

    policy: Policy
    root_keys: tuple[bytes, ...]
    root_threshold: int
    founders: tuple[bytes, ...]
    founder_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Predecessor:
    """The final checkpoint of another swarm from which this one goes on."""

    swarm: bytes
    checkpoint: bytes
    model_digest: bytes

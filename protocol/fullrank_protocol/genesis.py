"""The signed file that names a swarm and fixes its rules for ever (protocol section 3).

Its envelope id is the swarm id. It also counts as the first checkpoint: that id, slot 0, round 0, justified and final.
Slots are windows of time from its creation on: slot 0 is the first. No checkpoint is proposed for slot 0; what is
trained in it counts in slot 1.
"""

import enum
from dataclasses import dataclass, field

from fullrank_protocol.blob import BlobRef
from fullrank_protocol.envelope import NO_SWARM, Envelope, decode_payload, open_envelope, seal
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis_checks import check_genesis
from fullrank_protocol.genesis_defaults import default_limits, default_rule, default_timing, default_training
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.wire import objects_pb2 as wire

__all__ = [
    "AggregationRule",
    "BaseModel",
    "FileEntry",
    "Genesis",
    "Limits",
    "MembershipPolicy",
    "Module",
    "ModuleKind",
    "Policy",
    "Predecessor",
    "TensorHash",
    "Timing",
    "Training",
    "TrainingMode",
    "create_genesis",
    "default_limits",
    "default_rule",
    "default_timing",
    "default_training",
    "open_genesis",
]


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
    """Length of a slot, and the time between the turns of proposers."""

    slot_window_ms: int
    grace_ms: int


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
        trailing_rounds: Rounds in that median.
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
    """

    policy: Policy
    root_keys: tuple[bytes, ...]
    root_threshold: int
    founders: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Predecessor:
    """The final checkpoint of another swarm from which this one goes on."""

    swarm: bytes
    checkpoint: bytes
    model_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Genesis:
    """A checked genesis. Everything inside may trust its bounds.

    Attributes:
        swarm: The swarm id, which is the envelope's id.
        envelope: The signed object itself.
        name: For people.
        rule_version: Version of weighing, applying and finality.
        created_at_ms: Slot 0 begins here.
        nonce: 16 random bytes.
        base: What the swarm starts from.
        modules: Adapted tensors, ascending by name.
        max_rank: Most components of one contribution for one module.
        codecs: Delta encodings allowed, ascending.
        timing: Slots.
        training: Hints.
        rule: Weighing.
        limits: Sizes.
        membership: Who belongs to it.
        predecessor: Where it comes from, if from another swarm.
    """

    swarm: bytes
    envelope: Envelope = field(repr=False)
    name: str
    rule_version: int
    created_at_ms: int
    nonce: bytes
    base: BaseModel = field(repr=False)
    modules: tuple[Module, ...] = field(repr=False)
    max_rank: int
    codecs: tuple[int, ...]
    timing: Timing
    training: Training
    rule: AggregationRule
    limits: Limits
    membership: MembershipPolicy
    predecessor: Predecessor | None
    _module_of: dict[str, Module] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_module_of", {module.name: module for module in self.modules})

    def __hash__(self) -> int:
        return hash(self.swarm)

    def slot_at(self, now_ms: int) -> int:
        """The slot that is open at `now_ms`; -1 before the swarm's time begins."""
        return max(-1, (now_ms - self.created_at_ms) // self.timing.slot_window_ms)

    def slot_start_ms(self, slot: int) -> int:
        """When `slot` begins."""
        return self.created_at_ms + slot * self.timing.slot_window_ms

    def slot_end_ms(self, slot: int) -> int:
        """When `slot` ends, which is when the next begins."""
        return self.slot_start_ms(slot + 1)

    def module(self, name: str) -> Module:
        """The adapted tensor called `name`.

        Raises:
            RejectError: SHAPE, when there is none.
        """
        found = self._module_of.get(name)
        if found is None:
            raise RejectError(Rule.SHAPE, f"{name[:256]!r} is not an adapted module of this swarm")
        return found


def create_genesis(key: SigningKey, message: wire.Genesis) -> Genesis:
    """Signs `message` with a root key and checks it as everybody else will.

    Raises:
        RejectError: The message breaks a bound.
    """
    return open_genesis(seal(key, swarm=NO_SWARM, type=wire.GENESIS, message=message).encode())


def open_genesis(data: bytes, *, expect: bytes | None = None) -> Genesis:
    """Checks any bytes as a genesis; with `expect`, as the genesis of that swarm.

    Raises:
        RejectError: Naming what was found and what is required.
    """
    envelope = open_envelope(data, swarm=None)
    message = decode_payload(envelope, wire.Genesis)
    if expect is not None and envelope.id != expect:
        raise RejectError(Rule.SWARM, f"the genesis has id {envelope.id.hex()}, {expect.hex()} required")
    check_genesis(message, signer=envelope.public_key)
    return Genesis(
        swarm=envelope.id,
        envelope=envelope,
        name=message.name,
        rule_version=message.rule_version,
        created_at_ms=message.created_at_ms,
        nonce=message.nonce,
        base=_base(message.base),
        modules=tuple(
            Module(
                name=module.name,
                kind=ModuleKind(module.kind),
                out_features=module.out_features,
                in_features=module.in_features,
            )
            for module in message.modules
        ),
        max_rank=message.max_rank,
        codecs=tuple(message.codecs),
        timing=Timing(slot_window_ms=message.timing.slot_window_ms, grace_ms=message.timing.grace_ms),
        training=_training(message.training),
        rule=_rule(message.rule),
        limits=Limits(
            max_delta_bytes=message.limits.max_delta_bytes,
            min_scale_exponent=message.limits.min_scale_exponent,
            max_scale_exponent=message.limits.max_scale_exponent,
            max_checkpoint_bytes=message.limits.max_checkpoint_bytes,
        ),
        membership=MembershipPolicy(
            policy=Policy(message.membership.policy),
            root_keys=tuple(message.membership.root_keys),
            root_threshold=message.membership.root_threshold,
            founders=tuple(message.membership.founders),
        ),
        predecessor=_predecessor(message.predecessor) if message.HasField("predecessor") else None,
    )


def _base(base: wire.BaseModel) -> BaseModel:
    return BaseModel(
        reference=base.reference,
        revision=base.revision,
        tensors=tuple(
            TensorHash(name=tensor.name, shape=tuple(tensor.shape), sha256=tensor.sha256) for tensor in base.tensors
        ),
        files=tuple(FileEntry(name=entry.name, blob=BlobRef.from_wire(entry.blob)) for entry in base.files),
        weight_files=tuple(
            FileEntry(name=entry.name, blob=BlobRef.from_wire(entry.blob)) for entry in base.weight_files
        ),
        licence=base.licence,
    )


def _training(training: wire.Training) -> Training:
    return Training(
        mode=TrainingMode(training.mode),
        rank=training.rank,
        bits_b=training.bits_b,
        bits_a=training.bits_a,
        learning_rate_nano=training.learning_rate_nano,
        warmup_steps=training.warmup_steps,
        max_steps=training.max_steps,
        batch_size=training.batch_size,
        block_length=training.block_length,
        period_rounds=training.period_rounds,
        total_rounds=training.total_rounds,
    )


def _rule(rule: wire.AggregationRule) -> AggregationRule:
    return AggregationRule(
        max_contributions=rule.max_contributions,
        token_cap=rule.token_cap,
        max_staleness_rounds=rule.max_staleness_rounds,
        duplicate_cosine_micro=rule.duplicate_cosine_micro,
        weiszfeld_steps=rule.weiszfeld_steps,
        update_norm_cap_milli=rule.update_norm_cap_milli,
        trailing_rounds=rule.trailing_rounds,
        outer_step=Scaled.from_wire(rule.outer_step),
        open_share_micro=rule.open_share_micro,
    )


def _predecessor(predecessor: wire.Predecessor) -> Predecessor:
    return Predecessor(
        swarm=predecessor.swarm, checkpoint=predecessor.checkpoint, model_digest=predecessor.model_digest
    )

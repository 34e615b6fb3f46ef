"""The signed file that names a swarm and fixes its rules for ever (protocol section 3).

Its envelope id is the swarm id. It also counts as the first checkpoint: that id, slot 0, round 0, justified and final.
Slots are windows of time from its creation on: slot 0 is the first. No checkpoint is proposed for slot 0; what is
trained in it counts in slot 1.
"""

from dataclasses import dataclass, field

from fullrank_protocol.blob import BlobRef
from fullrank_protocol.envelope import NO_SWARM, Envelope, decode_payload, open_envelope, seal
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis_checks import check_genesis
from fullrank_protocol.genesis_defaults import default_limits, default_rule, default_timing, default_training
from fullrank_protocol.genesis_parts import (
    AggregationRule,
    BaseModel,
    FileEntry,
    Limits,
    MembershipPolicy,
    Module,
    ModuleKind,
    Policy,
    Predecessor,
    TensorHash,
    Timing,
    Training,
    TrainingMode,
)
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
        timing=Timing(
            slot_window_ms=message.timing.slot_window_ms,
            grace_ms=message.timing.grace_ms,
            stall_slots=message.timing.stall_slots,
        ),
        training=_training(message.training),
        rule=rule_from_wire(message.rule),
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
            founder_names=tuple(message.membership.founder_names),
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


def rule_from_wire(rule: wire.AggregationRule) -> AggregationRule:
    """The rule of a message whose numbers have been checked."""
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

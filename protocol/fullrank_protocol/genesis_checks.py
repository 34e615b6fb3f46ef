"""Which genesis is acceptable: every field within bounds and in agreement with the others (protocol section 3)."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from fullrank_protocol import limits
from fullrank_protocol.blob import BlobRef
from fullrank_protocol.canonical import (
    check_ascending,
    check_id,
    check_length,
    check_range,
    check_text,
    check_time_ms,
    require_present,
)
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.identity import check_public_key
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.wire import objects_pb2 as wire

MIN_CHECKPOINT_BYTES: Final = 16 << 10
"""A genesis must leave room for at least this in a checkpoint: votes, records and a small cohort."""

MAX_OUTER_STEP: Final = 16.0
MIN_OUTER_STEP: Final = 2.0**-20
"""Outer steps: one is right; the bounds only keep every later product far from overflow."""

_PARTS: Final = ("base", "timing", "training", "rule", "limits", "membership")
_FILE_PART: Final = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*")


def check_genesis(message: wire.Genesis, *, signer: bytes) -> None:
    """Checks a parsed genesis signed by `signer`.

    Raises:
        RejectError: Naming the field, what was found and what is required.
    """
    require_present(message, _PARTS, what="the genesis")
    check_text(message.name, limits.MAX_NAME_BYTES, what="the swarm's name", empty=False)
    if message.rule_version != limits.RULE_VERSION:
        raise RejectError(
            Rule.VERSION, f"the genesis has rule version {message.rule_version}, {limits.RULE_VERSION} required"
        )
    check_time_ms(message.created_at_ms, what="the time of the genesis")
    check_length(message.nonce, limits.NONCE_BYTES, what="the nonce of the genesis")
    _check_base(message.base)
    _check_modules(message.modules, message.base.tensors)
    check_range(message.max_rank, 1, limits.MAX_RANK, what="the maximum rank", rule=Rule.RANK)
    _check_codecs(message.codecs)
    _check_timing(message.timing)
    _check_training(message.training, max_rank=message.max_rank)
    _check_rule(message.rule)
    _check_limits(message.limits, max_contributions=message.rule.max_contributions)
    _check_membership(message.membership, signer=signer)
    if message.HasField("predecessor"):
        check_id(message.predecessor.swarm, what="the predecessor's swarm")
        check_id(message.predecessor.checkpoint, what="the predecessor's checkpoint")
        check_id(message.predecessor.model_digest, what="the predecessor's model digest")


def check_file_name(name: str) -> None:
    """Refuses a base file's name that could leave its directory or hide: only plain relative ASCII paths pass.

    Raises:
        RejectError: SCHEMA.
    """
    check_text(name, limits.MAX_FILE_NAME_BYTES, what="a file name", empty=False)
    if not all(_FILE_PART.fullmatch(part) for part in name.split("/")):
        raise RejectError(Rule.SCHEMA, f"the file name {name!r} is not a plain relative path")


def _check_base(base: wire.BaseModel) -> None:
    check_text(base.reference, limits.MAX_REFERENCE_BYTES, what="the base model's reference")
    check_text(base.revision, limits.MAX_REFERENCE_BYTES, what="the base model's revision")
    check_text(base.licence, limits.MAX_REFERENCE_BYTES, what="the base model's licence")
    check_range(len(base.tensors), 1, limits.MAX_TENSORS, what="the number of tensors")
    check_ascending([tensor.name for tensor in base.tensors], what="tensor names")
    for tensor in base.tensors:
        check_text(tensor.name, limits.MAX_TENSOR_NAME_BYTES, what="a tensor's name", empty=False)
        check_id(tensor.sha256, what=f"the hash of {tensor.name}")
        check_range(len(tensor.shape), 0, limits.MAX_DIMENSIONS, what=f"the dimensions of {tensor.name}")
        if min(tensor.shape, default=1) < 1:
            raise RejectError(Rule.SHAPE, f"{tensor.name} has shape {list(tensor.shape)}, positive sizes required")
        num_elements = math.prod(tensor.shape)
        check_range(num_elements, 1, limits.MAX_ELEMENTS, what=f"the elements of {tensor.name}", rule=Rule.SHAPE)
    _check_files(base.files, max_bytes=limits.MAX_SMALL_FILE_BYTES)
    _check_files(base.weight_files, max_bytes=limits.MAX_BLOB_BYTES)
    names = Counter(entry.name.lower() for entry in (*base.files, *base.weight_files))
    for name, times in names.most_common(1):
        if times > 1:
            raise RejectError(Rule.SCHEMA, f"{times} files of the base model have the same name {name}, 1 allowed")


def _check_files(files: Sequence[wire.FileEntry], *, max_bytes: int) -> None:
    check_range(len(files), 0, limits.MAX_BASE_FILES, what="the number of base files")
    check_ascending([entry.name for entry in files], what="file names")
    for entry in files:
        check_file_name(entry.name)
        require_present(entry, ["blob"], what=f"the entry of {entry.name}")
        ref = BlobRef.from_wire(entry.blob, what=f"file {entry.name}")
        check_range(ref.num_bytes, 0, max_bytes, what=f"the size of {entry.name}", rule=Rule.SIZE)


def _check_modules(modules: Sequence[wire.Module], tensors: Sequence[wire.TensorHash]) -> None:
    check_range(len(modules), 1, limits.MAX_MODULES, what="the number of modules")
    check_ascending([module.name for module in modules], what="module names")
    shape_of = {tensor.name: list(tensor.shape) for tensor in tensors}
    for module in modules:
        check_text(module.name, limits.MAX_TENSOR_NAME_BYTES, what="a module's name", empty=False)
        if module.name not in shape_of:
            raise RejectError(Rule.SHAPE, f"module {module.name} is not a tensor of the base model")
        shape = shape_of[module.name]
        if module.kind == wire.LINEAR:
            check_range(module.out_features, 1, limits.MAX_FEATURES, what=f"the outputs of {module.name}")
            check_range(module.in_features, 1, limits.MAX_FEATURES, what=f"the inputs of {module.name}")
            required = [module.out_features, module.in_features]
        elif module.kind == wire.DENSE:
            check_range(module.in_features, 1, 1, what=f"the inputs of the dense module {module.name}")
            required = [module.out_features]
            shape = [math.prod(shape)]
        else:
            raise RejectError(Rule.SCHEMA, f"module {module.name} has the unknown kind {module.kind}")
        if shape != required:
            raise RejectError(Rule.SHAPE, f"module {module.name} says shape {required}, its tensor has {shape}")


def _check_codecs(codecs: Sequence[int]) -> None:
    check_range(len(codecs), 1, len(limits.KNOWN_CODECS), what="the number of codecs", rule=Rule.CODEC)
    check_ascending(codecs, what="codecs")
    unknown = sorted(set(codecs) - limits.KNOWN_CODECS)
    if unknown:
        raise RejectError(Rule.CODEC, f"the genesis allows the unknown codec {unknown[0]}")


def _check_timing(timing: wire.Timing) -> None:
    check_range(timing.slot_window_ms, limits.MIN_WINDOW_MS, limits.MAX_WINDOW_MS, what="the slot window in ms")
    check_range(timing.grace_ms, 1, timing.slot_window_ms, what="the grace in ms")
    check_range(
        timing.stall_slots, limits.MIN_STALL_SLOTS, limits.MAX_STALL_SLOTS, what="the slots until the chain is stalled"
    )


def _check_training(training: wire.Training, *, max_rank: int) -> None:
    if training.mode not in (wire.MODE_B, wire.MODE_AB):
        raise RejectError(Rule.SCHEMA, f"the training mode {training.mode} is not known")
    check_range(training.rank, 1, max_rank, what="the training rank", rule=Rule.RANK)
    check_range(training.bits_b, 2, 8, what="the bits of B")
    check_range(training.bits_a, 2, 8, what="the bits of A")
    check_range(training.learning_rate_nano, 1, 10**9, what="the learning rate in billionths")
    check_range(training.max_steps, 1, limits.MAX_STEPS, what="the most steps of a contribution")
    check_range(training.warmup_steps, 0, training.max_steps, what="the warm-up steps")
    check_range(training.batch_size, 1, 1 << 16, what="the batch size")
    check_range(training.block_length, 2, 1 << 20, what="the block length")
    check_range(training.period_rounds, 1, limits.MAX_STEPS, what="the rounds for which A is kept")
    check_range(training.total_rounds, 0, 10**9, what="the rounds of the schedule")


def _check_rule(rule: wire.AggregationRule) -> None:
    require_present(rule, ["outer_step"], what="the aggregation rule")
    check_range(rule.max_contributions, 1, limits.MAX_CONTRIBUTIONS, what="the most contributions")
    check_range(rule.token_cap, 1, limits.MAX_TOKENS, what="the token cap")
    check_range(rule.max_staleness_rounds, 0, limits.MAX_STALENESS_ROUNDS, what="the most staleness")
    check_range(rule.duplicate_cosine_micro, 1, 10**6, what="the cosine of near-duplicates in millionths")
    check_range(rule.weiszfeld_steps, 0, limits.MAX_WEISZFELD_STEPS, what="the Weiszfeld steps")
    check_range(rule.update_norm_cap_milli, 1, 10**6, what="the cap of the update's norm in thousandths")
    check_range(rule.trailing_rounds, 1, limits.MAX_TRAILING_ROUNDS, what="the trailing rounds")
    check_range(rule.open_share_micro, 0, 10**6 - 1, what="the open share in millionths")
    outer_step = Scaled.from_wire(rule.outer_step)
    if not MIN_OUTER_STEP <= outer_step.value() <= MAX_OUTER_STEP:
        raise RejectError(
            Rule.SCALE, f"the outer step is {outer_step.value()}, {MIN_OUTER_STEP} to {MAX_OUTER_STEP} required"
        )


def _check_limits(bounds: wire.Limits, *, max_contributions: int) -> None:
    low, high = limits.MIN_SCALE_EXPONENT, limits.MAX_SCALE_EXPONENT
    check_range(bounds.max_delta_bytes, 1, limits.MAX_DELTA_BYTES, what="the most bytes of a delta")
    check_range(bounds.min_scale_exponent, low, high, what="the smallest scale exponent", rule=Rule.SCALE)
    check_range(
        bounds.max_scale_exponent,
        bounds.min_scale_exponent,
        high,
        what="the largest scale exponent",
        rule=Rule.SCALE,
    )
    least = max(MIN_CHECKPOINT_BYTES, max_contributions * limits.MAX_RECORD_BYTES // 2)
    check_range(bounds.max_checkpoint_bytes, least, limits.MAX_CHECKPOINT_BYTES, what="the most bytes of a checkpoint")


def _check_membership(membership: wire.MembershipPolicy, *, signer: bytes) -> None:
    if membership.policy not in (wire.INVITE, wire.OPEN):
        raise RejectError(Rule.POLICY, f"the membership policy {membership.policy} is not known")
    check_range(len(membership.root_keys), 1, limits.MAX_ROOT_KEYS, what="the number of root keys")
    check_ascending(membership.root_keys, what="root keys")
    for key in membership.root_keys:
        check_public_key(key, what="a root key")
    check_range(membership.root_threshold, 1, len(membership.root_keys), what="the root threshold")
    check_range(len(membership.founders), 1, limits.MAX_CERTIFIERS, what="the number of founders")
    check_ascending(membership.founders, what="founders")
    if len(membership.founder_names) not in (0, len(membership.founders)):
        raise RejectError(
            Rule.SCHEMA,
            f"{len(membership.founders)} founders have {len(membership.founder_names)} names: all or none required",
        )
    for name in membership.founder_names:
        check_text(name, limits.MAX_NAME_BYTES, what="a founder's name")
    for key in membership.founders:
        check_public_key(key, what="a founder's key")
    if signer not in membership.root_keys:
        raise RejectError(
            Rule.MEMBERSHIP, f"the genesis is signed by {signer.hex()}, which is not one of its root keys"
        )

from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ObjectType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBJECT_TYPE_UNSPECIFIED: _ClassVar[ObjectType]
    GENESIS: _ClassVar[ObjectType]
    CONTRIBUTION: _ClassVar[ObjectType]
    CHECKPOINT: _ClassVar[ObjectType]
    VOTE: _ClassVar[ObjectType]
    REFUSAL: _ClassVar[ObjectType]
    GRANT: _ClassVar[ObjectType]
    ADMISSION: _ClassVar[ObjectType]
    TAKE_UP: _ClassVar[ObjectType]
    LEAVE: _ClassVar[ObjectType]
    REVOCATION: _ClassVar[ObjectType]
    READMISSION: _ClassVar[ObjectType]
    RETIREMENT: _ClassVar[ObjectType]
    EJECTION: _ClassVar[ObjectType]
    EVIDENCE: _ClassVar[ObjectType]
    CHOICE: _ClassVar[ObjectType]
    PEER: _ClassVar[ObjectType]
    ANNOUNCEMENT: _ClassVar[ObjectType]
    SNAPSHOT: _ClassVar[ObjectType]

class ModuleKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODULE_KIND_UNSPECIFIED: _ClassVar[ModuleKind]
    LINEAR: _ClassVar[ModuleKind]
    DENSE: _ClassVar[ModuleKind]

class TrainingMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAINING_MODE_UNSPECIFIED: _ClassVar[TrainingMode]
    MODE_B: _ClassVar[TrainingMode]
    MODE_AB: _ClassVar[TrainingMode]

class Policy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_UNSPECIFIED: _ClassVar[Policy]
    INVITE: _ClassVar[Policy]
    OPEN: _ClassVar[Policy]

class CheckpointKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHECKPOINT_KIND_UNSPECIFIED: _ClassVar[CheckpointKind]
    NORMAL: _ClassVar[CheckpointKind]
    EMPTY: _ClassVar[CheckpointKind]
    CORRECTION: _ClassVar[CheckpointKind]
OBJECT_TYPE_UNSPECIFIED: ObjectType
GENESIS: ObjectType
CONTRIBUTION: ObjectType
CHECKPOINT: ObjectType
VOTE: ObjectType
REFUSAL: ObjectType
GRANT: ObjectType
ADMISSION: ObjectType
TAKE_UP: ObjectType
LEAVE: ObjectType
REVOCATION: ObjectType
READMISSION: ObjectType
RETIREMENT: ObjectType
EJECTION: ObjectType
EVIDENCE: ObjectType
CHOICE: ObjectType
PEER: ObjectType
ANNOUNCEMENT: ObjectType
SNAPSHOT: ObjectType
MODULE_KIND_UNSPECIFIED: ModuleKind
LINEAR: ModuleKind
DENSE: ModuleKind
TRAINING_MODE_UNSPECIFIED: TrainingMode
MODE_B: TrainingMode
MODE_AB: TrainingMode
POLICY_UNSPECIFIED: Policy
INVITE: Policy
OPEN: Policy
CHECKPOINT_KIND_UNSPECIFIED: CheckpointKind
NORMAL: CheckpointKind
EMPTY: CheckpointKind
CORRECTION: CheckpointKind

class Envelope(_message.Message):
    __slots__ = ("version", "swarm", "type", "payload", "public_key", "signature")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SWARM_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    version: int
    swarm: bytes
    type: ObjectType
    payload: bytes
    public_key: bytes
    signature: bytes
    def __init__(self, version: _Optional[int] = ..., swarm: _Optional[bytes] = ..., type: _Optional[_Union[ObjectType, str]] = ..., payload: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Scaled(_message.Message):
    __slots__ = ("mantissa", "exponent")
    MANTISSA_FIELD_NUMBER: _ClassVar[int]
    EXPONENT_FIELD_NUMBER: _ClassVar[int]
    mantissa: int
    exponent: int
    def __init__(self, mantissa: _Optional[int] = ..., exponent: _Optional[int] = ...) -> None: ...

class BlobRef(_message.Message):
    __slots__ = ("id", "num_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    num_bytes: int
    def __init__(self, id: _Optional[bytes] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class Genesis(_message.Message):
    __slots__ = ("name", "rule_version", "created_at_ms", "nonce", "base", "modules", "max_rank", "codecs", "timing", "training", "rule", "limits", "membership", "predecessor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RULE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    MAX_RANK_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    PREDECESSOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    rule_version: int
    created_at_ms: int
    nonce: bytes
    base: BaseModel
    modules: _containers.RepeatedCompositeFieldContainer[Module]
    max_rank: int
    codecs: _containers.RepeatedScalarFieldContainer[int]
    timing: Timing
    training: Training
    rule: AggregationRule
    limits: Limits
    membership: MembershipPolicy
    predecessor: Predecessor
    def __init__(self, name: _Optional[str] = ..., rule_version: _Optional[int] = ..., created_at_ms: _Optional[int] = ..., nonce: _Optional[bytes] = ..., base: _Optional[_Union[BaseModel, _Mapping]] = ..., modules: _Optional[_Iterable[_Union[Module, _Mapping]]] = ..., max_rank: _Optional[int] = ..., codecs: _Optional[_Iterable[int]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., training: _Optional[_Union[Training, _Mapping]] = ..., rule: _Optional[_Union[AggregationRule, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., membership: _Optional[_Union[MembershipPolicy, _Mapping]] = ..., predecessor: _Optional[_Union[Predecessor, _Mapping]] = ...) -> None: ...

class BaseModel(_message.Message):
    __slots__ = ("reference", "revision", "tensors", "files", "weight_files", "licence")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FILES_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    revision: str
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHash]
    files: _containers.RepeatedCompositeFieldContainer[FileEntry]
    weight_files: _containers.RepeatedCompositeFieldContainer[FileEntry]
    licence: str
    def __init__(self, reference: _Optional[str] = ..., revision: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[TensorHash, _Mapping]]] = ..., files: _Optional[_Iterable[_Union[FileEntry, _Mapping]]] = ..., weight_files: _Optional[_Iterable[_Union[FileEntry, _Mapping]]] = ..., licence: _Optional[str] = ...) -> None: ...

class TensorHash(_message.Message):
    __slots__ = ("name", "shape", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    sha256: bytes
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class FileEntry(_message.Message):
    __slots__ = ("name", "blob")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    name: str
    blob: BlobRef
    def __init__(self, name: _Optional[str] = ..., blob: _Optional[_Union[BlobRef, _Mapping]] = ...) -> None: ...

class Module(_message.Message):
    __slots__ = ("name", "kind", "out_features", "in_features")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    OUT_FEATURES_FIELD_NUMBER: _ClassVar[int]
    IN_FEATURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: ModuleKind
    out_features: int
    in_features: int
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[ModuleKind, str]] = ..., out_features: _Optional[int] = ..., in_features: _Optional[int] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("slot_window_ms", "grace_ms", "stall_slots")
    SLOT_WINDOW_MS_FIELD_NUMBER: _ClassVar[int]
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    STALL_SLOTS_FIELD_NUMBER: _ClassVar[int]
    slot_window_ms: int
    grace_ms: int
    stall_slots: int
    def __init__(self, slot_window_ms: _Optional[int] = ..., grace_ms: _Optional[int] = ..., stall_slots: _Optional[int] = ...) -> None: ...

class Training(_message.Message):
    __slots__ = ("mode", "rank", "bits_b", "bits_a", "learning_rate_nano", "warmup_steps", "max_steps", "batch_size", "block_length", "period_rounds", "total_rounds")
    MODE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    BITS_B_FIELD_NUMBER: _ClassVar[int]
    BITS_A_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_NANO_FIELD_NUMBER: _ClassVar[int]
    WARMUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_LENGTH_FIELD_NUMBER: _ClassVar[int]
    PERIOD_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_ROUNDS_FIELD_NUMBER: _ClassVar[int]
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
    def __init__(self, mode: _Optional[_Union[TrainingMode, str]] = ..., rank: _Optional[int] = ..., bits_b: _Optional[int] = ..., bits_a: _Optional[int] = ..., learning_rate_nano: _Optional[int] = ..., warmup_steps: _Optional[int] = ..., max_steps: _Optional[int] = ..., batch_size: _Optional[int] = ..., block_length: _Optional[int] = ..., period_rounds: _Optional[int] = ..., total_rounds: _Optional[int] = ...) -> None: ...

class AggregationRule(_message.Message):
    __slots__ = ("max_contributions", "token_cap", "max_staleness_rounds", "duplicate_cosine_micro", "weiszfeld_steps", "update_norm_cap_milli", "trailing_rounds", "outer_step", "open_share_micro")
    MAX_CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_CAP_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_COSINE_MICRO_FIELD_NUMBER: _ClassVar[int]
    WEISZFELD_STEPS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_NORM_CAP_MILLI_FIELD_NUMBER: _ClassVar[int]
    TRAILING_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    OUTER_STEP_FIELD_NUMBER: _ClassVar[int]
    OPEN_SHARE_MICRO_FIELD_NUMBER: _ClassVar[int]
    max_contributions: int
    token_cap: int
    max_staleness_rounds: int
    duplicate_cosine_micro: int
    weiszfeld_steps: int
    update_norm_cap_milli: int
    trailing_rounds: int
    outer_step: Scaled
    open_share_micro: int
    def __init__(self, max_contributions: _Optional[int] = ..., token_cap: _Optional[int] = ..., max_staleness_rounds: _Optional[int] = ..., duplicate_cosine_micro: _Optional[int] = ..., weiszfeld_steps: _Optional[int] = ..., update_norm_cap_milli: _Optional[int] = ..., trailing_rounds: _Optional[int] = ..., outer_step: _Optional[_Union[Scaled, _Mapping]] = ..., open_share_micro: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_delta_bytes", "min_scale_exponent", "max_scale_exponent", "max_checkpoint_bytes")
    MAX_DELTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    MIN_SCALE_EXPONENT_FIELD_NUMBER: _ClassVar[int]
    MAX_SCALE_EXPONENT_FIELD_NUMBER: _ClassVar[int]
    MAX_CHECKPOINT_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_delta_bytes: int
    min_scale_exponent: int
    max_scale_exponent: int
    max_checkpoint_bytes: int
    def __init__(self, max_delta_bytes: _Optional[int] = ..., min_scale_exponent: _Optional[int] = ..., max_scale_exponent: _Optional[int] = ..., max_checkpoint_bytes: _Optional[int] = ...) -> None: ...

class MembershipPolicy(_message.Message):
    __slots__ = ("policy", "root_keys", "root_threshold", "founders", "founder_names")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ROOT_KEYS_FIELD_NUMBER: _ClassVar[int]
    ROOT_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    FOUNDERS_FIELD_NUMBER: _ClassVar[int]
    FOUNDER_NAMES_FIELD_NUMBER: _ClassVar[int]
    policy: Policy
    root_keys: _containers.RepeatedScalarFieldContainer[bytes]
    root_threshold: int
    founders: _containers.RepeatedScalarFieldContainer[bytes]
    founder_names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, policy: _Optional[_Union[Policy, str]] = ..., root_keys: _Optional[_Iterable[bytes]] = ..., root_threshold: _Optional[int] = ..., founders: _Optional[_Iterable[bytes]] = ..., founder_names: _Optional[_Iterable[str]] = ...) -> None: ...

class Predecessor(_message.Message):
    __slots__ = ("swarm", "checkpoint", "model_digest")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    swarm: bytes
    checkpoint: bytes
    model_digest: bytes
    def __init__(self, swarm: _Optional[bytes] = ..., checkpoint: _Optional[bytes] = ..., model_digest: _Optional[bytes] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("base_checkpoint", "base_slot", "blob", "codec", "num_tokens", "num_steps", "loss_first_micro", "loss_last_micro", "created_at_ms")
    BASE_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    BASE_SLOT_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIRST_MICRO_FIELD_NUMBER: _ClassVar[int]
    LOSS_LAST_MICRO_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    base_checkpoint: bytes
    base_slot: int
    blob: BlobRef
    codec: int
    num_tokens: int
    num_steps: int
    loss_first_micro: int
    loss_last_micro: int
    created_at_ms: int
    def __init__(self, base_checkpoint: _Optional[bytes] = ..., base_slot: _Optional[int] = ..., blob: _Optional[_Union[BlobRef, _Mapping]] = ..., codec: _Optional[int] = ..., num_tokens: _Optional[int] = ..., num_steps: _Optional[int] = ..., loss_first_micro: _Optional[int] = ..., loss_last_micro: _Optional[int] = ..., created_at_ms: _Optional[int] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("kind", "parent", "slot", "round", "accepted", "refused", "votes", "records", "evidence", "corrected", "model_digest", "update_norm")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    CORRECTED_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    UPDATE_NORM_FIELD_NUMBER: _ClassVar[int]
    kind: CheckpointKind
    parent: bytes
    slot: int
    round: int
    accepted: _containers.RepeatedCompositeFieldContainer[Accepted]
    refused: _containers.RepeatedCompositeFieldContainer[Refused]
    votes: _containers.RepeatedScalarFieldContainer[bytes]
    records: _containers.RepeatedScalarFieldContainer[bytes]
    evidence: _containers.RepeatedScalarFieldContainer[bytes]
    corrected: _containers.RepeatedCompositeFieldContainer[Corrected]
    model_digest: bytes
    update_norm: Scaled
    def __init__(self, kind: _Optional[_Union[CheckpointKind, str]] = ..., parent: _Optional[bytes] = ..., slot: _Optional[int] = ..., round: _Optional[int] = ..., accepted: _Optional[_Iterable[_Union[Accepted, _Mapping]]] = ..., refused: _Optional[_Iterable[_Union[Refused, _Mapping]]] = ..., votes: _Optional[_Iterable[bytes]] = ..., records: _Optional[_Iterable[bytes]] = ..., evidence: _Optional[_Iterable[bytes]] = ..., corrected: _Optional[_Iterable[_Union[Corrected, _Mapping]]] = ..., model_digest: _Optional[bytes] = ..., update_norm: _Optional[_Union[Scaled, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("contribution", "weight")
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    contribution: bytes
    weight: Scaled
    def __init__(self, contribution: _Optional[bytes] = ..., weight: _Optional[_Union[Scaled, _Mapping]] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("contribution", "rule", "detail")
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    contribution: bytes
    rule: int
    detail: str
    def __init__(self, contribution: _Optional[bytes] = ..., rule: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class Corrected(_message.Message):
    __slots__ = ("contribution_id", "weight")
    CONTRIBUTION_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    contribution_id: bytes
    weight: Scaled
    def __init__(self, contribution_id: _Optional[bytes] = ..., weight: _Optional[_Union[Scaled, _Mapping]] = ...) -> None: ...

class Vote(_message.Message):
    __slots__ = ("source", "source_slot", "target", "target_slot")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_SLOT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TARGET_SLOT_FIELD_NUMBER: _ClassVar[int]
    source: bytes
    source_slot: int
    target: bytes
    target_slot: int
    def __init__(self, source: _Optional[bytes] = ..., source_slot: _Optional[int] = ..., target: _Optional[bytes] = ..., target_slot: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("checkpoint", "rule", "detail")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    checkpoint: bytes
    rule: int
    detail: str
    def __init__(self, checkpoint: _Optional[bytes] = ..., rule: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class Evidence(_message.Message):
    __slots__ = ("first", "second")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    first: bytes
    second: bytes
    def __init__(self, first: _Optional[bytes] = ..., second: _Optional[bytes] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("invite_key", "roles", "count", "not_after_ms")
    INVITE_KEY_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    invite_key: bytes
    roles: int
    count: int
    not_after_ms: int
    def __init__(self, invite_key: _Optional[bytes] = ..., roles: _Optional[int] = ..., count: _Optional[int] = ..., not_after_ms: _Optional[int] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("grant_id", "roles", "name", "invite_signature")
    GRANT_ID_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    INVITE_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    grant_id: bytes
    roles: int
    name: str
    invite_signature: bytes
    def __init__(self, grant_id: _Optional[bytes] = ..., roles: _Optional[int] = ..., name: _Optional[str] = ..., invite_signature: _Optional[bytes] = ...) -> None: ...

class TakeUp(_message.Message):
    __slots__ = ("issued_at_ms",)
    ISSUED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    issued_at_ms: int
    def __init__(self, issued_at_ms: _Optional[int] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ("issued_at_ms", "certifier_role_only")
    ISSUED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    CERTIFIER_ROLE_ONLY_FIELD_NUMBER: _ClassVar[int]
    issued_at_ms: int
    certifier_role_only: bool
    def __init__(self, issued_at_ms: _Optional[int] = ..., certifier_role_only: _Optional[bool] = ...) -> None: ...

class Revocation(_message.Message):
    __slots__ = ("subject", "whole_tree", "issued_at_ms")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    WHOLE_TREE_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    subject: bytes
    whole_tree: bool
    issued_at_ms: int
    def __init__(self, subject: _Optional[bytes] = ..., whole_tree: _Optional[bool] = ..., issued_at_ms: _Optional[int] = ...) -> None: ...

class Readmission(_message.Message):
    __slots__ = ("member", "roles", "issued_at_ms")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    member: bytes
    roles: int
    issued_at_ms: int
    def __init__(self, member: _Optional[bytes] = ..., roles: _Optional[int] = ..., issued_at_ms: _Optional[int] = ...) -> None: ...

class Retirement(_message.Message):
    __slots__ = ("certifier", "issued_at_ms")
    CERTIFIER_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    certifier: bytes
    issued_at_ms: int
    def __init__(self, certifier: _Optional[bytes] = ..., issued_at_ms: _Optional[int] = ...) -> None: ...

class Ejection(_message.Message):
    __slots__ = ("member", "since_round", "issued_at_ms")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    SINCE_ROUND_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    member: bytes
    since_round: int
    issued_at_ms: int
    def __init__(self, member: _Optional[bytes] = ..., since_round: _Optional[int] = ..., issued_at_ms: _Optional[int] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("checkpoint", "slot", "issued_at_ms")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    checkpoint: bytes
    slot: int
    issued_at_ms: int
    def __init__(self, checkpoint: _Optional[bytes] = ..., slot: _Optional[int] = ..., issued_at_ms: _Optional[int] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("addresses", "issued_at_ms", "archive", "software")
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    ARCHIVE_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    issued_at_ms: int
    archive: bool
    software: str
    def __init__(self, addresses: _Optional[_Iterable[str]] = ..., issued_at_ms: _Optional[int] = ..., archive: _Optional[bool] = ..., software: _Optional[str] = ...) -> None: ...

class Announcement(_message.Message):
    __slots__ = ("object_id", "object_type", "slot", "num_bytes")
    OBJECT_ID_FIELD_NUMBER: _ClassVar[int]
    OBJECT_TYPE_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    object_id: bytes
    object_type: ObjectType
    slot: int
    num_bytes: int
    def __init__(self, object_id: _Optional[bytes] = ..., object_type: _Optional[_Union[ObjectType, str]] = ..., slot: _Optional[int] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("checkpoint", "slot", "blob", "codec")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    checkpoint: bytes
    slot: int
    blob: BlobRef
    codec: int
    def __init__(self, checkpoint: _Optional[bytes] = ..., slot: _Optional[int] = ..., blob: _Optional[_Union[BlobRef, _Mapping]] = ..., codec: _Optional[int] = ...) -> None: ...

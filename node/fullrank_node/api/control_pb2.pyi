from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_STATE_UNSPECIFIED: _ClassVar[NodeState]
    NODE_STARTING: _ClassVar[NodeState]
    NODE_SYNCING: _ClassVar[NodeState]
    NODE_TRAINING: _ClassVar[NodeState]
    NODE_WAITING: _ClassVar[NodeState]
    NODE_PAUSED: _ClassVar[NodeState]
    NODE_NO_PEERS: _ClassVar[NodeState]
    NODE_FINISHING: _ClassVar[NodeState]
    NODE_STOPPING: _ClassVar[NodeState]
    NODE_TROUBLED: _ClassVar[NodeState]
NODE_STATE_UNSPECIFIED: NodeState
NODE_STARTING: NodeState
NODE_SYNCING: NodeState
NODE_TRAINING: NodeState
NODE_WAITING: NodeState
NODE_PAUSED: NodeState
NODE_NO_PEERS: NodeState
NODE_FINISHING: NodeState
NODE_STOPPING: NodeState
NODE_TROUBLED: NodeState

class ControlFailure(_message.Message):
    __slots__ = ("what", "hint", "exit_code")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    what: str
    hint: str
    exit_code: int
    def __init__(self, what: _Optional[str] = ..., hint: _Optional[str] = ..., exit_code: _Optional[int] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("node_name", "member_key", "peer_id", "software", "protocol_version", "swarm", "swarm_name", "base", "state", "reason", "round", "slot", "slot_ends_in_ms", "slot_window_ms", "training", "device", "limits_acting", "peers_connected", "peers_known", "reachability", "addresses", "connection_failures", "member", "certifier", "members", "certifiers", "head", "justified", "final", "finality", "mine", "bytes_up", "bytes_down", "rank", "held_out_loss_base", "held_out_loss_now", "held_out_loss_round", "disk_used_bytes", "disk_free_bytes", "uptime_ms", "processes", "warnings", "disk_limit_bytes", "archive", "stall", "conflict", "now_ms")
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    MEMBER_KEY_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SWARM_FIELD_NUMBER: _ClassVar[int]
    SWARM_NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    SLOT_ENDS_IN_MS_FIELD_NUMBER: _ClassVar[int]
    SLOT_WINDOW_MS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_ACTING_FIELD_NUMBER: _ClassVar[int]
    PEERS_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    PEERS_KNOWN_FIELD_NUMBER: _ClassVar[int]
    REACHABILITY_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FAILURES_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    CERTIFIER_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    CERTIFIERS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    JUSTIFIED_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    FINALITY_FIELD_NUMBER: _ClassVar[int]
    MINE_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_LOSS_BASE_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_LOSS_NOW_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_LOSS_ROUND_FIELD_NUMBER: _ClassVar[int]
    DISK_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    UPTIME_MS_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    DISK_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARCHIVE_FIELD_NUMBER: _ClassVar[int]
    STALL_FIELD_NUMBER: _ClassVar[int]
    CONFLICT_FIELD_NUMBER: _ClassVar[int]
    NOW_MS_FIELD_NUMBER: _ClassVar[int]
    node_name: str
    member_key: bytes
    peer_id: str
    software: str
    protocol_version: int
    swarm: bytes
    swarm_name: str
    base: str
    state: NodeState
    reason: str
    round: int
    slot: int
    slot_ends_in_ms: int
    slot_window_ms: int
    training: TrainingProgress
    device: ComputeDevice
    limits_acting: _containers.RepeatedScalarFieldContainer[str]
    peers_connected: int
    peers_known: int
    reachability: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    connection_failures: _containers.RepeatedCompositeFieldContainer[ConnectionFailure]
    member: bool
    certifier: bool
    members: int
    certifiers: int
    head: CheckpointLine
    justified: CheckpointLine
    final: CheckpointLine
    finality: Finality
    mine: OwnContributions
    bytes_up: int
    bytes_down: int
    rank: AccumulatedRank
    held_out_loss_base: float
    held_out_loss_now: float
    held_out_loss_round: int
    disk_used_bytes: int
    disk_free_bytes: int
    uptime_ms: int
    processes: Processes
    warnings: _containers.RepeatedScalarFieldContainer[str]
    disk_limit_bytes: int
    archive: bool
    stall: Stall
    conflict: Conflict
    now_ms: int
    def __init__(self, node_name: _Optional[str] = ..., member_key: _Optional[bytes] = ..., peer_id: _Optional[str] = ..., software: _Optional[str] = ..., protocol_version: _Optional[int] = ..., swarm: _Optional[bytes] = ..., swarm_name: _Optional[str] = ..., base: _Optional[str] = ..., state: _Optional[_Union[NodeState, str]] = ..., reason: _Optional[str] = ..., round: _Optional[int] = ..., slot: _Optional[int] = ..., slot_ends_in_ms: _Optional[int] = ..., slot_window_ms: _Optional[int] = ..., training: _Optional[_Union[TrainingProgress, _Mapping]] = ..., device: _Optional[_Union[ComputeDevice, _Mapping]] = ..., limits_acting: _Optional[_Iterable[str]] = ..., peers_connected: _Optional[int] = ..., peers_known: _Optional[int] = ..., reachability: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., connection_failures: _Optional[_Iterable[_Union[ConnectionFailure, _Mapping]]] = ..., member: _Optional[bool] = ..., certifier: _Optional[bool] = ..., members: _Optional[int] = ..., certifiers: _Optional[int] = ..., head: _Optional[_Union[CheckpointLine, _Mapping]] = ..., justified: _Optional[_Union[CheckpointLine, _Mapping]] = ..., final: _Optional[_Union[CheckpointLine, _Mapping]] = ..., finality: _Optional[_Union[Finality, _Mapping]] = ..., mine: _Optional[_Union[OwnContributions, _Mapping]] = ..., bytes_up: _Optional[int] = ..., bytes_down: _Optional[int] = ..., rank: _Optional[_Union[AccumulatedRank, _Mapping]] = ..., held_out_loss_base: _Optional[float] = ..., held_out_loss_now: _Optional[float] = ..., held_out_loss_round: _Optional[int] = ..., disk_used_bytes: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ..., uptime_ms: _Optional[int] = ..., processes: _Optional[_Union[Processes, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., disk_limit_bytes: _Optional[int] = ..., archive: _Optional[bool] = ..., stall: _Optional[_Union[Stall, _Mapping]] = ..., conflict: _Optional[_Union[Conflict, _Mapping]] = ..., now_ms: _Optional[int] = ...) -> None: ...

class TrainingProgress(_message.Message):
    __slots__ = ("step", "of", "loss_first", "loss_last", "ends_in_ms", "num_tokens", "tokens_per_second", "share_of_time")
    STEP_FIELD_NUMBER: _ClassVar[int]
    OF_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIRST_FIELD_NUMBER: _ClassVar[int]
    LOSS_LAST_FIELD_NUMBER: _ClassVar[int]
    ENDS_IN_MS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SHARE_OF_TIME_FIELD_NUMBER: _ClassVar[int]
    step: int
    of: int
    loss_first: float
    loss_last: float
    ends_in_ms: int
    num_tokens: int
    tokens_per_second: float
    share_of_time: float
    def __init__(self, step: _Optional[int] = ..., of: _Optional[int] = ..., loss_first: _Optional[float] = ..., loss_last: _Optional[float] = ..., ends_in_ms: _Optional[int] = ..., num_tokens: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., share_of_time: _Optional[float] = ...) -> None: ...

class ComputeDevice(_message.Message):
    __slots__ = ("name", "memory_used_bytes", "memory_total_bytes", "threads")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    name: str
    memory_used_bytes: int
    memory_total_bytes: int
    threads: int
    def __init__(self, name: _Optional[str] = ..., memory_used_bytes: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., threads: _Optional[int] = ...) -> None: ...

class ConnectionFailure(_message.Message):
    __slots__ = ("address", "detail", "at_ms")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    address: str
    detail: str
    at_ms: int
    def __init__(self, address: _Optional[str] = ..., detail: _Optional[str] = ..., at_ms: _Optional[int] = ...) -> None: ...

class CheckpointLine(_message.Message):
    __slots__ = ("id", "slot", "round", "digest")
    ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    slot: int
    round: int
    digest: bytes
    def __init__(self, id: _Optional[bytes] = ..., slot: _Optional[int] = ..., round: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Finality(_message.Message):
    __slots__ = ("votes", "needed", "reason", "waiting_for", "provisional")
    VOTES_FIELD_NUMBER: _ClassVar[int]
    NEEDED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    PROVISIONAL_FIELD_NUMBER: _ClassVar[int]
    votes: int
    needed: int
    reason: str
    waiting_for: _containers.RepeatedScalarFieldContainer[str]
    provisional: bool
    def __init__(self, votes: _Optional[int] = ..., needed: _Optional[int] = ..., reason: _Optional[str] = ..., waiting_for: _Optional[_Iterable[str]] = ..., provisional: _Optional[bool] = ...) -> None: ...

class Stall(_message.Message):
    __slots__ = ("since_slot", "since_ms", "present", "missing", "provisional", "advice")
    SINCE_SLOT_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    PROVISIONAL_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    since_slot: int
    since_ms: int
    present: _containers.RepeatedCompositeFieldContainer[CertifierLine]
    missing: _containers.RepeatedCompositeFieldContainer[CertifierLine]
    provisional: CheckpointLine
    advice: str
    def __init__(self, since_slot: _Optional[int] = ..., since_ms: _Optional[int] = ..., present: _Optional[_Iterable[_Union[CertifierLine, _Mapping]]] = ..., missing: _Optional[_Iterable[_Union[CertifierLine, _Mapping]]] = ..., provisional: _Optional[_Union[CheckpointLine, _Mapping]] = ..., advice: _Optional[str] = ...) -> None: ...

class CertifierLine(_message.Message):
    __slots__ = ("key", "name", "handle", "last_vote_slot", "last_vote_ms", "connected", "retirement_signatures", "retirement_issued_ms")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    LAST_VOTE_SLOT_FIELD_NUMBER: _ClassVar[int]
    LAST_VOTE_MS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    RETIREMENT_SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    RETIREMENT_ISSUED_MS_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    name: str
    handle: str
    last_vote_slot: int
    last_vote_ms: int
    connected: bool
    retirement_signatures: int
    retirement_issued_ms: int
    def __init__(self, key: _Optional[bytes] = ..., name: _Optional[str] = ..., handle: _Optional[str] = ..., last_vote_slot: _Optional[int] = ..., last_vote_ms: _Optional[int] = ..., connected: _Optional[bool] = ..., retirement_signatures: _Optional[int] = ..., retirement_issued_ms: _Optional[int] = ...) -> None: ...

class Conflict(_message.Message):
    __slots__ = ("ours", "theirs", "chosen", "advice")
    OURS_FIELD_NUMBER: _ClassVar[int]
    THEIRS_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    ours: ConflictLine
    theirs: ConflictLine
    chosen: CheckpointLine
    advice: str
    def __init__(self, ours: _Optional[_Union[ConflictLine, _Mapping]] = ..., theirs: _Optional[_Union[ConflictLine, _Mapping]] = ..., chosen: _Optional[_Union[CheckpointLine, _Mapping]] = ..., advice: _Optional[str] = ...) -> None: ...

class ConflictLine(_message.Message):
    __slots__ = ("checkpoint", "voters")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    VOTERS_FIELD_NUMBER: _ClassVar[int]
    checkpoint: CheckpointLine
    voters: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, checkpoint: _Optional[_Union[CheckpointLine, _Mapping]] = ..., voters: _Optional[_Iterable[str]] = ...) -> None: ...

class OwnContributions(_message.Message):
    __slots__ = ("accepted", "refused", "late", "pending", "last_refusal")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    LAST_REFUSAL_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    refused: int
    late: int
    pending: int
    last_refusal: str
    def __init__(self, accepted: _Optional[int] = ..., refused: _Optional[int] = ..., late: _Optional[int] = ..., pending: _Optional[int] = ..., last_refusal: _Optional[str] = ...) -> None: ...

class AccumulatedRank(_message.Message):
    __slots__ = ("effective", "of", "round", "sampled", "matrices", "relative_error")
    EFFECTIVE_FIELD_NUMBER: _ClassVar[int]
    OF_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    MATRICES_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_ERROR_FIELD_NUMBER: _ClassVar[int]
    effective: float
    of: int
    round: int
    sampled: int
    matrices: int
    relative_error: float
    def __init__(self, effective: _Optional[float] = ..., of: _Optional[int] = ..., round: _Optional[int] = ..., sampled: _Optional[int] = ..., matrices: _Optional[int] = ..., relative_error: _Optional[float] = ...) -> None: ...

class Processes(_message.Message):
    __slots__ = ("daemon", "trainer", "worker", "p2pd", "daemon_resident_bytes")
    DAEMON_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    P2PD_FIELD_NUMBER: _ClassVar[int]
    DAEMON_RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    daemon: int
    trainer: int
    worker: int
    p2pd: int
    daemon_resident_bytes: int
    def __init__(self, daemon: _Optional[int] = ..., trainer: _Optional[int] = ..., worker: _Optional[int] = ..., p2pd: _Optional[int] = ..., daemon_resident_bytes: _Optional[int] = ...) -> None: ...

class RememberedStatus(_message.Message):
    __slots__ = ("status", "at_ms")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    status: StatusReply
    at_ms: int
    def __init__(self, status: _Optional[_Union[StatusReply, _Mapping]] = ..., at_ms: _Optional[int] = ...) -> None: ...

class HistoryRequest(_message.Message):
    __slots__ = ("round", "limit")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    round: int
    limit: int
    def __init__(self, round: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class HistoryReply(_message.Message):
    __slots__ = ("rounds", "contributions", "switches")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    SWITCHES_FIELD_NUMBER: _ClassVar[int]
    rounds: _containers.RepeatedCompositeFieldContainer[RoundLine]
    contributions: _containers.RepeatedCompositeFieldContainer[ContributionLine]
    switches: _containers.RepeatedCompositeFieldContainer[SwitchLine]
    def __init__(self, rounds: _Optional[_Iterable[_Union[RoundLine, _Mapping]]] = ..., contributions: _Optional[_Iterable[_Union[ContributionLine, _Mapping]]] = ..., switches: _Optional[_Iterable[_Union[SwitchLine, _Mapping]]] = ...) -> None: ...

class SwitchLine(_message.Message):
    __slots__ = ("at_ms", "left_round", "fork_round", "deltas", "deltas_kept", "deltas_waiting", "tokens", "tokens_kept")
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    LEFT_ROUND_FIELD_NUMBER: _ClassVar[int]
    FORK_ROUND_FIELD_NUMBER: _ClassVar[int]
    DELTAS_FIELD_NUMBER: _ClassVar[int]
    DELTAS_KEPT_FIELD_NUMBER: _ClassVar[int]
    DELTAS_WAITING_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_KEPT_FIELD_NUMBER: _ClassVar[int]
    at_ms: int
    left_round: int
    fork_round: int
    deltas: int
    deltas_kept: int
    deltas_waiting: int
    tokens: int
    tokens_kept: int
    def __init__(self, at_ms: _Optional[int] = ..., left_round: _Optional[int] = ..., fork_round: _Optional[int] = ..., deltas: _Optional[int] = ..., deltas_kept: _Optional[int] = ..., deltas_waiting: _Optional[int] = ..., tokens: _Optional[int] = ..., tokens_kept: _Optional[int] = ...) -> None: ...

class RoundLine(_message.Message):
    __slots__ = ("checkpoint", "kind", "standing", "proposer", "proposer_name", "accepted", "refused", "num_tokens", "num_bytes", "update_norm", "effective_rank", "held_out_loss", "adopted_at_ms")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    PROPOSER_FIELD_NUMBER: _ClassVar[int]
    PROPOSER_NAME_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    UPDATE_NORM_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_RANK_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_LOSS_FIELD_NUMBER: _ClassVar[int]
    ADOPTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    checkpoint: CheckpointLine
    kind: str
    standing: str
    proposer: bytes
    proposer_name: str
    accepted: int
    refused: int
    num_tokens: int
    num_bytes: int
    update_norm: float
    effective_rank: float
    held_out_loss: float
    adopted_at_ms: int
    def __init__(self, checkpoint: _Optional[_Union[CheckpointLine, _Mapping]] = ..., kind: _Optional[str] = ..., standing: _Optional[str] = ..., proposer: _Optional[bytes] = ..., proposer_name: _Optional[str] = ..., accepted: _Optional[int] = ..., refused: _Optional[int] = ..., num_tokens: _Optional[int] = ..., num_bytes: _Optional[int] = ..., update_norm: _Optional[float] = ..., effective_rank: _Optional[float] = ..., held_out_loss: _Optional[float] = ..., adopted_at_ms: _Optional[int] = ...) -> None: ...

class ContributionLine(_message.Message):
    __slots__ = ("id", "member", "member_name", "base_round", "slot", "round", "verdict", "rule", "detail", "weight", "num_tokens", "num_steps", "loss_first", "loss_last", "num_bytes", "created_at_ms", "mine")
    ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    MEMBER_NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_ROUND_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIRST_FIELD_NUMBER: _ClassVar[int]
    LOSS_LAST_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    MINE_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    member: bytes
    member_name: str
    base_round: int
    slot: int
    round: int
    verdict: str
    rule: str
    detail: str
    weight: float
    num_tokens: int
    num_steps: int
    loss_first: float
    loss_last: float
    num_bytes: int
    created_at_ms: int
    mine: bool
    def __init__(self, id: _Optional[bytes] = ..., member: _Optional[bytes] = ..., member_name: _Optional[str] = ..., base_round: _Optional[int] = ..., slot: _Optional[int] = ..., round: _Optional[int] = ..., verdict: _Optional[str] = ..., rule: _Optional[str] = ..., detail: _Optional[str] = ..., weight: _Optional[float] = ..., num_tokens: _Optional[int] = ..., num_steps: _Optional[int] = ..., loss_first: _Optional[float] = ..., loss_last: _Optional[float] = ..., num_bytes: _Optional[int] = ..., created_at_ms: _Optional[int] = ..., mine: _Optional[bool] = ...) -> None: ...

class PeersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PeersReply(_message.Message):
    __slots__ = ("peers",)
    PEERS_FIELD_NUMBER: _ClassVar[int]
    peers: _containers.RepeatedCompositeFieldContainer[PeerLine]
    def __init__(self, peers: _Optional[_Iterable[_Union[PeerLine, _Mapping]]] = ...) -> None: ...

class PeerLine(_message.Message):
    __slots__ = ("key", "name", "addresses", "connected", "outbound", "latency_ms", "last_seen_ms", "head_slot", "archive", "member", "certifier", "software", "last_vote_slot", "last_vote_ms")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    OUTBOUND_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_MS_FIELD_NUMBER: _ClassVar[int]
    HEAD_SLOT_FIELD_NUMBER: _ClassVar[int]
    ARCHIVE_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    CERTIFIER_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    LAST_VOTE_SLOT_FIELD_NUMBER: _ClassVar[int]
    LAST_VOTE_MS_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    connected: bool
    outbound: bool
    latency_ms: float
    last_seen_ms: int
    head_slot: int
    archive: bool
    member: bool
    certifier: bool
    software: str
    last_vote_slot: int
    last_vote_ms: int
    def __init__(self, key: _Optional[bytes] = ..., name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., connected: _Optional[bool] = ..., outbound: _Optional[bool] = ..., latency_ms: _Optional[float] = ..., last_seen_ms: _Optional[int] = ..., head_slot: _Optional[int] = ..., archive: _Optional[bool] = ..., member: _Optional[bool] = ..., certifier: _Optional[bool] = ..., software: _Optional[str] = ..., last_vote_slot: _Optional[int] = ..., last_vote_ms: _Optional[int] = ...) -> None: ...

class MembersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MembersReply(_message.Message):
    __slots__ = ("members", "invites")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    INVITES_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[MemberLine]
    invites: _containers.RepeatedCompositeFieldContainer[InviteLine]
    def __init__(self, members: _Optional[_Iterable[_Union[MemberLine, _Mapping]]] = ..., invites: _Optional[_Iterable[_Union[InviteLine, _Mapping]]] = ...) -> None: ...

class MemberLine(_message.Message):
    __slots__ = ("key", "name", "contributes", "certifies", "admitted_slot", "standing", "accepted", "refused", "last_round", "root", "me", "last_vote_slot", "last_vote_ms")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    CERTIFIES_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_SLOT_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    LAST_ROUND_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    ME_FIELD_NUMBER: _ClassVar[int]
    LAST_VOTE_SLOT_FIELD_NUMBER: _ClassVar[int]
    LAST_VOTE_MS_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    name: str
    contributes: bool
    certifies: bool
    admitted_slot: int
    standing: str
    accepted: int
    refused: int
    last_round: int
    root: bool
    me: bool
    last_vote_slot: int
    last_vote_ms: int
    def __init__(self, key: _Optional[bytes] = ..., name: _Optional[str] = ..., contributes: _Optional[bool] = ..., certifies: _Optional[bool] = ..., admitted_slot: _Optional[int] = ..., standing: _Optional[str] = ..., accepted: _Optional[int] = ..., refused: _Optional[int] = ..., last_round: _Optional[int] = ..., root: _Optional[bool] = ..., me: _Optional[bool] = ..., last_vote_slot: _Optional[int] = ..., last_vote_ms: _Optional[int] = ...) -> None: ...

class InviteLine(_message.Message):
    __slots__ = ("grant", "invite_key", "count", "used", "not_after_ms", "certifies", "revoked")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    INVITE_KEY_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    CERTIFIES_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    grant: bytes
    invite_key: bytes
    count: int
    used: int
    not_after_ms: int
    certifies: bool
    revoked: bool
    def __init__(self, grant: _Optional[bytes] = ..., invite_key: _Optional[bytes] = ..., count: _Optional[int] = ..., used: _Optional[int] = ..., not_after_ms: _Optional[int] = ..., certifies: _Optional[bool] = ..., revoked: _Optional[bool] = ...) -> None: ...

class InviteRequest(_message.Message):
    __slots__ = ("count", "valid_for_ms", "certify")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    VALID_FOR_MS_FIELD_NUMBER: _ClassVar[int]
    CERTIFY_FIELD_NUMBER: _ClassVar[int]
    count: int
    valid_for_ms: int
    certify: bool
    def __init__(self, count: _Optional[int] = ..., valid_for_ms: _Optional[int] = ..., certify: _Optional[bool] = ...) -> None: ...

class InviteReply(_message.Message):
    __slots__ = ("link", "grant", "note")
    LINK_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    link: str
    grant: bytes
    note: str
    def __init__(self, link: _Optional[str] = ..., grant: _Optional[bytes] = ..., note: _Optional[str] = ...) -> None: ...

class RevokeRequest(_message.Message):
    __slots__ = ("subject", "whole_tree", "preview")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    WHOLE_TREE_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    subject: str
    whole_tree: bool
    preview: bool
    def __init__(self, subject: _Optional[str] = ..., whole_tree: _Optional[bool] = ..., preview: _Optional[bool] = ...) -> None: ...

class RevokeReply(_message.Message):
    __slots__ = ("subject", "note", "admitted", "retiring")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    RETIRING_FIELD_NUMBER: _ClassVar[int]
    subject: bytes
    note: str
    admitted: _containers.RepeatedScalarFieldContainer[str]
    retiring: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, subject: _Optional[bytes] = ..., note: _Optional[str] = ..., admitted: _Optional[_Iterable[str]] = ..., retiring: _Optional[_Iterable[str]] = ...) -> None: ...

class RetireRequest(_message.Message):
    __slots__ = ("subjects", "preview")
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    subjects: _containers.RepeatedScalarFieldContainer[str]
    preview: bool
    def __init__(self, subjects: _Optional[_Iterable[str]] = ..., preview: _Optional[bool] = ...) -> None: ...

class RetireReply(_message.Message):
    __slots__ = ("retired", "remaining", "signatures_needed", "stalled", "stalls_in_slots", "stalls_in_ms", "note", "peers_connected")
    RETIRED_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_NEEDED_FIELD_NUMBER: _ClassVar[int]
    STALLED_FIELD_NUMBER: _ClassVar[int]
    STALLS_IN_SLOTS_FIELD_NUMBER: _ClassVar[int]
    STALLS_IN_MS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    PEERS_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    retired: _containers.RepeatedCompositeFieldContainer[CertifierLine]
    remaining: _containers.RepeatedScalarFieldContainer[str]
    signatures_needed: int
    stalled: bool
    stalls_in_slots: int
    stalls_in_ms: int
    note: str
    peers_connected: int
    def __init__(self, retired: _Optional[_Iterable[_Union[CertifierLine, _Mapping]]] = ..., remaining: _Optional[_Iterable[str]] = ..., signatures_needed: _Optional[int] = ..., stalled: _Optional[bool] = ..., stalls_in_slots: _Optional[int] = ..., stalls_in_ms: _Optional[int] = ..., note: _Optional[str] = ..., peers_connected: _Optional[int] = ...) -> None: ...

class AdoptRequest(_message.Message):
    __slots__ = ("checkpoint", "preview")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    preview: bool
    def __init__(self, checkpoint: _Optional[str] = ..., preview: _Optional[bool] = ...) -> None: ...

class AdoptReply(_message.Message):
    __slots__ = ("conflict", "checkpoint", "signs", "follows", "signatures", "signatures_needed", "fork_round", "rounds_left", "final_rounds_left", "deltas_left", "deltas_offered", "note")
    CONFLICT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    SIGNS_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_NEEDED_FIELD_NUMBER: _ClassVar[int]
    FORK_ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    FINAL_ROUNDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    DELTAS_LEFT_FIELD_NUMBER: _ClassVar[int]
    DELTAS_OFFERED_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    conflict: Conflict
    checkpoint: CheckpointLine
    signs: bool
    follows: bool
    signatures: int
    signatures_needed: int
    fork_round: int
    rounds_left: int
    final_rounds_left: int
    deltas_left: int
    deltas_offered: bool
    note: str
    def __init__(self, conflict: _Optional[_Union[Conflict, _Mapping]] = ..., checkpoint: _Optional[_Union[CheckpointLine, _Mapping]] = ..., signs: _Optional[bool] = ..., follows: _Optional[bool] = ..., signatures: _Optional[int] = ..., signatures_needed: _Optional[int] = ..., fork_round: _Optional[int] = ..., rounds_left: _Optional[int] = ..., final_rounds_left: _Optional[int] = ..., deltas_left: _Optional[int] = ..., deltas_offered: _Optional[bool] = ..., note: _Optional[str] = ...) -> None: ...

class LeaveSwarmRequest(_message.Message):
    __slots__ = ("certifier_role_only",)
    CERTIFIER_ROLE_ONLY_FIELD_NUMBER: _ClassVar[int]
    certifier_role_only: bool
    def __init__(self, certifier_role_only: _Optional[bool] = ...) -> None: ...

class LeaveSwarmReply(_message.Message):
    __slots__ = ("note",)
    NOTE_FIELD_NUMBER: _ClassVar[int]
    note: str
    def __init__(self, note: _Optional[str] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("for_ms",)
    FOR_MS_FIELD_NUMBER: _ClassVar[int]
    for_ms: int
    def __init__(self, for_ms: _Optional[int] = ...) -> None: ...

class PauseReply(_message.Message):
    __slots__ = ("note",)
    NOTE_FIELD_NUMBER: _ClassVar[int]
    note: str
    def __init__(self, note: _Optional[str] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeReply(_message.Message):
    __slots__ = ("note",)
    NOTE_FIELD_NUMBER: _ClassVar[int]
    note: str
    def __init__(self, note: _Optional[str] = ...) -> None: ...

class FinishRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FinishReply(_message.Message):
    __slots__ = ("note",)
    NOTE_FIELD_NUMBER: _ClassVar[int]
    note: str
    def __init__(self, note: _Optional[str] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopReply(_message.Message):
    __slots__ = ("pid",)
    PID_FIELD_NUMBER: _ClassVar[int]
    pid: int
    def __init__(self, pid: _Optional[int] = ...) -> None: ...

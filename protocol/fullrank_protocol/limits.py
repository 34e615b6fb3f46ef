"""Every bound of the protocol that is not a swarm's own choice (protocol sections 2 to 10).

A swarm's own bounds (delta size, ranks, scales, cohort) stand in its genesis; these here bound the genesis.
"""

PROTOCOL_VERSION = 1
"""Version of envelopes and signed payloads. Others are refused: a signature says nothing about a format not known."""

RULE_VERSION = 1
"""Version of weighing, applying and finality that this code computes. Nodes must agree bit for bit."""

ID_BYTES = 32
"""Length of every id: a SHA-256 digest."""

KEY_BYTES = 32
"""Length of a raw Ed25519 public key, and of the secret seed behind it."""

SIGNATURE_BYTES = 64
"""Length of an Ed25519 signature."""

NONCE_BYTES = 16
"""Length of the genesis nonce: enough that two swarms never share an id by accident."""

# ---- sizes of whole envelopes ----

MAX_RECORD_BYTES = 1024
"""Largest small envelope. A DHT dictionary travels whole in one 4 MiB message and breaks silently above it."""

MAX_CHECKPOINT_BYTES = 4 << 20
"""Largest checkpoint envelope that any genesis may allow: a thousand contributions and votes take about 600 KB."""

MAX_GENESIS_BYTES = 16 << 20
"""Largest genesis envelope: about 100 bytes for each tensor and module, so 80 000 of both."""

MAX_ENVELOPE_BYTES = MAX_GENESIS_BYTES
"""Nothing larger is parsed at all."""

# ---- what a checkpoint carries ----

MAX_CARRIED_VOTES = 4096
"""Votes in one checkpoint: eight slots' worth of the largest certifier set."""

MAX_CARRIED_RECORDS = 256
"""Membership records in one checkpoint. Each costs every node a signature check, about 0.2 ms."""

MAX_CARRIED_EVIDENCE = 64
"""Evidence in one checkpoint: three signature checks each."""

MAX_CARRIED_REFUSED = 256
"""Refused contributions in one checkpoint, so that a flood of bad ones cannot fill it."""

MAX_CORRECTED = 65_536
"""Contributions taken back by one correction: 64 members for a thousand rounds. About 45 bytes each."""

MAX_REFUSALS = 16
"""Signed refusals of one checkpoint that anybody keeps: each bad one would bring as many as there are certifiers."""

# ---- texts ----

MAX_NAME_BYTES = 64
"""A swarm's or a member's name, UTF-8."""

MAX_DETAIL_BYTES = 400
"""The reason in a refusal, UTF-8, so that a signed refusal stays a record."""

MAX_REFERENCE_BYTES = 256
"""Base model reference, revision or licence."""

MAX_TENSOR_NAME_BYTES = 256
"""Name of a parameter."""

MAX_FILE_NAME_BYTES = 200
"""Path of a base model's file below its directory; common file systems end at 255 bytes a part."""

MAX_ADDRESSES = 8
"""Addresses in one peer record: interfaces times transports of an ordinary machine."""

MAX_ADDRESS_BYTES = 200
"""One multiaddress. A relayed one with two peer ids takes about 170."""

MAX_LINK_PEERS = 16
"""Peers in one link: enough to survive departures, short enough to paste."""

MAX_LINK_CHARS = 4096
"""Longest link that is parsed."""

# ---- blobs ----

CHUNK_BYTES = 1 << 20
"""Blob chunk: the unit of verification and resumption. Raw streams reach full speed from 256 KiB on."""

MAX_BLOB_BYTES = 64 << 30
"""Largest blob, so that the list of its chunk hashes stays at 2 MiB."""

# ---- the genesis ----

MAX_TENSORS = 200_000
"""Parameters of a base model. The largest open mixture-of-experts models have about 100 000."""

MAX_MODULES = 65_536
"""Adapted tensors."""

MAX_DIMENSIONS = 8
"""Dimensions of one tensor."""

MAX_FEATURES = 1 << 24
"""One side of an adapted matrix; vocabularies stay below 2^19."""

MAX_ELEMENTS = 1 << 35
"""Elements of one tensor: 128 GiB as float32. Times 127^4 they stay within int64, as exact inner products need."""

MAX_BASE_FILES = 1024
"""Configuration and tokenizer files, or weight files, of a base model."""

MAX_SMALL_FILE_BYTES = 256 << 20
"""One configuration or tokenizer file; the largest tokenizers take about 35 MB."""

MAX_RANK = 1024
"""Components of one contribution for one module that any genesis may allow. Its square times 2^40 fits int64."""

MAX_DELTA_BYTES = 16 << 30
"""Largest encoded delta that any genesis may allow."""

KNOWN_CODECS = frozenset({1})
"""Delta encodings that this version decodes."""

MIN_WINDOW_MS = 100
"""Shortest slot. Below it, sending and voting on one machine already takes longer."""

MAX_WINDOW_MS = 7 * 86_400_000
"""Longest slot: a week."""

MIN_STALL_SLOTS = 4
"""Fewest slots without finality that count as a stall: a lost slot or two delays finality in normal running."""

MAX_STALL_SLOTS = 1 << 24
"""Most slots without finality before a stall: nineteen days of the shortest slots."""

MIN_SCALE_EXPONENT = -64
"""Smallest scale exponent: 2^-64 times the largest integers is far below any float32 weight's last bit that matters."""

MAX_SCALE_EXPONENT = 16
"""Largest scale exponent: 127 * 127 * 15 * 2^16 is about 1.6e10, beyond every sane update."""

MAX_CONTRIBUTIONS = 1024
"""Cohort of one checkpoint: the Gram matrix and the time to fetch grow with it."""

MAX_STALENESS_ROUNDS = 64
"""Rounds for which blobs and bases of late deltas have to be kept at most."""

MAX_WEISZFELD_STEPS = 64
"""Steps of the geometric median; eight are enough in practice."""

MAX_TRAILING_ROUNDS = 1024
"""Updates whose norms and breadths are remembered."""

MAX_ROOT_KEYS = 16
"""Root keys of one swarm."""

MAX_CERTIFIERS = 512
"""Certifiers of one swarm, so that a slot's votes take about 120 KB."""

MAX_GRANT_COUNT = 1_000_000
"""Members that one invite may admit."""

# ---- numbers ----

MAX_SLOT = 1 << 53
"""Slots and rounds stay exact in every language's numbers."""

MAX_TIME_MS = 253_402_300_799_999
"""The last millisecond of the year 9999."""

MAX_TOKENS = 1 << 40
"""Tokens of one contribution."""

MAX_STEPS = 1_000_000
"""Optimiser steps of one contribution."""

# ---- time ----

CLOCK_TOLERANCE_MS = 10_000
"""How far in the receiver's future a checkpoint's slot may begin before it is held back (section 5)."""

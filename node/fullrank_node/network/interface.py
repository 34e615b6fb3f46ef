"""What a node asks of its network, and what the network asks of a node (protocol sections 9 to 11).

`PeerNetwork` (peer.py) speaks libp2p; a network in memory serves the simulator. Peers are named by
their 32-byte Ed25519 keys: the transport proves them, so whoever is named here really spoke.
Everything that arrives is a hint until its own signature has been checked by the caller.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fullrank_node.network.limits import Traffic
from fullrank_protocol.blob import BlobRef
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.wire import peer_pb2

OnPeer = Callable[[bytes, bool], None]
"""Called in the loop's thread with (peer key, connected) when a peer appears or vanishes; must not block."""


RefusalOf = Callable[[bytes], str | None]
"""Why a peer is shut out now, as a sentence that it can read; None where it is welcome."""


def welcome(peer: bytes) -> str | None:
    """Nobody is shut out."""
    del peer
    return None


class BlobWriter(Protocol):
    """A partial blob on disk; survives the process."""

    def missing(self) -> Sequence[int]:
        """Ascending numbers of the chunks that are not here yet."""

    def write_chunk(self, index: int, data: bytes) -> None:
        """Verify and keep one chunk.

        Raises:
            RejectError: The bytes do not hash to the chunk's hash.
        """

    def finish(self) -> object:
        """Make the complete blob durable under its id, and close."""

    def close(self) -> None:
        """Let go of the partial file; a later writer goes on from it."""


class BlobStore(Protocol):
    """The blobs of this node, as far as the network needs them. Called from threads, one call a blob at a time."""

    def has(self, blob_id: bytes) -> bool:
        """Whether the whole blob is here."""

    def header(self, blob_id: bytes) -> tuple[int, Sequence[bytes]]:
        """Length in bytes and SHA-256 of every chunk.

        Raises:
            KeyError: No such blob.
        """

    def read_chunk(self, blob_id: bytes, index: int) -> bytes:
        """One chunk.

        Raises:
            KeyError: No such blob.
            IndexError: No such chunk.
        """

    def writer(self, ref: BlobRef, chunk_sha256s: Sequence[bytes]) -> BlobWriter:
        """Begin or resume the blob `ref`; the hashes must already be checked against it."""


class Inbound(Protocol):
    """What a node answers to its peers."""

    async def handle(self, peer: bytes, request: peer_pb2.Request) -> peer_pb2.Response:
        """Answer one request of `peer`; its version and swarm have been checked.

        Called for everything but GetBlob and HasBlobs, which the network serves from `blobs()`, several
        times concurrently. An exception ends the stream and is logged: it is a bug of this node.
        """

    def blobs(self) -> BlobStore:
        """Where blobs are served from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInfo:
    """One connected peer of this swarm.

    Attributes:
        addresses: Where it was dialled or announced that it can be dialled; may be empty.
        outbound: This node dialled it.
        last_seen_ms: When it last answered or asked something.
        latency_ms: Round trip of the greeting; None while unknown.
    """

    key: bytes
    addresses: tuple[str, ...] = ()
    connected: bool = True
    outbound: bool = False
    last_seen_ms: int = 0
    latency_ms: float | None = None


class NetworkError(Exception):
    """A peer, not this node, is the reason; one sentence that a person understands."""


class PeerUnreachable(NetworkError):  # noqa: N818 - says what is so
    """No connection, it broke, or no answer came in time."""


class DialError(PeerUnreachable):
    """No address of a peer answered.

    Attributes:
        by_address: Why, for each address that was tried.
        again_soon: Nothing was tried: p2pd is still in the pause after an earlier failure.
    """

    def __init__(self, message: str, *, by_address: Mapping[str, str], again_soon: bool = False) -> None:
        super().__init__(message)
        self.by_address = dict(by_address)
        self.again_soon = again_soon


class OtherSwarm(PeerUnreachable):
    """The peer is there, and does not serve this swarm."""


class PeerFailure(NetworkError):  # noqa: N818 - says what is so
    """The peer answered with a Failure.

    Attributes:
        code: peer_pb2.Failure.Code.
        protocol_version: What the peer speaks, 0 where it did not say.
    """

    def __init__(self, message: str, *, code: int, protocol_version: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.protocol_version = protocol_version


class BlobUnavailable(NetworkError):  # noqa: N818 - says what is so
    """No peer had the blob, whole and untampered.

    Attributes:
        reasons: Why, per peer asked.
    """

    def __init__(self, message: str, *, reasons: Mapping[bytes, str]) -> None:
        super().__init__(message)
        self.reasons = dict(reasons)


class Network(Protocol):
    """A way onto the network."""

    @property
    def key(self) -> bytes:
        """This node's public key."""

    async def start(self) -> None:
        """Listen and begin to look for peers; returns without waiting for one.

        Raises:
            NodeError: The port is taken or p2pd does not start.
        """

    async def close(self) -> None:
        """Leave; nothing of the network is left running. May be called twice."""

    async def wait_closed(self) -> None:
        """Return when the network has been closed; raise what ended it if that was anything else."""

    def addresses(self) -> list[str]:
        """Multiaddresses at which this node can be dialled, ending in /p2p/<id>; empty when nobody can."""

    async def connect(self, address: str) -> bytes:
        """Connect to the peer at `address` (returns at once when connected already); its key.

        Raises:
            NetworkError: Not an address, or nobody of this swarm answers there.
        """

    def peers(self) -> list[PeerInfo]:
        """Peers connected now that belong to this swarm and speak this version."""

    def traffic(self) -> Traffic:
        """Bytes sent and received so far."""

    def connection_errors(self) -> dict[str, str]:
        """Why there is no connection yet, per address that is being tried (again and again)."""

    def refusal(self) -> NetworkError | None:
        """Why to wait for nobody: every known peer is there, and of another swarm or version.

        An `OtherSwarm` or `PeerFailure` of one of them; None while anybody may still answer otherwise.
        """

    async def request(self, peer: bytes, request: peer_pb2.Request, *, timeout_s: float) -> peer_pb2.Response:
        """Ask a peer; version and swarm are filled in. Never returns a Failure.

        Raises:
            PeerFailure: The peer refused; `code` says why.
            PeerUnreachable: No answer within `timeout_s`.
        """

    async def broadcast(self, envelopes: Sequence[bytes]) -> None:
        """Offer objects to every connected peer; returns at once, a slow peer loses its oldest offers."""

    async def fetch_blob(self, ref: BlobRef, *, providers: Sequence[bytes], blobs: BlobStore) -> None:
        """Bring a blob into `blobs`, from `providers` first and then from any connected peer that has it.

        Raises:
            BlobUnavailable: Nobody had it; call again later, what has arrived is kept.
            NodeError: The disk is full.
        """

    async def publish(self, kind: str, slot: int, envelope: Envelope) -> None:
        """Put a hint, signed by this node's own key, on the DHT and renew it while it matters; returns at once.

        Kinds: "peer", "contribution", "checkpoint", "vote", "record". An author's later hint of the same
        kind and slot replaces the earlier one.
        """

    async def lookup(self, kind: str, slot: int) -> list[bytes]:
        """Envelopes found on the DHT, to be verified again; empty when there are none or the DHT fails."""

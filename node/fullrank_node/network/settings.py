"""What an operator may choose about the network."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fullrank_node.network.limits import StreamLimits, TransferLimits

DEFAULT_LISTEN = ("/ip4/0.0.0.0/tcp/0",)
LOOPBACK_LISTEN = ("/ip4/127.0.0.1/tcp/0",)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """How this node takes part.

    Attributes:
        listen: Multiaddresses without peer id. Port 0: the port of the last start where it is free, else any.
        announce: What others are told instead of what is found on the machine; for forwarded ports.
        no_listen: Nobody can dial this node (behind NAT): it serves over the connections that it dialled.
        bootstrap: Addresses to connect to, from the link and the configuration.
        max_peers: Connections that this node seeks; others may open more.
        is_archive: Whether this node has all blobs, as the peer record says.
        software: What the peer record says this node runs.
        runtime_dir: Directory for p2pd's sockets' own directory; must be short (socket paths end at 107 characters).
        slot_window_ms: Length of a slot, where the genesis is known: bounds the life of records.
        start_timeout_s: For p2pd to start.
        dial_timeout_s: For one attempt to connect.
        max_backoff_s: Longest pause between two attempts at one peer.
    """

    listen: tuple[str, ...] = DEFAULT_LISTEN
    announce: tuple[str, ...] = ()
    no_listen: bool = False
    bootstrap: tuple[str, ...] = ()
    max_peers: int = 32
    is_archive: Callable[[], bool] = lambda: False
    software: str = ""
    runtime_dir: Path | None = None
    slot_window_ms: int | None = None
    start_timeout_s: float = 20.0
    dial_timeout_s: float = 10.0
    max_backoff_s: float = 60.0
    streams: StreamLimits = field(default_factory=StreamLimits)
    transfers: TransferLimits = field(default_factory=TransferLimits)

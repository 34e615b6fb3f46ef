"""The last status a daemon gave before it ended, kept in the home for when nobody answers."""

from pathlib import Path

from google.protobuf.message import DecodeError

from fullrank_node.api import control_pb2 as wire
from fullrank_node.clock import SystemClock
from fullrank_node.files import write_atomically

FILE_NAME = "status.bin"


def write(path: Path, status: wire.StatusReply) -> None:
    """Replaces the remembered status by `status`, stamped with the present time.

    Raises:
        NodeError: The disk is full.
    """
    remembered = wire.RememberedStatus(status=status, at_ms=SystemClock().now_ms())
    write_atomically(path, remembered.SerializeToString())


def read(path: Path) -> wire.RememberedStatus | None:
    """The remembered status; None where there is none or the file is damaged (it only informs)."""
    try:
        return wire.RememberedStatus.FromString(path.read_bytes())
    except (OSError, DecodeError):
        return None

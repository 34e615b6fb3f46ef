"""How a failure with a cure crosses the control socket: as trailing metadata of the call, whole with hint and code."""

from collections.abc import Iterable

from fullrank_node.api import control_pb2 as wire
from fullrank_node.errors import ExitCode, NodeError

METADATA_KEY = "fullrank-failure-bin"
"""Holds a serialised ControlFailure; "-bin" lets the value hold any bytes, where others must be ASCII."""

Metadata = tuple[tuple[str, bytes], ...]


def to_metadata(error: NodeError) -> Metadata:
    """The metadata that carries `error`."""
    failure = wire.ControlFailure(what=str(error), hint=error.hint, exit_code=error.exit_code)
    return ((METADATA_KEY, failure.SerializeToString()),)


def from_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> NodeError | None:
    """The error that the metadata carries; None where it carries none."""
    for key, value in metadata or ():
        if key == METADATA_KEY and isinstance(value, bytes):
            failure = wire.ControlFailure.FromString(value)
            return NodeError(failure.what, hint=failure.hint, exit_code=_exit_code(failure.exit_code))
    return None


def _exit_code(number: int) -> ExitCode:
    try:
        return ExitCode(number)
    except ValueError:
        return ExitCode.ERROR

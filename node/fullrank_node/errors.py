"""What the operator is told: one sentence on what happened, one hint that helps, one exit code."""

import enum


class ExitCode(enum.IntEnum):
    """Exit codes of every command; literals, because `os.EX_*` is missing on some systems."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NO_PEERS = 69
    """No peer answered, or no daemon is running."""
    DISK = 74
    RETRY = 75
    PROTOCOL = 76
    PERMISSION = 77
    CONFIG = 78


class NodeError(Exception):
    """A failure with a cure.

    Attributes:
        hint: One sentence or command that helps; may be empty.
        exit_code: What the command line exits with.
    """

    def __init__(self, message: str, *, hint: str = "", exit_code: ExitCode = ExitCode.ERROR) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code


def node_error_in(error: BaseException) -> NodeError | None:
    """The first NodeError inside an error, which task groups wrap as often as they are nested."""
    if isinstance(error, NodeError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := node_error_in(inner)) is not None), None)
    return None

"""What all nodes of one process may share, because it is a pure function of bytes, and who tidies up after them."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from fullrank_protocol import fork_choice, intake, worth
from fullrank_protocol.checkpoint import Checkpoint
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import RejectError
from fullrank_protocol.genesis import Genesis

_REMEMBERED = 20_000

_OPENERS = (
    (intake, "open_contribution"),
    (intake, "open_vote"),
    (intake, "open_refusal"),
    (intake, "open_evidence"),
    (worth, "open_place"),
    (worth, "open_checkpoint"),
)


@contextlib.contextmanager
def opened_once() -> Iterator[None]:
    """While it lasts, nodes share what they opened or refused to, and the chain states that follow from it."""
    extend: Callable[..., Any] = getattr(fork_choice, "extend")  # noqa: B009 - it is imported there, not exported.
    extend_once = _Once(extend)

    def extended(parent: Any, checkpoint: Checkpoint, *, genesis: Genesis, lookup: Any) -> Any:
        return extend_once(checkpoint.id, parent, checkpoint, genesis=genesis, lookup=lookup)

    with contextlib.ExitStack() as stack:
        for module, name in _OPENERS:
            stack.enter_context(mock.patch.object(module, name, _opener(getattr(module, name))))
        stack.enter_context(mock.patch.object(fork_choice, "extend", extended))
        yield


def _opener(open_it: Callable[..., Any]) -> Callable[..., Any]:
    once = _Once(open_it)

    def opened(envelope: Envelope, *genesis: Genesis) -> Any:
        return once(envelope.id, envelope, *genesis)

    return opened


class _Once:
    """Calls a function once for each key; a rule that was found broken is remembered like a value."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._values: dict[bytes, Any] = {}
        self._broken: dict[bytes, RejectError] = {}

    def __call__(self, key: bytes, *args: Any, **fields: Any) -> Any:
        try:
            return self._values[key]
        except KeyError:
            pass
        if (broken := self._broken.get(key)) is not None:
            raise RejectError(broken.rule, broken.detail)
        try:
            value = self._values[key] = self._function(*args, **fields)
        except RejectError as error:
            self._broken[key] = RejectError(error.rule, error.detail)
            raise
        return value


@contextlib.contextmanager
def collected_afterwards() -> Iterator[None]:
    """Looks for unreachable objects once at the end: a world makes millions that all live as long as it does."""
    was_enabled = gc.isenabled()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
        if was_enabled:
            gc.enable()

"""Opens each signed object once for all nodes of the process: opening is a pure function of its bytes."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from fullrank_protocol import fork_choice, intake
from fullrank_protocol.checkpoint import Checkpoint
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.genesis import Genesis

_REMEMBERED = 20_000


@contextlib.contextmanager
def opened_once() -> Iterator[None]:
    """While it lasts, nodes share what they opened, and the chain states that follow from it."""

    def once(name: str) -> Any:
        open_it: Callable[..., Any] = getattr(intake, name)
        genesis_of: list[Genesis] = []

        @functools.lru_cache(maxsize=_REMEMBERED)
        def remembered(envelope: Envelope) -> Any:
            return open_it(envelope, *genesis_of)

        def opened(envelope: Envelope, *genesis: Genesis) -> Any:
            genesis_of[:] = genesis
            return remembered(envelope)

        return mock.patch.object(intake, name, opened)

    extend: Callable[..., Any] = getattr(fork_choice, "extend")  # noqa: B009 - it is imported there, not exported.
    states: dict[bytes, Any] = {}

    def extended(parent: Any, checkpoint: Checkpoint, *, genesis: Genesis, lookup: Any) -> Any:
        if checkpoint.id not in states:
            states[checkpoint.id] = extend(parent, checkpoint, genesis=genesis, lookup=lookup)
        return states[checkpoint.id]

    with (
        once("open_contribution"),
        once("open_checkpoint"),
        once("open_vote"),
        mock.patch.object(fork_choice, "extend", extended),
    ):
        yield

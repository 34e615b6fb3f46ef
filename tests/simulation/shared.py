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

    def once(open_it: Callable[..., Any]) -> Callable[..., Any]:
        @functools.lru_cache(maxsize=_REMEMBERED)
        def remembered(envelope: Envelope) -> Any:
            return open_it(envelope, *genesis_of)

        genesis_of: list[Genesis] = []

        def opened(envelope: Envelope, *genesis: Genesis) -> Any:
            genesis_of[:] = genesis
            return remembered(envelope)

        return opened

    extend = fork_choice.extend
    states: dict[bytes, Any] = {}

    def extended(parent: Any, checkpoint: Checkpoint, *, genesis: Genesis, lookup: Any) -> Any:
        if checkpoint.id not in states:
            states[checkpoint.id] = extend(parent, checkpoint, genesis=genesis, lookup=lookup)
        return states[checkpoint.id]

    with (
        mock.patch.object(intake, "open_contribution", once(intake.open_contribution)),
        mock.patch.object(intake, "open_checkpoint", once(intake.open_checkpoint)),
        mock.patch.object(intake, "open_vote", once(intake.open_vote)),
        mock.patch.object(fork_choice, "extend", extended),
    ):
        yield

"""Bringing hivemind in: late, because it brings torch, and quietly, because most that it reports is routine."""

import importlib
import logging
import os
import warnings
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fullrank_node.network.dht import Directory
    from fullrank_node.network.supervisor import Supervisor

logger = logging.getLogger(__name__)


class _Forward(logging.Handler):
    """Passes hivemind's messages on as ours, for those who look for details: most concern peers that come and go."""

    def emit(self, record: logging.LogRecord) -> None:
        logger.debug("hivemind: %s", record.getMessage())


def import_hivemind() -> "tuple[type[Supervisor], Callable[..., Coroutine[Any, Any, Directory]]]":
    """Imports hivemind (seconds, 280 MB: it brings torch) and keeps it from writing to the terminal."""
    os.environ.setdefault("HIVEMIND_LOGLEVEL", "ERROR")  # Also how much p2pd tells.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logs = importlib.import_module("hivemind.utils.logging")
        supervisor = importlib.import_module("fullrank_node.network.supervisor")
        dht = importlib.import_module("fullrank_node.network.dht")
    logs.use_hivemind_log_handler("nowhere")
    theirs = logging.getLogger("hivemind")
    theirs.propagate = False
    if not any(isinstance(handler, _Forward) for handler in theirs.handlers):
        theirs.addHandler(_Forward())
    return supervisor.Supervisor, dht.Directory.create

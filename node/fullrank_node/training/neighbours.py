"""How many nodes share this machine: their training processes must not oversubscribe its cores."""

import psutil

from fullrank_node.training.hardware import fair_threads

DAEMON_MODULE = "fullrank_node.daemon"


def nodes_on_this_machine() -> int:
    """Node daemons that run here now, this one included; at least 1."""
    count = 0
    for process in psutil.process_iter(["cmdline"]):
        count += DAEMON_MODULE in (process.info["cmdline"] or ())
    return max(count, 1)


def shared_threads(configured: int | None) -> int:
    """Threads for heavy work now: what the owner set, else a fair share of the cores."""
    return configured or fair_threads(nodes_on_machine=nodes_on_this_machine())

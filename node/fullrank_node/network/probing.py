"""Whether anybody listens at an address, asked by plain TCP before p2pd dials.

After a failed dial p2pd refuses to try that address again for 5 s and more, up to 5 minutes; a peer
that restarts would be missed that long. An attempt that never reaches p2pd leaves no such grudge.
"""

import asyncio
import errno
import socket
from collections.abc import Sequence
from typing import Final

from fullrank_node.addresses import host_and_port

_REASONS: Final = {
    errno.ECONNREFUSED: "nothing listens there",
    errno.EHOSTUNREACH: "no route to this address",
    errno.ENETUNREACH: "no route to this address",
    errno.EADDRNOTAVAIL: "no route to this address",
}


async def probe_all(bases: Sequence[str], *, timeout_s: float) -> dict[str, str]:
    """Why nobody can be reached, for each of `bases`; an empty reason where somebody listens or TCP cannot tell.

    Returns as soon as one address answers, with reasons for those that failed before, and at the latest after
    `timeout_s`.
    """
    reasons = dict.fromkeys(bases, "no answer from this address")
    tasks = {asyncio.ensure_future(_probe(base)): base for base in bases}
    try:
        async with asyncio.timeout(timeout_s):
            pending = set(tasks)
            while pending and all(reasons.values()):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                reasons |= {tasks[task]: task.result() for task in done}
    except TimeoutError:
        return reasons
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return reasons


async def _probe(base: str) -> str:
    _, host, port = host_and_port(base)
    if base.split("/")[3] != "tcp":
        return ""
    try:
        _, writer = await asyncio.open_connection(host, port)
    except socket.gaierror:
        return f"the name {host} is not known"
    except OSError as error:
        return _REASONS.get(error.errno or 0, f"cannot be reached: {error.strerror or error}")
    writer.close()
    return ""

"""Where a merge spends its time, over all threads: a thread looks at their stacks again and again.

What counts is the innermost line of ours; the time since the look before is its. Threads that wait for others count
as nothing, those that wait for the disk as themselves.
"""

import collections
import linecache
import sys
import threading
import time
from types import FrameType
from typing import Any

from aggregating.product import ROOT, warm
from aggregating.setting import Setting
from fullrank_node.child import Progress
from fullrank_node.recompute import Recompute

_LOOK_S = 0.004
_OURS = (str(ROOT / "node"), str(ROOT / "protocol"))
_WAITING = ("threading.py", "thread.py", "_base.py", "queue.py")


def profile(setting: Setting, entries: list[dict[str, Any]], *, threads: int, most: int = 16) -> list[dict[str, Any]]:
    """Lines by their share of the thread time of one merge in this process, the heaviest first."""
    warm(setting)
    spent_s: collections.defaultdict[tuple[str, str], float] = collections.defaultdict(float)
    done = threading.Event()
    looking = threading.Thread(target=_look, args=(spent_s, done))
    looking.start()
    try:
        Recompute().recompute(setting.request(entries, threads=threads), Progress(lambda _fields: None))
    finally:
        done.set()
        looking.join()
        setting.forget_results()
    total_s = sum(spent_s.values())
    return [
        {"where": where, "line": line, "seconds": round(seconds, 2), "share": round(seconds / total_s, 4)}
        for (where, line), seconds in sorted(spent_s.items(), key=lambda item: -item[1])[:most]
    ]


def _look(spent_s: dict[tuple[str, str], float], done: threading.Event) -> None:
    me = threading.get_ident()
    now_s = time.perf_counter()
    while not done.wait(_LOOK_S):
        before_s, now_s = now_s, time.perf_counter()
        for thread, frame in sys._current_frames().items():
            found = None if thread == me else _innermost(frame)
            if found is not None:
                spent_s[found] += now_s - before_s


def _innermost(frame: FrameType | None) -> tuple[str, str] | None:
    if frame is not None and frame.f_code.co_filename.endswith(_WAITING):
        return None
    while frame is not None and not frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    if frame is None:
        return None
    file = frame.f_code.co_filename
    module = file.rpartition("/")[2].removesuffix(".py")
    return f"{module}.{frame.f_code.co_name}", linecache.getline(file, frame.f_lineno or 0).strip()

"""One merge by the product: the daemon's own call to its own worker process, watched from outside.

The worker starts fresh, so it has decoded nothing yet: it reads and checks blobs, decodes, draws seeded A, weighs,
plans, applies tile by tile from the old master files to new ones, hashes both, and makes the new ones durable.
"""

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregating.setting import Setting
from fullrank_node.child import ChildProcess
from fullrank_node.worker import ONE_BLAS_THREAD

ROOT = Path(__file__).resolve().parents[3]

_SAMPLE_S = 0.02
_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What a merge took and gave.

    Attributes:
        wall_s: From the call to the answer.
        cpu_s: Processor time of the worker meanwhile.
        stages_s: Wall time by stage: decode, weigh, apply.
        peak_anonymous_bytes: Most memory of its own, whole process: what is no file's.
        peak_mapped_bytes: Most memory that maps files, which the system may take back.
        read_bytes: Fetched from the disk; 0 when all files were in the page cache.
        digest: Of the new model.
        weights: As the checkpoint carries them, (mantissa, exponent).
    """

    wall_s: float
    cpu_s: float
    stages_s: dict[str, float]
    peak_anonymous_bytes: int
    peak_mapped_bytes: int
    read_bytes: int
    digest: str
    weights: list[tuple[int, int]]


def run_product(setting: Setting, entries: list[dict[str, Any]], *, threads: int) -> Product:
    """Merges `entries` into the setting's masters; the new ones are deleted."""
    warm(setting)
    try:
        return asyncio.run(_run(setting, entries, threads=threads))
    finally:
        setting.forget_results()


def warm(setting: Setting) -> None:
    """Reads all masters, so that they are in the page cache as far as memory allows."""
    for sha256 in setting.manifest.values():
        with setting.masters.path(sha256).open("rb") as file:
            while file.read(1 << 24):
                pass


async def _run(setting: Setting, entries: list[dict[str, Any]], *, threads: int) -> Product:
    paths = os.pathsep.join(str(ROOT / room) for room in ("node", "protocol"))
    marks: list[tuple[str, float]] = []

    def on_progress(told: dict[str, Any]) -> None:
        if not marks or marks[-1][0] != told["stage"]:
            marks.append((told["stage"], time.perf_counter()))

    async with ChildProcess("fullrank_node.worker", environment={**ONE_BLAS_THREAD, "PYTHONPATH": paths}) as worker:
        await worker.call("recompute", setting.request([], threads=1))  # It has imported all it needs.
        assert worker.pid is not None
        before = _Used.of(worker.pid)
        peak = {"RssAnon": 0, "RssFile": 0}
        watching = asyncio.create_task(_watch(worker.pid, peak))
        began_s = time.perf_counter()
        reply = await worker.call(
            "recompute", setting.request(entries, threads=threads), on_progress=on_progress, timeout_s=_TIMEOUT_S
        )
        ended_s = time.perf_counter()
        after = _Used.of(worker.pid)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    if reply["refused"]:
        raise ValueError(f"the worker refused {reply['refused'][0]}")
    # "decode" is told of for the first time when one is decoded: it began with the call.
    starts_s = [began_s, *(at_s for _, at_s in marks[1:]), ended_s]
    return Product(
        wall_s=ended_s - began_s,
        cpu_s=after.cpu_s - before.cpu_s,
        stages_s={stage: starts_s[i + 1] - starts_s[i] for i, (stage, _) in enumerate(marks)},
        peak_anonymous_bytes=peak["RssAnon"],
        peak_mapped_bytes=peak["RssFile"],
        read_bytes=after.read_bytes - before.read_bytes,
        digest=reply["digest"],
        weights=[(mantissa, exponent) for mantissa, exponent in reply["weights"]],
    )


@dataclass(frozen=True, slots=True)
class _Used:
    cpu_s: float
    read_bytes: int

    @classmethod
    def of(cls, pid: int) -> "_Used":
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])  # utime and stime; the fields begin with the third.
        return cls(ticks / os.sysconf("SC_CLK_TCK"), _field(Path(f"/proc/{pid}/io"), "read_bytes"))


async def _watch(pid: int, peak: dict[str, int]) -> None:
    """Keeps the most memory seen."""
    while True:
        for name, most in peak.items():
            peak[name] = max(most, 1024 * _field(Path(f"/proc/{pid}/status"), name))
        await asyncio.sleep(_SAMPLE_S)


def _field(path: Path, name: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])

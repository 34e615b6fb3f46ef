"""What is measured: pairs of a merge and its reference, one after the other, each kept on disk when it is done."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aggregating.product import ROOT, run_product
from aggregating.reference import run_reference
from aggregating.setting import MODES, SHAPES, Setting
from fullrank_node.recompute import DeltaCache
from fullrank_protocol.delta import Delta
from fullrank_protocol.parts import ModuleShape
from fullrank_protocol.state import Float32Array

NUM_DELTAS = (4, 16, 64)
RANKS = (4, 16, 64)
THREADS = (1, 2)

_ARITHMETIC = ("codec", "delta", "gram", "packing", "parts", "scaled", "seeded", "state", "weights")
"""Modules of the protocol that a merge spends its time in."""

_ALL_BYTES = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One pair.

    Attributes:
        shape: Name of the model's shape.
        mode: Whether A is seeded ("b") or sent ("ab").
        num_deltas: Contributions merged.
        rank: Of each.
        threads: Of the product and of the reference.
        pair: Its number; odd ones begin with the reference.
    """

    shape: str
    mode: str
    num_deltas: int
    rank: int
    threads: int
    pair: int


def planned(*, full: str, small: str, pairs: int) -> list[Part]:
    """The headline in both modes, then how it scales on a smaller shape; first all once, then all again."""
    return [
        part
        for pair in range(pairs)
        for part in (
            *(
                Part(shape=full, mode=mode, num_deltas=64, rank=16, threads=threads, pair=pair)
                for mode in MODES
                for threads in THREADS
            ),
            *(
                Part(shape=small, mode="b", num_deltas=num_deltas, rank=rank, threads=threads, pair=pair)
                for num_deltas in NUM_DELTAS
                for rank in RANKS
                for threads in THREADS
            ),
        )
    ]


class Bench:
    """Settings in a folder, and the lines of what was measured there.

    Attributes:
        lines: Of this code, by part.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the folder; lines of other code, and a torn last one, are left out."""
        self._folder = folder
        self._settings: dict[str, Setting] = {}
        self._path = folder / "lines.jsonl"
        self.lines: dict[Part, dict[str, Any]] = {}
        for line in self._read():
            if line["code"] == CODE:
                self.lines[Part(**line["part"])] = line
        self._write()

    def setting(self, shape: str) -> Setting:
        """The shape's model."""
        if shape not in self._settings:
            folder = self._folder / shape
            folder.mkdir(parents=True, exist_ok=True)
            self._settings[shape] = Setting(SHAPES[shape], folder)
        return self._settings[shape]

    def measure(self, part: Part) -> dict[str, Any]:
        """Runs one pair and keeps its line."""
        setting = self.setting(part.shape)
        entries = setting.entries(mode=part.mode, num_deltas=part.num_deltas, rank=part.rank)
        found: dict[str, Any] = {"code": CODE, "part": asdict(part), "load": round(os.getloadavg()[0], 1)}
        steps = (("product", _product), ("reference", _reference))
        for name, step in reversed(steps) if part.pair % 2 else steps:
            found[name] = step(setting, entries, part.threads)
        self.lines[part] = found
        self._write()
        return found

    def _read(self) -> Iterator[dict[str, Any]]:
        if self._path.exists():
            for text in self._path.read_text(encoding="utf-8").splitlines(keepends=True):
                if text.endswith("\n"):
                    yield json.loads(text)

    def _write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text("".join(json.dumps(line) + "\n" for line in self.lines.values()), encoding="utf-8")
        new.replace(self._path)


def decoded(setting: Setting, entries: Sequence[dict[str, Any]]) -> list[Delta]:
    """All deltas in memory, as the worker has them."""
    cache = DeltaCache(max_bytes=_ALL_BYTES)
    return [cache.decode(entry, setting.genesis) for entry in entries]


def reader(setting: Setting) -> Any:
    """Reads a module's old weights."""

    def read(module: ModuleShape) -> Float32Array:
        shape = (module.out_features, module.in_features)
        return setting.masters.open(setting.manifest[module.name], shape, name=module.name)

    return read


def _product(setting: Setting, entries: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    line = asdict(run_product(setting, entries, threads=threads))
    del line["weights"]
    return line


def _reference(setting: Setting, entries: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    weights = [1.0 / len(entries)] * len(entries)  # Its speed does not depend on them.
    found = run_reference(decoded(setting, entries), weights, setting.genesis.modules, reader(setting), threads=threads)
    return {
        "wall_s": found.wall_s,
        "gram_s": found.gram_s,
        "apply_s": found.apply_s,
        "cpu_s": found.cpu_s,
        "tile_elements": found.tile_elements,
    }


def _code() -> str:
    """A hash of what is measured and what measures, so that figures of two versions are never mixed."""
    files = [
        *(ROOT / "protocol" / "fullrank_protocol" / f"{name}.py" for name in _ARITHMETIC),
        *(ROOT / "node" / "fullrank_node" / name for name in ("recompute.py", "worker.py", "files.py")),
        ROOT / "node" / "fullrank_node" / "model" / "master.py",
        *(Path(__file__).with_name(name) for name in ("setting.py", "reference.py", "product.py")),
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


CODE = _code()


def say(text: str) -> None:
    """What is being done now, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

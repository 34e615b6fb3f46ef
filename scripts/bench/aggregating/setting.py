"""What is merged: a model of some shape, its masters on disk, and random deltas as encoded blobs.

A setting is made once in a folder and found again there. Factors are random integers of 4 bits, twice as
many as the default training sends, with scales that spread over a few powers of two; the same seed makes the same
bytes.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from swarms import genesis_message, id_of, key_of

from fullrank_node.blob_store import BlobStore
from fullrank_node.model.master import MasterStore
from fullrank_protocol.codec import CODEC_PACKED, encode
from fullrank_protocol.delta import Delta
from fullrank_protocol.genesis import Genesis, Module, create_genesis, open_genesis
from fullrank_protocol.parts import LowRank
from fullrank_protocol.wire import objects_pb2 as wire

MODES = ("b", "ab")
"""Seeded A, of which only B travels (the default), and both factors sent."""

_SEED = 4
_TILE = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder of the Llama family; its linear modules are adapted.

    Attributes:
        name: For people and folders.
        layers: Decoder layers.
        hidden: Width.
        mlp: Width inside an MLP.
        key_value: Width of keys and values.
    """

    name: str
    layers: int
    hidden: int
    mlp: int
    key_value: int

    def modules(self) -> dict[str, tuple[int, int]]:
        """Names and (out_features, in_features) of the adapted matrices."""
        of_layer = {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.key_value, self.hidden),
            "self_attn.v_proj": (self.key_value, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.mlp, self.hidden),
            "mlp.up_proj": (self.mlp, self.hidden),
            "mlp.down_proj": (self.hidden, self.mlp),
        }
        return {
            f"model.layers.{layer}.{name}.weight": shape
            for layer in range(self.layers)
            for name, shape in of_layer.items()
        }

    @property
    def num_parameters(self) -> int:
        """Entries of all adapted matrices."""
        return sum(rows * columns for rows, columns in self.modules().values())


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(name="1b", layers=16, hidden=2048, mlp=8192, key_value=512),
        Shape(name="100m", layers=8, hidden=1024, mlp=3584, key_value=256),
        Shape(name="tiny", layers=1, hidden=64, mlp=96, key_value=32),
    )
}
"""`1b` is Llama-3.2-1B without its embedding."""


class Setting:
    """One shape's genesis and masters in a folder, and deltas as they are asked for."""

    def __init__(self, shape: Shape, folder: Path, *, max_rank: int = 64) -> None:
        """Opens the setting in `folder`, or makes it."""
        self.shape = shape
        self.genesis_path = folder / "genesis.bin"
        self.masters = MasterStore(folder / "masters")
        self.blobs = BlobStore(folder / "blobs")
        self._manifest_path = folder / "manifest.json"
        if not self._manifest_path.exists():
            self.genesis_path.write_bytes(_genesis(shape, max_rank=max_rank).envelope.encode())
            manifest = {
                name: self.masters.write_tiles(_weights(f"{shape.name} {name}", rows * columns))
                for name, (rows, columns) in shape.modules().items()
            }
            self._manifest_path.write_text(json.dumps(manifest), encoding="utf-8")
        self.genesis: Genesis = open_genesis(self.genesis_path.read_bytes())
        self.manifest: dict[str, str] = json.loads(self._manifest_path.read_text(encoding="utf-8"))

    def entries(self, *, mode: str, num_deltas: int, rank: int) -> list[dict[str, Any]]:
        """Contributions as the daemon names them to its worker; their blobs are on disk when this returns."""
        return [self._entry(number, mode=mode, rank=rank) for number in range(num_deltas)]

    def request(self, entries: list[dict[str, Any]], *, threads: int) -> dict[str, Any]:
        """What the daemon asks its worker when it merges."""
        return {
            "genesis_path": str(self.genesis_path),
            "masters_dir": str(self.masters.directory),
            "parent_manifest": self.manifest,
            "entries": entries,
            "trailing": [],
            "threads": threads,
        }

    def forget_results(self) -> None:
        """Deletes all masters but the setting's own."""
        self.masters.collect(self.manifest.values())

    def _entry(self, number: int, *, mode: str, rank: int) -> dict[str, Any]:
        author = f"{self.shape.name} {mode} {rank} {number}"
        kept = self.genesis_path.with_name(f"delta {author}.json")
        if kept.exists():
            path = kept.read_text(encoding="utf-8")
        else:
            data = encode(_delta(self.genesis.modules, mode=mode, rank=rank, author=author), self.genesis)
            path = str(self.blobs.path(self.blobs.put_bytes(data).id))
            kept.write_text(path, encoding="utf-8")
        return {
            "contribution_id": id_of(author).hex(),
            "member": key_of(author).public_key.hex(),
            "num_tokens": 100_000 + number,
            "staleness": number % 3,
            "stranger": False,
            "blob_path": path,
            "codec": CODEC_PACKED,
            "period": 0,
        }


def _genesis(shape: Shape, *, max_rank: int) -> Genesis:
    message = genesis_message()
    message.max_rank = max_rank
    del message.modules[:]
    del message.base.tensors[:]
    for name, (rows, columns) in sorted(shape.modules().items()):
        message.base.tensors.add(name=name, shape=[rows, columns], sha256=id_of(name))
        message.modules.add(name=name, kind=wire.LINEAR, out_features=rows, in_features=columns)
    return create_genesis(key_of("ada"), message)


def _weights(name: str, num_elements: int) -> Iterator[npt.NDArray[np.float32]]:
    """Normal numbers of a usual size, canonical: none is subnormal."""
    rng = _generator(name)
    for start in range(0, num_elements, _TILE):
        tile = rng.standard_normal(min(_TILE, num_elements - start), dtype=np.float32)
        tile *= np.float32(0.02)
        tile[np.abs(tile) < 2.0**-126] = 0.0
        yield tile


def _delta(modules: tuple[Module, ...], *, mode: str, rank: int, author: str) -> Delta:
    rng = _generator(author)
    parts = []
    for module in modules:
        B_RO = _integers(rng, rank, module.out_features)
        A_RI = _integers(rng, rank, module.in_features) if mode == "ab" else None
        exponents = (rng.integers(-22, -18, rank) - (6 if mode == "ab" else 0)).tolist()
        mantissas = (2 * rng.integers(0, 8, rank) + 1).tolist()
        order = list(range(rank))
        if A_RI is not None:
            keys = [(exponents[k], mantissas[k], B_RO[k].tobytes(), A_RI[k].tobytes()) for k in order]
            order.sort(key=lambda k: keys[k])
        parts.append(
            LowRank(
                module=module.name,
                B_OR=B_RO[order].T,
                A_RI=None if A_RI is None else A_RI[order],
                scale_mantissa_R=tuple(mantissas[k] for k in order),
                scale_exponent_R=tuple(exponents[k] for k in order),
                row_R=None if mode == "ab" else tuple(range(rank)),
            )
        )
    return Delta.of(parts)


def _integers(rng: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.int8]:
    """4 bits, in the highest places; the first entry makes every row canonical."""
    found = rng.integers(-7, 8, (rows, columns), dtype=np.int8)
    found[:, 0] = 7
    return found << np.int8(4)


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng([_SEED, *hashlib.sha256(name.encode()).digest()])

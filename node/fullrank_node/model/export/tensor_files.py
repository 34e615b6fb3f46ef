"""Safetensors files, read and written tensor by tensor without torch and without holding a whole file in memory.

The format is 8 bytes of header length (little-endian), a JSON header {name: {dtype, shape, data_offsets}}, then the
tensors' bytes without gaps. bfloat16, which numpy lacks, is handled as the upper half of a float32.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import disk_errors

MAX_HEADER_BYTES = 100_000_000
"""Largest header read; the safetensors library has the same limit."""

CHUNK_ELEMENTS = 1 << 22
"""Elements converted at a time: 16 MiB of float32."""

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

FLOAT_TYPES: Mapping[str, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Types that weights are written in, by the names that configurations use."""

_STORAGE: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_ELEMENT_BYTES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorView:
    """One tensor, on disk or in memory.

    Attributes:
        name: As the file calls it.
        dtype: Safetensors type code; only F64, F32, F16 and BF16 are ever converted.
        shape: Sizes; empty for a single number.
        flat: The elements in row-major order; BF16 as uint16, any other type that is not a float as bytes.
        target: The type to write it as when none is asked for; None for `dtype`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    flat: npt.NDArray[Any]
    target: str | None = None

    def written_type(self, dtype: str | None) -> str:
        """The type code that `write_tensors` gives this tensor when asked for `dtype`."""
        return (dtype or self.target or self.dtype) if self.dtype in _STORAGE else self.dtype

    def num_bytes(self, dtype: str | None = None) -> int:
        """Bytes of this tensor, as it is or written as `dtype`."""
        if self.dtype not in _STORAGE:
            return self.flat.nbytes
        return math.prod(self.shape) * _ELEMENT_BYTES[self.written_type(dtype)]

    def chunks(self, dtype: str | None = None) -> Iterator[npt.NDArray[Any]]:
        """Yields the elements, converted to `dtype`, as arrays in the file's byte order."""
        for start in range(0, len(self.flat), CHUNK_ELEMENTS):
            chunk = self.flat[start : start + CHUNK_ELEMENTS]
            if self.written_type(dtype) == self.dtype:
                yield np.ascontiguousarray(chunk)
            else:
                yield _from_float32(_to_float32(chunk, self.dtype), self.written_type(dtype))

    def float32(self) -> npt.NDArray[np.float32]:
        """The whole tensor as float32; exact unless it is stored as F64.

        Raises:
            ValueError: It does not hold floats.
        """
        if self.dtype not in _STORAGE:
            raise ValueError(f"{self.name}: found type {self.dtype}, required floats")
        return _to_float32(self.flat, self.dtype).reshape(self.shape)


def read_tensors(path: Path) -> list[TensorView]:
    """Maps one safetensors file; nothing but its header is read yet.

    Raises:
        NodeError: It is not a whole safetensors file.
    """
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= header_bytes <= MAX_HEADER_BYTES:
                raise _damaged(path, f"a header of {header_bytes} bytes")
            header = json.loads(file.read(header_bytes))
        data = np.memmap(path, dtype=np.uint8, mode="r")[8 + header_bytes :]
        header.pop("__metadata__", None)
        return [_view(name, entry, data, path) for name, entry in header.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error)) from error


def read_directory(directory: Path) -> list[TensorView]:
    """Maps the weights of a model directory, in one file or in shards with an index; ascending by name.

    Raises:
        NodeError: There are none, or a shard is missing or damaged.
    """
    index = directory / INDEX_NAME
    if (directory / SINGLE_NAME).is_file():
        shards = [SINGLE_NAME]
    elif index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(index, str(error)) from error
    else:
        raise NodeError(f"{directory} has no safetensors weights", exit_code=ExitCode.CONFIG)
    views = [view for shard in shards for view in read_tensors(directory / Path(shard).name)]
    return sorted(views, key=lambda view: view.name)


def write_tensors(path: Path, views: Sequence[TensorView], *, dtype: str | None = None) -> None:
    """Writes a safetensors file, floats converted to `dtype` (a type code), or each to its own target when it is None.

    Raises:
        NodeError: The disk is full.
    """
    # Wider types first, so that every tensor begins at a multiple of its element size.
    ordered = sorted(views, key=lambda view: (-_ELEMENT_BYTES.get(view.written_type(dtype), 1), view.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for view in ordered:
        end = offset + view.num_bytes(dtype)
        header[view.name] = {
            "dtype": view.written_type(dtype),
            "shape": list(view.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with disk_errors(path), path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for view in ordered:
            for chunk in view.chunks(dtype):
                file.write(chunk.data if chunk.ndim else chunk.tobytes())


def write_directory(
    directory: Path, views: Sequence[TensorView], *, dtype: str | None = None, max_shard_bytes: int
) -> list[str]:
    """Writes the weights of a model directory: one file, or shards with an index when it would be too large.

    Returns:
        Names of the files with weights.

    Raises:
        NodeError: The disk is full.
    """
    shards: list[list[TensorView]] = [[]]
    filled = 0
    for view in views:
        size = view.num_bytes(dtype)
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(view)
        filled += size
    if len(shards) == 1:
        write_tensors(directory / SINGLE_NAME, views, dtype=dtype)
        return [SINGLE_NAME]
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_tensors(directory / name, shard, dtype=dtype)
    index = {
        "metadata": {"total_size": sum(view.num_bytes(dtype) for view in views)},
        "weight_map": {view.name: name for name, shard in zip(names, shards, strict=True) for view in shard},
    }
    with disk_errors(directory):
        (directory / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return names


def _view(name: str, entry: Mapping[str, Any], data: npt.NDArray[np.uint8], path: Path) -> TensorView:
    start, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(size) for size in entry["shape"])
    dtype = str(entry["dtype"])
    if not 0 <= start <= end <= len(data) or any(size < 0 for size in shape):
        raise _damaged(path, f"{name} at bytes {start} to {end} of {len(data)}")
    if dtype in _STORAGE and end - start != math.prod(shape) * _ELEMENT_BYTES[dtype]:
        raise _damaged(path, f"{end - start} bytes for {name} of {dtype} {list(shape)}")
    flat: npt.NDArray[Any] = data[start:end]
    if dtype in _STORAGE:
        flat = np.frombuffer(flat, dtype=_STORAGE[dtype]) if len(flat) else np.zeros(0, dtype=_STORAGE[dtype])
    return TensorView(name=name, dtype=dtype, shape=shape, flat=flat)


def _to_float32(flat: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "BF16":
        return (flat.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.asarray(flat, dtype=np.float32)


def _from_float32(flat: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """Rounds to nearest, ties to even, as torch does."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return flat.astype(_STORAGE[dtype])
    bits = flat.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = np.where(np.isnan(flat), (bits >> np.uint32(16)) | np.uint32(0x40), rounded)
    return quiet.astype("<u2")


def _damaged(path: Path, found: str) -> NodeError:
    return NodeError(
        f"{path} is not a whole safetensors file: found {found}",
        hint="Get the file again; it was cut short or changed.",
        exit_code=ExitCode.CONFIG,
    )

"""Float32 masters of the adapted tensors: immutable files named by their SHA-256, applied tile by tile.

A model state is a manifest, tensor name to SHA-256 in hex; states share the files of tensors that are equal.
An update writes new files and leaves the old ones alone, so a kill at any instant leaves whole states and
perhaps a temporary file. Who keeps which manifests is the store's business; `collect` deletes the rest.

Legend of array names: T = rows of a tile.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import fsync_directory, remove_temporary_files, replace_with, temporary_file
from fullrank_protocol.errors import RejectError
from fullrank_protocol.parts import ModuleShape
from fullrank_protocol.state import ModulePlan, apply_tile, model_digest

Float32Array = npt.NDArray[np.float32]

Manifest = Mapping[str, str]
"""Tensor name to SHA-256, in hex, of its float32 little-endian bytes in row-major order."""

TILE_ELEMENTS = 1 << 21
"""Elements worked on at a time by each thread: 16 MiB as float64, so that a few tiles fit into small machines."""

_SUFFIX = ".f32"


class MasterStore:
    """The master files of one node, in one directory; several processes may use it at a time."""

    def __init__(self, directory: Path) -> None:
        """Opens `directory` (made when missing) and removes what a killed process left half-written."""
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_temporary_files(directory)

    def path(self, sha256: str) -> Path:
        """Where the tensor of that hash lies."""
        return self.directory / f"{sha256}{_SUFFIX}"

    def write(self, name: str, tensor: Float32Array) -> str:
        """Keeps a float32 tensor; durable when this returns. Give canonical values (`state.canonical_float32`).

        Returns:
            Its SHA-256 in hex.

        Raises:
            NodeError: The disk is full.
            ValueError: Not float32.
        """
        if tensor.dtype != np.float32:
            raise ValueError(f"{name}: found {tensor.dtype}, required float32")
        flat = np.ascontiguousarray(tensor).reshape(-1)
        sha256 = self._write_tiles(flat[start : start + TILE_ELEMENTS] for start in range(0, flat.size, TILE_ELEMENTS))
        fsync_directory(self.directory)
        return sha256

    def write_tiles(self, tiles: Iterable[Float32Array]) -> str:
        """Keeps a tensor that is given piece by piece, in row-major order; durable when this returns.

        Returns:
            Its SHA-256 in hex.

        Raises:
            NodeError: The disk is full.
        """
        sha256 = self._write_tiles(tiles)
        fsync_directory(self.directory)
        return sha256

    def open(self, sha256: str, shape: tuple[int, ...], *, name: str = "tensor") -> Float32Array:
        """Maps a tensor read-only.

        Raises:
            NodeError: The file is missing or has another size.
        """
        path = self.path(sha256)
        required = 4 * int(np.prod(shape, dtype=np.int64))
        try:
            found = path.stat().st_size
        except FileNotFoundError as error:
            raise _lost(name, f"the master file {path} is missing") from error
        if found != required:
            raise _lost(name, f"the master file {path} has {found} bytes, required {required}")
        if required == 0:
            return np.zeros(shape, dtype="<f4")
        return np.memmap(path, dtype="<f4", mode="r", shape=shape)

    def read(self, sha256: str, shape: tuple[int, ...], *, name: str = "tensor") -> Float32Array:
        """A tensor in memory, hashed on the way: what is trained on or handed out is what was certified.

        Raises:
            NodeError: The file is missing, has another size or does not hash to its name.
        """
        tensor = np.array(self.open(sha256, shape, name=name))
        if hashlib.sha256(tensor.data.cast("B")).hexdigest() != sha256:
            raise _spoilt(name, self.path(sha256))
        return tensor

    def verify(self, sha256: str) -> bool:
        """Whether the file is here and hashes to its name. Reads all of it."""
        try:
            return _file_sha256(self.path(sha256)) == sha256
        except FileNotFoundError:
            return False

    def apply(
        self,
        manifest: Manifest,
        plans: Iterable[tuple[ModuleShape, ModulePlan]],
        *,
        threads: int = 1,
        tile_elements: int = TILE_ELEMENTS,
    ) -> dict[str, str]:
        """Writes the tensors that an update changes; all durable when this returns.

        The result does not depend on `threads` or `tile_elements`. Each thread holds one plan and one tile; while the
        disk makes a file durable, its thread lets another module be computed, so up to twice as many plans are held.
        What is read is hashed: a damaged file must not become a digest by which this node would refuse what is right.

        Args:
            manifest: The state that the update applies to.
            plans: What it does, as from `state.plan_update`; taken one at a time.
            threads: Modules computed at the same time.
            tile_elements: Elements in one tile, at least one row.

        Returns:
            The manifest of the new state.

        Raises:
            RejectError: NON_FINITE, whatever the machine.
            NodeError: A master file is missing or damaged, or the disk is full.
        """
        result = dict(manifest)
        computing = threading.Semaphore(threads)

        def one(item: tuple[ModuleShape, ModulePlan]) -> tuple[str, str]:
            module, plan = item
            if module.name not in manifest:
                raise _lost(module.name, "the manifest does not name it")
            tiles = self._new_tiles(module, plan, manifest[module.name], tile_elements)
            return module.name, self._write_tiles(tiles, computing=computing)

        for name, sha256 in _bounded_map(one, plans, threads=2 * threads):
            result[name] = sha256
        fsync_directory(self.directory)
        return result

    def discard(self, sha256: str) -> None:
        """Deletes one file, if it is there."""
        self.path(sha256).unlink(missing_ok=True)

    def collect(self, keep: Iterable[str]) -> int:
        """Deletes the files of all tensors but those of `keep` (SHA-256, hex); returns the bytes freed.

        A file that another process has mapped stays readable there.
        """
        wanted = set(keep)
        freed = 0
        for path in self.directory.glob(f"*{_SUFFIX}"):
            if path.name.removesuffix(_SUFFIX) not in wanted:
                freed += path.stat().st_size
                path.unlink()
        return freed

    def total_bytes(self) -> int:
        """Bytes taken by all masters."""
        return sum(path.stat().st_size for path in self.directory.glob(f"*{_SUFFIX}"))

    def _new_tiles(
        self, module: ModuleShape, plan: ModulePlan, sha256: str, tile_elements: int
    ) -> Iterator[Float32Array]:
        old = self.open(sha256, (module.out_features, module.in_features), name=module.name)
        num_rows = max(1, tile_elements // module.in_features)
        plan = plan.widened()
        digest = hashlib.sha256()
        for start in range(0, module.out_features, num_rows):
            rows = slice(start, min(start + num_rows, module.out_features))
            tile = np.array(old[rows])  # Hashed and used are the same bytes, whatever the disk says the second time.
            digest.update(tile.data.cast("B"))
            try:
                yield apply_tile(tile, plan, rows)
            except RejectError as error:
                if not self.verify(sha256):  # The fault of this disk, not of those who made the update.
                    raise _spoilt(module.name, self.path(sha256)) from error
                raise
        if digest.hexdigest() != sha256:
            raise _spoilt(module.name, self.path(sha256))

    def _write_tiles(
        self, tiles: Iterable[Float32Array], *, computing: AbstractContextManager[object] | None = None
    ) -> str:
        """Writes tiles one after the other into a file named by the hash of all; the directory is not synced yet.

        `computing` is held while tiles are taken, and no more while the file is made durable.
        """
        digest = hashlib.sha256()
        with temporary_file(self.directory) as file:
            with computing or nullcontext():
                for tile in tiles:
                    data = tile.astype("<f4", copy=False).data.cast("B")
                    digest.update(data)
                    file.write(data)
            sha256 = digest.hexdigest()
            replace_with(file, self.path(sha256))
        return sha256


def manifest_digest(manifest: Manifest) -> bytes:
    """The model digest of a state (protocol section 7)."""
    return model_digest({name: bytes.fromhex(sha256) for name, sha256 in manifest.items()})


def _bounded_map(
    function: Callable[[tuple[ModuleShape, ModulePlan]], tuple[str, str]],
    items: Iterable[tuple[ModuleShape, ModulePlan]],
    *,
    threads: int,
) -> Iterator[tuple[str, str]]:
    """Maps over `items` in `threads` threads, in any order, holding no more items than threads."""
    with ThreadPoolExecutor(max_workers=threads) as pool:
        running: set[Future[tuple[str, str]]] = set()
        for item in items:
            running.add(pool.submit(function, item))
            if len(running) >= threads:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        for future in running:
            yield future.result()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _spoilt(name: str, path: Path) -> NodeError:
    return _lost(name, f"the master file {path} is damaged, it does not hash to its name")


def _lost(name: str, found: str) -> NodeError:
    return NodeError(
        f"the weights of {name} are not usable: {found}",
        hint="A running node makes them anew by itself, from the base and the log.",
        exit_code=ExitCode.DISK,
    )

"""Where a node's base model comes from: the last start, this machine, the hub, or peers."""

import asyncio
import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from fullrank_node.errors import NodeError
from fullrank_node.home import Home
from fullrank_node.model.master import MasterStore
from fullrank_node.network.interface import BlobUnavailable, Network
from fullrank_node.node_keys import BASE_DIGEST_KEY, BASE_DIR_KEY, BASE_STAMP_KEY
from fullrank_node.store import Store
from fullrank_node.training.driver import PreparedBase, TrainerDriver
from fullrank_protocol.genesis import FileEntry, Genesis

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""Pause before peers are asked again for a file that nobody had."""


class BaseSupply:
    """Finds the base of one swarm, and keeps the genesis masters made from it."""

    def __init__(
        self,
        *,
        home: Home,
        given: Path | None,
        genesis: Genesis,
        store: Store,
        network: Network,
        trainer: TrainerDriver,
    ) -> None:
        self._home = home
        self._given = given
        self._genesis = genesis
        self._store = store
        self._network = network
        self._trainer = trainer

    async def prepare(self, *, on_phase: Callable[[str], None], attempts: int | None = None) -> PreparedBase:
        """The base, checked tensor by tensor against the genesis, with its masters written.

        Args:
            on_phase: Told what is being done, in words.
            attempts: How often peers are asked for a file; None: until one has it.

        Raises:
            NodeError: There is no base to be had, or it is not the one of the genesis.
        """
        known = self._from_last_time()
        if known is not None:
            return known
        on_phase("loading the base model")
        base = None
        while base is None:
            try:
                base = await self._trainer.prepare_base(self._local())
            except NodeError as error:
                if self._given is not None or not self._genesis.base.weight_files or self._fetched_dir.is_dir():
                    raise
                log.info("The base is not on this machine (%s); asking peers.", error)
                await self._fetch(on_phase=on_phase, attempts=attempts)
        self._store.put_manifest(self._genesis.swarm, base.manifest)
        self._store.set_meta(BASE_DIR_KEY, str(base.base_dir).encode())
        self._store.set_meta(BASE_STAMP_KEY, stamp_of(base.base_dir))
        self._store.set_meta(BASE_DIGEST_KEY, base.digest)
        return base

    @property
    def _fetched_dir(self) -> Path:
        return self._home.path / "base"

    def _local(self) -> Path | None:
        return self._given or (self._fetched_dir if self._fetched_dir.is_dir() else None)

    def _from_last_time(self) -> PreparedBase | None:
        digest, directory = self._store.get_meta(BASE_DIGEST_KEY), self._store.get_meta(BASE_DIR_KEY)
        manifest = self._store.manifest(self._genesis.swarm)
        if digest is None or directory is None or manifest is None or not Path(directory.decode()).is_dir():
            return None
        if stamp_of(Path(directory.decode())) != self._store.get_meta(BASE_STAMP_KEY):
            log.warning("The files of the base in %s have changed: checking every tensor again.", directory.decode())
            return None
        files = MasterStore(self._home.masters_dir)
        if not all(files.path(sha256).exists() for sha256 in manifest.values()):
            return None
        return PreparedBase(base_dir=Path(directory.decode()), manifest=manifest, digest=digest)

    async def _fetch(self, *, on_phase: Callable[[str], None], attempts: int | None) -> None:
        """Bring the base's files from peers; each is checked by its hash."""
        partial = self._home.work_dir / "base"
        partial.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in (*self._genesis.base.files, *self._genesis.base.weight_files):
            on_phase(f"fetching the base's {entry.name} from peers")
            await self._fetch_file(entry, attempts=attempts)
            source = self._store.blobs.path(entry.blob.id)
            await asyncio.to_thread(shutil.copyfile, source, partial / entry.name)
        partial.rename(self._fetched_dir)

    async def _fetch_file(self, entry: FileEntry, *, attempts: int | None) -> None:
        tried = 0
        while not self._store.blobs.has(entry.blob.id):
            try:
                await self._network.fetch_blob(entry.blob, providers=[], blobs=self._store.blobs)
            except BlobUnavailable as error:
                tried += 1
                if attempts is not None and tried >= attempts:
                    raise NodeError(
                        f"no peer has the base's {entry.name}: {error}",
                        hint="Give the base model with --base DIR.",
                    ) from error
                log.info("No peer has %s yet: %s", entry.name, error)
                await asyncio.sleep(RETRY_S)


def stamp_of(directory: Path) -> bytes:
    """Names, sizes and times of the files in a base: a base that was replaced is checked again at the next start."""
    files = sorted(entry for entry in directory.iterdir() if entry.is_file())
    facts = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join(facts).encode()).digest()

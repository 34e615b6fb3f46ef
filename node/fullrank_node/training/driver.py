"""The daemon's side of the trainer: prepares base and data once, trains on request, can be paused at will.

Pausing kills the trainer's process: that frees its memory, and loses at most the delta in the making.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullrank_node.blob_store import BlobStore
from fullrank_node.child import ChildDiedError, ChildFailedError, ChildProcess
from fullrank_node.clock import Clock
from fullrank_node.config import Config
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.home import Home
from fullrank_node.training.neighbours import shared_threads
from fullrank_protocol.blob import BlobRef
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.round_io import Train

log = logging.getLogger(__name__)

PREPARE_TIMEOUT_S = 3600.0
"""Downloading and loading a base of several billion parameters on a slow line and disk."""

OVERRUN_S = 300.0
"""How long after its deadline a trainer may still be busy before it counts as hung."""

MAX_EVALUATED_BLOCKS = 16
"""Held-out blocks measured after a round: seconds on a small machine, and enough to see a trend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedBase:
    """The base on this machine, and the genesis masters made from it."""

    base_dir: Path
    manifest: dict[str, str]
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedDelta:
    """What the trainer made; the blob is in the store already. Losses in millionths of a nat."""

    blob: BlobRef
    codec: int
    num_tokens: int
    num_steps: int
    loss_first_micro: int
    loss_last_micro: int


@dataclass(slots=True)
class TrainingNow:
    """The delta in the making, or the last one; for `status`."""

    step: int = 0
    of: int = 0
    loss_first: float | None = None
    loss_last: float | None = None
    tokens_per_second: float = 0.0
    deadline_ms: int = 0
    num_tokens: int = 0
    busy_ms: int = 0
    started_at_ms: int | None = None


class TrainerDriver:
    """One node's trainer process."""

    def __init__(
        self,
        *,
        home: Home,
        config: Config,
        genesis: Genesis,
        member: bytes,
        child: ChildProcess,
        blobs: BlobStore,
        clock: Clock,
        threads: int | None,
    ) -> None:
        self._home = home
        self._config = config
        self._genesis = genesis
        self._member = member
        self._child = child
        self._blobs = blobs
        self._clock = clock
        self._threads = threads
        self._base_dir: Path | None = None
        self._data: dict[str, Any] | None = None
        self._use = asyncio.Lock()
        self._num_preparing = 0
        self.now = TrainingNow()
        self.device_name = config.train.device
        self.device_memory_bytes = 0

    @property
    def pid(self) -> int | None:
        """Process id while the trainer runs."""
        return self._child.pid

    @property
    def threads(self) -> int:
        """What the owner set, else a fair share of the cores among the nodes that run here now."""
        return shared_threads(self._threads)

    @property
    def data_summary(self) -> Mapping[str, Any]:
        """What `prepare_data` found; empty before."""
        return self._data or {}

    async def prepare_base(self, base_dir: Path | None) -> PreparedBase:
        """Find the base, check every tensor against the genesis, write the genesis masters.

        Raises:
            NodeError: No base, or not the one of the genesis.
        """
        with self._preparing():
            reply = await self._call(
                "prepare_base",
                {
                    "genesis_path": str(self._home.genesis_file),
                    "base_dir": str(base_dir) if base_dir is not None else None,
                    "masters_dir": str(self._home.masters_dir),
                    "device": self._config.train.device,
                    "threads": self.threads,
                },
                timeout_s=PREPARE_TIMEOUT_S,
            )
        return PreparedBase(
            base_dir=Path(reply["base_dir"]), manifest=dict(reply["manifest"]), digest=bytes.fromhex(reply["digest"])
        )

    async def prepare_data(self, base_dir: Path) -> None:
        """Tokenise and pack the owner's data, unless that was done before.

        Raises:
            NodeError: The data cannot be used, with line numbers.
        """
        self._base_dir = base_dir
        with self._preparing():
            await self._prepare_data(base_dir)

    async def _prepare_data(self, base_dir: Path) -> None:
        hardware = await self._call("hardware", {"device": self._config.train.device}, timeout_s=PREPARE_TIMEOUT_S)
        self.device_name, self.device_memory_bytes = str(hardware["name"]), int(hardware["memory_bytes"])
        path = self._config.data.path
        if path is None:
            return
        valid = self._config.data.valid_path
        self._data = await self._call(
            "prepare_data",
            {
                "path": str(path),
                "valid_path": str(valid) if valid is not None else None,
                "base_dir": str(base_dir),
                "block_length": self._genesis.training.block_length,
                "valid_fraction": self._config.data.valid_fraction,
                "cache_path": str(self._cache_path),
            },
            timeout_s=PREPARE_TIMEOUT_S,
        )
        if self._data["num_skipped"]:
            first = self._data["skipped"][0]
            log.warning(
                "%d rows of the data are left out, the first in line %s: %s.",
                self._data["num_skipped"],
                first["line"],
                first["reason"],
            )

    async def train(self, order: Train, *, manifest: Mapping[str, str]) -> TrainedDelta:
        """Train one delta on the weights of `manifest`, which are those of the order's base; ready by its deadline.

        Raises:
            NodeError: Training failed; a cancelled call kills the trainer.
        """
        async with self._use:
            self.now = TrainingNow(
                of=self._genesis.training.max_steps,
                deadline_ms=order.deadline_ms,
                busy_ms=self.now.busy_ms,
                started_at_ms=self._clock.now_ms(),
            )
            out_path = self._home.work_dir / "delta.bin"
            left_s = max(order.deadline_ms - self._clock.now_ms(), 0) / 1000
            try:
                reply = await self._call(
                    "train",
                    self._train_request(order, manifest, out_path=out_path),
                    timeout_s=left_s + OVERRUN_S,
                )
            finally:
                self._count_time()
            blob = await asyncio.to_thread(self._blobs.put_file, out_path)
        self.now.num_tokens = reply["num_tokens"]
        return TrainedDelta(
            blob=blob,
            codec=reply["codec"],
            num_tokens=reply["num_tokens"],
            num_steps=reply["num_steps"],
            loss_first_micro=_micro(reply["loss_first"]),
            loss_last_micro=_micro(reply["loss_last"]),
        )

    async def evaluate(self, manifest: Mapping[str, str]) -> float | None:
        """Held-out loss of these weights on the owner's held-out rows, nats per token; None where there are none.

        Raises:
            NodeError: The trainer failed.
        """
        if self._data is None or not self._data["num_valid_blocks"]:
            return None
        async with self._use:
            reply = await self._call(
                "evaluate",
                {
                    **self._common(manifest),
                    "data_cache": str(self._cache_path),
                    "part": "valid",
                    "max_blocks": MAX_EVALUATED_BLOCKS,
                },
                timeout_s=OVERRUN_S,
            )
        return float(reply["loss"])

    async def pause(self) -> None:
        """Free the trainer's memory now; not while base or data are being prepared, which would be lost with it."""
        if not self._num_preparing:
            await self._child.kill()

    @contextlib.contextmanager
    def _preparing(self) -> Iterator[None]:
        self._num_preparing += 1
        try:
            yield
        finally:
            self._num_preparing -= 1

    def _train_request(self, order: Train, manifest: Mapping[str, str], *, out_path: Path) -> dict[str, Any]:
        train = self._config.train
        return {
            **self._common(manifest),
            "genesis_path": str(self._home.genesis_file),
            "round": order.base_round,
            "member": self._member.hex(),
            "seed": int.from_bytes(self._member[:4], "little"),
            "data_cache": str(self._cache_path),
            "state_dir": str(self._home.work_dir / "training"),
            "out_path": str(out_path),
            "num_averaged": order.num_averaged,
            "num_late": order.num_late,
            "pending": [
                {
                    "path": str(self._blobs.path(one.contribution.blob.id)),
                    "codec": one.contribution.codec,
                    "round": one.base_round,
                }
                for one in order.pending
            ],
            "deadline_ms": order.deadline_ms,
            "mode": train.mode.upper() if train.mode is not None else None,
            "rank": train.rank,
            "learning_rate": train.learning_rate,
            "max_steps": train.max_steps,
        }

    def _common(self, manifest: Mapping[str, str]) -> dict[str, Any]:
        if self._base_dir is None:
            raise NodeError("the base is not prepared yet", exit_code=ExitCode.RETRY)
        return {
            "base_dir": str(self._base_dir),
            "masters_dir": str(self._home.masters_dir),
            "manifest": dict(manifest),
            "device": self._config.train.device,
            "threads": self.threads,
        }

    @property
    def _cache_path(self) -> Path:
        return self._home.work_dir / "data.safetensors"

    def _on_progress(self, fields: dict[str, Any]) -> None:
        now = self.now
        now.step, now.of = int(fields.get("step", now.step)), int(fields.get("of", now.of))
        now.tokens_per_second = float(fields.get("tokens_per_s", now.tokens_per_second))
        if (loss := fields.get("loss")) is not None:
            now.loss_last = float(loss)
            now.loss_first = now.loss_last if now.loss_first is None else now.loss_first

    def _count_time(self) -> None:
        if self.now.started_at_ms is not None:
            self.now.busy_ms += self._clock.now_ms() - self.now.started_at_ms
            self.now.started_at_ms = None

    async def _call(self, method: str, params: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        try:
            return await self._child.call(
                method, params, on_progress=self._on_progress, timeout_s=timeout_s, kill_on_cancel=True
            )
        except ChildDiedError as error:
            raise NodeError(
                f"the trainer died at {method}: {error}",
                hint="Out of memory? Lower train.rank, or the threads; see `fullrank logs`.",
                exit_code=ExitCode.RETRY,
            ) from error
        except (ChildFailedError, TimeoutError) as error:
            raise NodeError(
                f"the trainer failed at {method}: {error or 'no answer in time'}",
                hint="See `fullrank logs`; the daemon tries again by itself.",
                exit_code=ExitCode.RETRY,
            ) from error


def _micro(loss: float) -> int:
    """Millionths of a nat within what the wire message holds."""
    with contextlib.suppress(OverflowError, ValueError):
        return min(max(round(loss * 1e6), 0), 2**32 - 1)
    return 2**32 - 1

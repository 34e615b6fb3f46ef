"""One trial at work: who has which blocks, and the training that every arm shares.

All arms train by the daemon's own loop (`fullrank_node.training.loop.run_steps`): AdamW, gradients clipped to norm
1, one cosine over the whole trial, or a constant rate. What a node reads, and in which order, depends on the seed
alone. An arm decides only what is trained, from where, for how many steps, and what becomes of it.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fullrank_node.training import lora
from fullrank_node.training.blocks import Blocks
from fullrank_node.training.cache import CacheSummary
from fullrank_node.training.loop import ADAM_BETAS, Deadline, Learner, Schedule, block_order, run_steps
from fullrank_node.training.lora import Factors
from fullrank_node.training.optimizer_state import TrainingState, read_moments
from fullrank_protocol.delta import SeedContext
from fullrank_protocol.genesis import Genesis
from learning.arm import Weights
from learning.bench import Bench
from learning.corpus import Int64Array
from learning.setting import Setting, deal

if TYPE_CHECKING:
    import torch

NO_DEADLINE = Deadline(at_ms=None, reserve_ms=0.0)
FRESH = TrainingState()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One volunteer.

    Attributes:
        member: Stands for its public key, from which its seeded A is drawn.
        shard: Numbers of its blocks.
        order_seed: Of the order in which it reads them.
    """

    number: int
    member: bytes
    shard: Int64Array
    order_seed: int

    def order(self) -> Iterator[int]:
        """Numbers of its blocks in the order in which it reads them, for ever."""
        for place in block_order(seed=self.order_seed, num_blocks=len(self.shard), start=0):
            yield int(self.shard[place])


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A model of which parameters are trained themselves, without an adapter."""

    model: Any
    names: tuple[str, ...]

    def named_parameters(self) -> "dict[str, torch.nn.Parameter]":
        """The parameters by name."""
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name] for name in self.names}

    def rate_factors(self) -> dict[str, float]:
        """One rate for all."""
        return dict.fromkeys(self.names, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBlocks:
    """A node's blocks as the daemon's training reads them: by their place among its own."""

    run: "Run"
    node: Node

    @property
    def summary(self) -> CacheSummary:
        """What it holds; only the number of blocks and the fingerprint are used in training."""
        return CacheSummary(
            num_rows=0,
            num_blocks=len(self.node.shard),
            num_tokens=0,
            num_valid_rows=0,
            num_valid_blocks=0,
            num_skipped=0,
            skipped=[],
            fingerprint=self.node.member.hex(),
        )

    def read(self, part: str, rows: npt.NDArray[np.int64]) -> Blocks:
        """Read some of the node's blocks."""
        assert part == "train"
        return self.run.read(self.node.shard[rows])


class Run:
    """A trial at work.

    Attributes:
        rate: Peak learning rate.
        nodes: The volunteers.
        directory: Empty, for what the daemon's code writes to disk.
        num_tokens: Targets read so far.
    """

    def __init__(self, bench: Bench, setting: Setting, *, rate: float, seed: int, directory: Path) -> None:
        self.bench, self.setting, self.rate, self.seed, self.directory = bench, setting, rate, seed, directory
        shards = deal(bench.corpus, nodes=setting.nodes, split=setting.split, seed=seed)
        self.nodes = [_node(seed, number, shard) for number, shard in enumerate(shards)]
        self.num_tokens = 0
        self._times_read = np.zeros(len(bench.corpus.train), dtype="<i8")

    def read(self, numbers: npt.NDArray[np.int64]) -> Blocks:
        """Read training blocks, and remember that they were read."""
        train = self.bench.corpus.train
        blocks = Blocks(tokens=train.tokens[numbers], flags=train.flags[numbers])
        np.add.at(self._times_read, numbers, 1)
        self.num_tokens += blocks.num_targets
        return blocks

    def data_digest(self) -> str:
        """Names how often each block was read: equal in all arms of a setting and seed."""
        return hashlib.sha256(self._times_read.tobytes()).hexdigest()[:12]

    def joint_order(self) -> Iterator[int]:
        """All nodes' blocks, a batch of each in turn: what everybody reads, by one reader."""
        orders = [node.order() for node in self.nodes]
        while True:
            for order in orders:
                for _ in range(self.setting.batch):
                    yield next(order)

    def schedule(self, number: int, *, steps: int, warm: bool) -> Schedule:
        """Rates of round `number`, counted from 0, in so many steps."""
        return Schedule(
            peak=self.rate,
            warmup_steps=min(self.setting.warmup, steps) if warm else 0,
            max_steps=steps,
            round=number,
            total_rounds=0 if self.setting.constant else self.setting.rounds,
        )

    def train_whole(
        self,
        weights: Weights,
        order: Iterator[int],
        *,
        names: Sequence[str] | None = None,
        batch: int,
        schedule: Schedule,
        state: TrainingState = FRESH,
        betas: tuple[float, float] = ADAM_BETAS,
    ) -> tuple[Weights, TrainingState]:
        """Train some of the weights, or all, and return all of them with the optimiser's state."""
        self.bench.load(weights)
        whole = Whole(model=self.bench.model, names=tuple(names or weights))
        for parameter in whole.named_parameters().values():
            parameter.requires_grad = True
        try:
            state = self._steps(whole, order, batch=batch, schedule=schedule, state=state, betas=betas)
        finally:
            self.bench.model.requires_grad_(requires_grad=False)
            self.bench.model.zero_grad(set_to_none=True)
        return {**weights, **self.bench.read(whole.names)}, state

    def train_adapter(
        self,
        weights: Weights,
        order: Iterator[int],
        *,
        rank: int,
        seed_of: SeedContext,
        start: Mapping[str, Factors] | None = None,
        schedule: Schedule,
        state: TrainingState = FRESH,
    ) -> tuple[Mapping[str, Factors], TrainingState]:
        """Train both factors of an adapter on these weights: from `start`, or from B = 0 and a seeded A."""
        self.bench.load(weights)
        adapter = lora.attach(self.bench.model, self.bench.genesis(), rank=rank, mode=lora.MODE_AB, context=seed_of)
        try:
            if start is not None:
                _set_factors(adapter, start)
            state = self._steps(adapter, order, batch=self.setting.batch, schedule=schedule, state=state)
            return adapter.factors(), state
        finally:
            adapter.detach()

    def seed_of(self, node: Node, number: int, *, genesis: Genesis | None = None) -> SeedContext:
        """Where a node's A comes from in a round or period."""
        return SeedContext(swarm=(genesis or self.bench.genesis()).swarm, member=node.member, period=number)

    def _steps(
        self,
        learner: Learner,
        order: Iterator[int],
        *,
        batch: int,
        schedule: Schedule,
        state: TrainingState,
        betas: tuple[float, float] = ADAM_BETAS,
    ) -> TrainingState:
        done = run_steps(
            learner,
            self.read,
            order,
            batch_size=batch,
            schedule=schedule,
            deadline=NO_DEADLINE,
            state=state,
            betas=betas,
            progress=ignore,
        )
        moments = read_moments(done.optimizer, learner.named_parameters())
        return TrainingState(num_steps=state.num_steps + done.num_steps, moments=moments)


def ignore(**_progress: object) -> None:
    """Nobody watches."""


def _node(seed: int, number: int, shard: Int64Array) -> Node:
    digest = hashlib.sha256(f"volunteer {number} of seed {seed}".encode()).digest()
    order_seed = int.from_bytes(hashlib.sha256(digest).digest()[:4], "little")
    return Node(number=number, member=digest, shard=shard, order_seed=order_seed)


def _set_factors(adapter: lora.Adapter, start: Mapping[str, Factors]) -> None:
    import torch

    with torch.no_grad():
        for name, factors in start.items():
            assert factors.A_RI is not None
            one = adapter.modules[name]
            one.B.copy_(torch.from_numpy(factors.B_OR.T if one.transposed else factors.B_OR))
            one.A.copy_(torch.from_numpy(factors.A_RI.T if one.transposed else factors.A_RI))

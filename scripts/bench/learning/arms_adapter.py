"""Arms that train low-rank adapters without our protocol: one adapter, restarts, and the published ways to merge.

Factors stay float32 here and are counted as bfloat16; dW = B @ A is formed and added in float64. A fresh adapter has
B = 0 and A drawn from a seed, the same draw as in the swarm's arms.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fullrank_node.training.lora import Factors
from fullrank_protocol.delta import SeedContext
from learning.arm import ADAPTER, AfterRound, Arm, FloatArray, Weights
from learning.arms_whole import BYTES_PER_NUMBER, mean_array
from learning.run import FRESH

if TYPE_CHECKING:
    from fullrank_node.training.optimizer_state import TrainingState
    from learning.run import Run

Adapters = Mapping[str, Factors]
"""Trained factors, both of them, by module."""

Change = Mapping[str, FloatArray]
"""dW by module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _AdapterArm(Arm):
    """What these arms have in common."""

    trains: ClassVar[str] = ADAPTER

    rank: int

    @property
    def anchor_rate(self) -> float:
        """See `Arm`."""
        return 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleAdapter(_AdapterArm):
    """One trainer reads everybody's blocks in sequence, by one adapter from beginning to end."""

    @property
    def name(self) -> str:
        """See `Arm`."""
        return f"adapter-r{self.rank}"

    def rounds(self, run: "Run") -> Iterator[AfterRound]:
        """See `Arm`."""
        factors: Adapters | None = None
        state, order = FRESH, run.joint_order()
        steps = run.setting.nodes * run.setting.steps
        for number in range(run.setting.rounds):
            factors, state = run.train_adapter(
                run.bench.initial,
                order,
                rank=self.rank,
                seed_of=run.seed_of(run.nodes[0], 0),
                start=factors,
                schedule=run.schedule(number, steps=steps, warm=number == 0),
                state=state,
            )
            yield AfterRound(models=(added(run.bench.initial, product(factors)),), num_bytes=(), roundings=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarts(_AdapterArm):
    """One trainer reads everybody's blocks in sequence and merges its adapter after every round, for a fresh one.

    After ReLoRA (Lialin et al. 2023, arXiv:2307.05695): what restarts alone give, without volunteers.
    """

    @property
    def name(self) -> str:
        """See `Arm`."""
        return f"restarts-r{self.rank}"

    def rounds(self, run: "Run") -> Iterator[AfterRound]:
        """See `Arm`."""
        weights, order = run.bench.initial, run.joint_order()
        steps = run.setting.nodes * run.setting.steps
        for number in range(run.setting.rounds):
            factors, _ = run.train_adapter(
                weights,
                order,
                rank=self.rank,
                seed_of=run.seed_of(run.nodes[0], number),
                schedule=run.schedule(number, steps=steps, warm=True),
            )
            weights = added(weights, product(factors))
            yield AfterRound(models=(weights,), num_bytes=(), roundings=number + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AloneAdapter(_AdapterArm):
    """Each node trains an adapter of its own on its own blocks; losses are averaged over nodes."""

    @property
    def name(self) -> str:
        """See `Arm`."""
        return f"alone-adapter-r{self.rank}"

    def rounds(self, run: "Run") -> Iterator[AfterRound]:
        """See `Arm`."""
        factors: list[Adapters | None] = [None] * len(run.nodes)
        states, orders = [FRESH] * len(run.nodes), [node.order() for node in run.nodes]
        for number in range(run.setting.rounds):
            schedule = run.schedule(number, steps=run.setting.steps, warm=number == 0)
            models: list[Weights] = []
            for index, node in enumerate(run.nodes):
                found, states[index] = run.train_adapter(
                    run.bench.initial,
                    orders[index],
                    rank=self.rank,
                    seed_of=run.seed_of(node, 0),
                    start=factors[index],
                    schedule=schedule,
                    state=states[index],
                )
                factors[index] = found
                models.append(added(run.bench.initial, product(found)))
            yield AfterRound(models=tuple(models), num_bytes=(), roundings=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Merging(_AdapterArm):
    """Every node trains an adapter for a round, then a merge makes new weights and a new start of them."""

    @abstractmethod
    def merge(self, weights: Weights, ends: Sequence[Adapters]) -> tuple[Weights, Adapters | None]:
        """Weights under the next round's adapters, and where these start; None for fresh ones."""

    @property
    def own_A(self) -> bool:  # noqa: N802
        """Whether fresh adapters have an A of their node's."""
        return False

    @property
    def carries(self) -> bool:
        """Whether the optimiser's state still means something after a merge."""
        return True

    def rounds(self, run: "Run") -> Iterator[AfterRound]:
        """See `Arm`."""
        weights, start = run.bench.initial, None
        orders = [node.order() for node in run.nodes]
        states: list[TrainingState] = [FRESH] * len(run.nodes)
        for number in range(run.setting.rounds):
            schedule = run.schedule(number, steps=run.setting.steps, warm=True)
            ends: list[Adapters] = []
            for index, node in enumerate(run.nodes):
                end, state = run.train_adapter(
                    weights,
                    orders[index],
                    rank=self.rank,
                    seed_of=run.seed_of(node, number) if self.own_A else shared_seed(run, number),
                    start=start,
                    schedule=schedule,
                    state=states[index],
                )
                states[index] = state if self.carries else FRESH
                ends.append(end)
            weights, start = self.merge(weights, ends)
            model = weights if start is None else added(weights, product(start))
            size = float(sum(BYTES_PER_NUMBER * _num_elements(factors) for factors in ends[0].values()))
            yield AfterRound(models=(model,), num_bytes=(size,) * len(ends), roundings=number + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorAveraging(_Merging):
    """B and A are averaged each for itself, which is not the average of the products.

    Attributes:
        own: Whether every node draws an A of its own, or all the same.
        restart: Whether the merged adapter goes into the weights for a fresh one, or is trained further.
    """

    own: bool
    restart: bool

    @property
    def name(self) -> str:
        """See `Arm`."""
        return f"factors-{'own' if self.own else 'shared'}{'-restart' if self.restart else ''}-r{self.rank}"

    @property
    def own_A(self) -> bool:  # noqa: N802
        """See `_Merging`."""
        return self.own

    @property
    def carries(self) -> bool:
        """See `_Merging`."""
        return not self.restart

    def merge(self, weights: Weights, ends: Sequence[Adapters]) -> tuple[Weights, Adapters | None]:
        """See `_Merging`."""
        mean = mean_factors(ends)
        return (added(weights, product(mean)), None) if self.restart else (weights, mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualFolding(_Merging):
    """Factors are averaged, and what that misses of the mean product is added to the weights: exact, one adapter.

    After FedEx-LoRA (Singhal et al. 2024, arXiv:2410.09432). The residual that every node must fetch is of full size
    and not counted.
    """

    @property
    def name(self) -> str:
        """See `Arm`."""
        return f"fedex-r{self.rank}"

    def merge(self, weights: Weights, ends: Sequence[Adapters]) -> tuple[Weights, Adapters | None]:
        """See `_Merging`."""
        mean = mean_factors(ends)
        averaged, kept = mean_product(ends), product(mean)
        return added(weights, {name: averaged[name] - kept[name] for name in averaged}), mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacking(_Merging):
    """Products are averaged exactly, by stacking all factors; every round begins with fresh adapters, an A each.

    After FLoRA (Wang et al. 2024, arXiv:2409.05976).
    """

    @property
    def name(self) -> str:
        """See `Arm`."""
        return f"stacking-r{self.rank}"

    @property
    def own_A(self) -> bool:  # noqa: N802
        """See `_Merging`."""
        return True

    @property
    def carries(self) -> bool:
        """See `_Merging`."""
        return False

    def merge(self, weights: Weights, ends: Sequence[Adapters]) -> tuple[Weights, Adapters | None]:
        """See `_Merging`."""
        return added(weights, mean_product(ends)), None


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedMean(_Merging):
    """The mean product is cut to the adapter's rank by a singular value decomposition, and trained further.

    After FlexLoRA (Bai et al. 2024, arXiv:2402.11505). Singular vectors turn from round to round, so the optimiser
    starts anew.
    """

    @property
    def name(self) -> str:
        """See `Arm`."""
        return f"svd-r{self.rank}"

    @property
    def carries(self) -> bool:
        """See `_Merging`."""
        return False

    def merge(self, weights: Weights, ends: Sequence[Adapters]) -> tuple[Weights, Adapters | None]:
        """See `_Merging`."""
        ranks = {name: factors.B_OR.shape[1] for name, factors in ends[0].items()}
        return weights, {name: truncated(change, ranks[name]) for name, change in mean_product(ends).items()}


def shared_seed(run: "Run", number: int) -> SeedContext:
    """Of an A that all nodes have in common in a round: the first node's."""
    return run.seed_of(run.nodes[0], number)


def product(adapters: Adapters) -> Change:
    """B @ A of every module."""
    changes = {}
    for name, factors in adapters.items():
        assert factors.A_RI is not None
        changes[name] = factors.B_OR.astype(np.float64) @ factors.A_RI.astype(np.float64)
    return changes


def mean_product(ends: Sequence[Adapters]) -> Change:
    """The average of several adapters' products."""
    changes = [product(end) for end in ends]
    return {name: np.mean([change[name] for change in changes], axis=0) for name in changes[0]}


def mean_factors(ends: Sequence[Adapters]) -> Adapters:
    """The averages of several adapters' Bs and of their As."""
    found = {}
    for name in ends[0]:
        rows = [end[name].A_RI for end in ends]
        found[name] = Factors(
            B_OR=mean_array([end[name].B_OR for end in ends]), A_RI=mean_array([row for row in rows if row is not None])
        )
    return found


def truncated(change: FloatArray, rank: int) -> Factors:
    """The nearest matrix of a rank, as factors of equal norms."""
    left_OK, values_K, right_KI = np.linalg.svd(change, full_matrices=False)
    root_R = np.sqrt(values_K[:rank])
    return Factors(
        B_OR=(left_OK[:, :rank] * root_R).astype(np.float32),
        A_RI=(root_R[:, np.newaxis] * right_KI[:rank]).astype(np.float32),
    )


def added(weights: Weights, change: Change) -> Weights:
    """New weights, rounded to float32 once."""
    return {
        name: (tensor + change[name]).astype(np.float32) if name in change else tensor
        for name, tensor in weights.items()
    }


def _num_elements(factors: Factors) -> int:
    assert factors.A_RI is not None
    return factors.B_OR.size + factors.A_RI.size

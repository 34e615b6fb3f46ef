"""Arms that train the weights themselves: in sequence, in step, apart and averaged, sparsely shared, alone.

Full fine-tuning trains every parameter; adapters, and so the swarm, leave norms alone. The arm `parallel-linear` shows
what it costs to leave the embeddings alone, too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fullrank_node.training.loop import ADAM_BETAS
from learning.arm import WHOLE, AfterRound, Arm, Float32Array, FloatArray, Weights
from learning.run import FRESH
from learning.sparse import compress

if TYPE_CHECKING:
    from learning.run import Run

BYTES_PER_NUMBER = 2
"""What is not quantised travels as bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequential(Arm):
    """One trainer reads everybody's blocks one batch after the other: the same data, as many steps as all nodes."""

    trains: ClassVar[str] = WHOLE

    @property
    def name(self) -> str:
        """See `Arm`."""
        return "sequence"

    @property
    def anchor_rate(self) -> float:
        """See `Arm`."""
        return 1e-3

    def rounds(self, run: "Run") -> Iterator[AfterRound]:
        """See `Arm`."""
        weights, state, order = run.bench.initial, FRESH, run.joint_order()
        steps = run.setting.nodes * run.setting.steps
        for number in range(run.setting.rounds):
            schedule = run.schedule(number, steps=steps, warm=number == 0)
            weights, state = run.train_whole(weights, order, batch=run.setting.batch, schedule=schedule, state=state)
            yield AfterRound(models=(weights,), num_bytes=(), roundings=(number + 1) * steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel(Arm):
    """All nodes' gradients are averaged in every step: synchronous data-parallel training, the mark to reach.

    The average is over tokens, which makes a step one batch of everybody's blocks.

    Attributes:
        linear_only: Train the linear layers, and not embeddings and norms.
        first_decay: Of AdamW's first moments.
    """

    trains: ClassVar[str] = WHOLE

    linear_only: bool = False
    first_decay: float = ADAM_BETAS[0]

    @property
    def name(self) -> str:
        """See `Arm`."""
        parts = [
            "parallel",
            "linear" if self.linear_only else "",
            "" if self.first_decay == ADAM_BETAS[0] else f"beta{self.first_decay:g}",
        ]
        return "-".join(part for part in parts if part)

    @property
    def anchor_rate(self) -> float:
        """See `Arm`."""
        return 2e-3

    def rounds(self, run: "Run") -> Iterator[AfterRound]:
        """See `Arm`."""
        weights, state, order = run.bench.initial, FRESH, run.joint_order()
        steps, batch = run.setting.steps, run.setting.nodes * run.setting.batch
        names = run.bench.linear if self.linear_only else tuple(weights)
        betas = (self.first_decay, ADAM_BETAS[1])
        sent = BYTES_PER_NUMBER * sum(weights[name].size for name in names) * steps
        for number in range(run.setting.rounds):
            schedule = run.schedule(number, steps=steps, warm=number == 0)
            weights, state = run.train_whole(
                weights, order, names=names, batch=batch, schedule=schedule, state=state, betas=betas
            )
            yield AfterRound(
                models=(weights,), num_bytes=(float(sent),) * run.setting.nodes, roundings=(number + 1) * steps
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSteps(Arm):
    """Each node trains all weights for a round, then all are averaged: local SGD, no low rank and no bits saved.

    Attributes:
        carry: Whether a node's optimiser state lives on after a merge.
    """

    trains: ClassVar[str] = WHOLE

    carry: bool

    @property
    def name(self) -> str:
        """See `Arm`."""
        return f"local-{'carried' if self.carry else 'fresh'}"

    @property
    def anchor_rate(self) -> float:
        """See `Arm`."""
        return 2e-3

    def rounds(self, run: "Run") -> Iterator[AfterRound]:
        """See `Arm`."""
        weights, orders = run.bench.initial, [node.order() for node in run.nodes]
        states = [FRESH] * len(run.nodes)
        size = float(BYTES_PER_NUMBER * sum(tensor.size for tensor in weights.values()))
        for number in range(run.setting.rounds):
            schedule = run.schedule(number, steps=run.setting.steps, warm=True)
            ends: list[Weights] = []
            for index, order in enumerate(orders):
                end, state = run.train_whole(
                    weights, order, batch=run.setting.batch, schedule=schedule, state=states[index]
                )
                states[index] = state if self.carry else FRESH
                ends.append(end)
            weights = mean_weights(ends)
            roundings = (number + 1) * (run.setting.steps + 1)
            yield AfterRound(models=(weights,), num_bytes=(size,) * len(orders), roundings=roundings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse(Arm):
    """As `LocalSteps`, but of a node's change only the largest entries travel, in two bits; the rest is kept back.

    After SparseLoCo (Sarfi et al. 2025, arXiv:2508.15706): top-k in chunks, error feedback with decay, AdamW's state
    carried, outer step 1.

    Attributes:
        density: Share of the entries that travel.
        decay: Of what was kept back, from one round to the next.
    """

    trains: ClassVar[str] = WHOLE

    density: float
    decay: float = 0.95

    @property
    def name(self) -> str:
        """See `Arm`."""
        return f"sparse-{self.density:.3g}"

    @property
    def anchor_rate(self) -> float:
        """See `Arm`."""
        return 2e-3

    def rounds(self, run: "Run") -> Iterator[AfterRound]:
        """See `Arm`."""
        weights, orders = run.bench.initial, [node.order() for node in run.nodes]
        states = [FRESH] * len(run.nodes)
        kept = [np.zeros(sum(tensor.size for tensor in weights.values())) for _ in run.nodes]
        for number in range(run.setting.rounds):
            schedule = run.schedule(number, steps=run.setting.steps, warm=True)
            start = flattened(weights)
            total, sizes = np.zeros_like(start), []
            for index, order in enumerate(orders):
                end, states[index] = run.train_whole(
                    weights, order, batch=run.setting.batch, schedule=schedule, state=states[index]
                )
                wanted = self.decay * kept[index] + (flattened(end) - start)
                sent = compress(wanted, density=self.density)
                kept[index] = wanted - sent.values
                total += sent.values
                sizes.append(sent.num_bytes)
            weights = like(start + total / len(orders), weights)
            yield AfterRound(models=(weights,), num_bytes=tuple(sizes), roundings=number + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone(Arm):
    """Each node trains all weights on its own blocks and merges with nobody; losses are averaged over nodes."""

    trains: ClassVar[str] = WHOLE

    @property
    def name(self) -> str:
        """See `Arm`."""
        return "alone"

    @property
    def anchor_rate(self) -> float:
        """See `Arm`."""
        return 2e-3

    def rounds(self, run: "Run") -> Iterator[AfterRound]:
        """See `Arm`."""
        models: list[Weights] = [run.bench.initial] * len(run.nodes)
        states, orders = [FRESH] * len(run.nodes), [node.order() for node in run.nodes]
        for number in range(run.setting.rounds):
            schedule = run.schedule(number, steps=run.setting.steps, warm=number == 0)
            for index, order in enumerate(orders):
                models[index], states[index] = run.train_whole(
                    models[index], order, batch=run.setting.batch, schedule=schedule, state=states[index]
                )
            roundings = (number + 1) * run.setting.steps
            yield AfterRound(models=tuple(models), num_bytes=(), roundings=roundings)


def mean_weights(ends: Sequence[Weights]) -> Weights:
    """The average of several models, taken in float64."""
    return {name: mean_array([end[name] for end in ends]) for name in ends[0]}


def mean_array(arrays: Sequence[Float32Array]) -> Float32Array:
    """The average of several arrays, taken in float64 and rounded once."""
    total = np.zeros(arrays[0].shape)
    for array in arrays:
        total += array
    return (total / len(arrays)).astype(np.float32)


def flattened(weights: Weights) -> FloatArray:
    """All weights in one float64 vector."""
    return np.concatenate([tensor.reshape(-1) for tensor in weights.values()]).astype(np.float64)


def like(vector: FloatArray, weights: Weights) -> Weights:
    """The inverse of `flattened`, rounded to float32."""
    found, at = {}, 0
    for name, tensor in weights.items():
        found[name] = vector[at : at + tensor.size].reshape(tensor.shape).astype(np.float32)
        at += tensor.size
    return found

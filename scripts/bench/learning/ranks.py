"""Ranks of what a trial has changed, round by round, against noise of the same ranks and norms.

The noise control of a swarm replaces every B that was sent by a random one, keeps the A that came from a seed (one
that was trained is replaced, too), and gives each product the norm that it had in the merge, module by module.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fullrank_node.model.rank import ModuleRank, rank_of_change, rank_of_update
from fullrank_protocol.delta import Delta, LowRank, to_float
from fullrank_protocol.genesis import Module
from learning.arm import AfterRound, FloatArray, Weights


class RankTrack:
    """Measures an arm after every round.

    Attributes:
        change: A line a round: mean over modules of the ranks of W_t - W_0.
        noise: The same of the control; empty for arms that merge no deltas.
    """

    def __init__(self, base: Weights, modules: Sequence[Module], *, seed: int) -> None:
        self._base, self._modules = base, modules
        self._rng = np.random.default_rng([seed, 2])
        self._noise: dict[str, FloatArray] = {}
        self.change: list[Mapping[str, float]] = []
        self.noise: list[Mapping[str, float]] = []

    def add(self, after: AfterRound) -> None:
        """Measure the model after a round; the first node's, where every node has its own."""
        model = after.models[0]
        self.change.append(
            _means(
                rank_of_change(module.name, self._base[module.name], model[module.name], num_rounds=after.roundings)
                for module in self._modules
            )
        )
        if after.merged:
            for delta, weight in after.merged:
                self._add_noise(delta, weight)
            self.noise.append(_means(rank_of_update(name, change) for name, change in self._noise.items()))

    def to_json(self) -> dict[str, Any]:
        """What was measured, as columns."""
        found: dict[str, Any] = {"rank": _columns(self.change)}
        return found | {"rank_noise": _columns(self.noise)} if self.noise else found

    def _add_noise(self, delta: Delta, weight: float) -> None:
        measured = {module.name for module in self._modules}
        for part in delta.parts:
            if not isinstance(part, LowRank) or part.A_RI is None or part.module not in measured:
                continue
            A_RI = part.A_RI.astype(np.float64) if part.seeded else self._rng.standard_normal(part.A_RI.shape)
            product = self._rng.standard_normal(part.B_OR.shape) @ A_RI
            norm = weight * float(np.linalg.norm(to_float(part)))
            if norm > 0.0:
                change = product * (norm / float(np.linalg.norm(product)))
                self._noise[part.module] = self._noise.get(part.module, 0.0) + change


def _means(ranks: Iterable[ModuleRank]) -> Mapping[str, float]:
    found = list(ranks)
    return {
        "numerical": round(float(np.mean([one.numerical for one in found])), 3),
        "stable": round(float(np.mean([one.stable for one in found])), 3),
        "effective": round(float(np.mean([one.effective for one in found])), 3),
        "full": round(float(np.mean([one.full for one in found])), 3),
    }


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}

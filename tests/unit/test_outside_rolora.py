"""RoLoRA's linear model: a frozen shared A ends on a floor, exact sums of products contract geometrically.

Source: Shuangyi Chen, Yuanxin Guo, Yue Ju, Hardik Dalal, Ashish Khisti, "Robust Federated Finetuning of LLMs via
Alternating Optimization of LoRA" (RoLoRA), 2025, arXiv:2502.01755, the section on a linear model.

The model. Client i sees Y_i = X_i a* b*^T with |a*| = 1 and fits X_i a b^T by least squares; in our layout the layer
is W = b a^T, a row of A and a column of B. The paper's X_i are Gaussian; here every client has sixteen rows of signs
with X_i^T X_i = 16 I, so each client's loss (summed over outputs, mean over rows) is exactly |W* - W|^2, and what the
paper allows for sampling (its c~) is 0. We know its statements from others' notes, so both are derived here:

1. FFA-LoRA, a frozen at a unit a_0 on all clients. |b* a*^T - b a_0^T|^2 is least at b = b* (a* . a_0). What is left
   is b* times the part of a* across a_0, of squared norm |b*|^2 delta_0^2, delta being the sine of the angle from a
   to a*: the floor.
2. Alternating: b by least squares, then one gradient step of length eta on a, made unit again. Write
   a = c a* + delta u with u across a*, c the cosine. Then b = c b*, the gradient by a of half the loss is
   -|b*|^2 c (a* - c a), and with k = eta |b*|^2 the step ends at c (1 + k delta^2) a* + delta (1 - k c^2) u, longer
   than 1. So delta_1 <= delta (1 - k c^2) <= delta sqrt(1 - k c^2) for k <= 1, and since c only grows,
   delta_J <= delta_0 (1 - eta (1 - delta_0^2) |b*|^2)^(J / 2): the paper's rate, under which the floor is left behind.

For rounds of restarts with B alone trained (mode B) the same least squares give a closed form too. From B = 0, J
gradient steps of length eta on node n multiply the error E = W* - W by M_n = (I - eta A_n^T A_n)^J, since each takes
eta E A_n^T A_n away, and the exact mean of products makes E_t+1 = E_t mean(M_n). What comes on top in each round is
the rounding to integers, bounded entry by entry from the scales that were sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outside_checks import (
    LAYER,
    FloatArray,
    SharedWeights,
    encoded,
    float32_bound,
    genesis_of_layer,
    line,
    rounding_bound,
    seeds_of,
)

from fullrank_node.training import lora
from fullrank_protocol.delta import SeedContext, seeded_rows
from fullrank_protocol.scaled import Scaled

NODES = ("ada", "ben", "cyd", "dora")
OUT, IN = 8, 16
B_STAR_NORM = 0.75


class LinearModel:
    """The paper's a* and b*, the clients' data, and the shared weights that start from zero."""

    def __init__(self, directory: Path) -> None:
        rng = np.random.default_rng(2502)
        a, b = rng.normal(size=IN), rng.normal(size=OUT)
        self.a_star: FloatArray = a / np.linalg.norm(a)
        self.b_star: FloatArray = B_STAR_NORM * b / np.linalg.norm(b)
        self.target = np.outer(self.b_star, self.a_star)
        signs = np.array([[1.0]])
        while len(signs) < IN:
            signs = np.block([[signs, signs], [signs, -signs]])
        self.data = {name: signs[rng.permutation(IN)] * rng.choice([-1.0, 1.0], size=IN) for name in NODES}
        self.genesis = genesis_of_layer(OUT, IN)
        self.shared = SharedWeights(directory, self.genesis, {LAYER: np.zeros((OUT, IN))})

    @property
    def error(self) -> FloatArray:
        return self.target - self.shared[LAYER]

    @property
    def loss(self) -> float:
        """The mean over the clients of the paper's loss, from their own data."""
        losses = [np.square(x @ self.error.T).sum() / len(x) for x in self.data.values()]
        return float(np.mean(losses))

    def attach(self, seeds: SeedContext, *, rank: int, mode: str) -> lora.Adapter:
        return lora.attach(line(self.shared[LAYER]), self.genesis, rank=rank, mode=mode, context=seeds)

    def half_loss(self, adapter: lora.Adapter, name: str) -> Any:
        """Half the client's loss: its gradient by W is W - W*."""
        import torch

        x = torch.from_numpy(self.data[name])
        return ((adapter.model(x) - x @ torch.from_numpy(self.target).T) ** 2).sum() / (2 * len(x))

    def train_b(self, name: str, seeds: SeedContext, *, rank: int, rate: float, steps: int) -> dict[str, lora.Factors]:
        import torch

        adapter = self.attach(seeds, rank=rank, mode="B")
        optimizer = torch.optim.SGD(list(adapter.named_parameters().values()), lr=rate)
        for _ in range(steps):
            optimizer.zero_grad()
            self.half_loss(adapter, name).backward()
            optimizer.step()
        return adapter.factors()

    def rows(self, seeds: SeedContext, rank: int) -> FloatArray:
        rows: FloatArray = seeded_rows(seeds, LAYER, rows=rank, columns=IN) / np.sqrt(IN)
        return rows

    def merge(self, sent: list[tuple[dict[str, lora.Factors], SeedContext]]) -> FloatArray:
        """Merge with equal weights; returns how far rounding to integers moves each entry from the trained mean."""
        equal = [Scaled.of(1 / len(sent))] * len(sent)
        deltas = self.shared.merge([(encoded(factors, self.genesis), seeds) for factors, seeds in sent], equal)
        mean: FloatArray = np.mean([rounding_bound(delta, LAYER, bits=8) for delta in deltas], axis=0)
        return mean

    def loss_within(self, allowed: FloatArray) -> float:
        """How far the loss can be from |E|^2 when each entry of the error is within `allowed` of E."""
        return float((2 * np.abs(self.error) * allowed + allowed**2).sum())


@pytest.fixture
def model(tmp_path: Path) -> LinearModel:
    return LinearModel(tmp_path / "masters")


def mean_multiplier(rows: list[FloatArray], *, rate: float, steps: int) -> FloatArray:
    """The mean over nodes of M_n = (I - eta A_n^T A_n)^J."""
    powers = [np.linalg.matrix_power(np.eye(IN) - rate * rows_RI.T @ rows_RI, steps) for rows_RI in rows]
    mean: FloatArray = np.mean(powers, axis=0)
    return mean


def test_a_frozen_shared_a_ends_on_the_floor(model: LinearModel) -> None:
    """All nodes draw the same a_0 and keep it; a unit row and eta = 1 make one step the least squares solution.

    Rounding errors are multiples of a_0, so the next round's least squares undo them; the masters' float32 stays.

    Fails if anything but B A reached the weights (the part across a_0 would move), if a scale were lost on the way
    (a part along a_0 would stay), or if the A that is trained on were not the one that is merged (either).
    """
    seeds = seeds_of(model.genesis, "ada")
    a_0 = model.rows(seeds, 1)[0]
    assert np.linalg.norm(a_0) == 1.0
    floor = B_STAR_NORM**2 * (1 - (model.a_star @ a_0) ** 2)
    left = model.target - np.outer(model.target @ a_0, a_0)
    across = np.eye(IN) - np.outer(a_0, a_0)
    rounding, float32 = np.zeros((OUT, IN)), np.zeros((OUT, IN))
    for _ in range(4):
        sent = [(model.train_b(name, seeds, rank=1, rate=1.0, steps=1), seeds) for name in NODES]
        rounding = model.merge(sent)
        float32 = float32 @ np.abs(across) + float32_bound(model.shared[LAYER])
        assert (np.abs(model.error - left) <= rounding + float32).all()
    tolerance = model.loss_within(rounding + float32)
    assert model.loss == pytest.approx(floor, abs=tolerance)
    assert tolerance < 1e-3 * (B_STAR_NORM**2 - floor)


def run_rounds(model: LinearModel, *, nodes: Sequence[str], rank: int, periods: Sequence[int]) -> tuple[float, float]:
    """Rounds of mode B with own A by node and period, held against the closed form in every round.

    One round from the actual weights: every entry within that round's rounding. All rounds from the start: rounding
    is carried on by the multipliers, whose largest singular value bounds it in the Frobenius norm.

    Returns:
        The closed form's loss after the last round, and how far the real one may be from it.
    """
    rate, steps = 0.5, 6
    expected, allowed = model.target, 0.0
    for period in periods:
        seeds = {name: seeds_of(model.genesis, name, period=period) for name in nodes}
        mean = mean_multiplier([model.rows(one, rank) for one in seeds.values()], rate=rate, steps=steps)
        before = model.error
        sent = [(model.train_b(name, one, rank=rank, rate=rate, steps=steps), one) for name, one in seeds.items()]
        rounding = model.merge(sent) + float32_bound(model.shared[LAYER])
        assert (np.abs(model.error - before @ mean) <= rounding).all()
        assert np.abs(rounding).max() < 0.02 * np.abs(model.error - before).max()
        expected = expected @ mean
        allowed = float(np.linalg.norm(mean, 2)) * allowed + float(np.linalg.norm(rounding))
        assert np.linalg.norm(model.error - expected) <= allowed
    size = float(np.linalg.norm(expected))
    return size**2, 2 * size * allowed + allowed**2


def missed_by(model: LinearModel, rows: Sequence[FloatArray]) -> float:
    """The floor of frozen rows: the squared part of b* a*^T across all of them."""
    _, _, basis = np.linalg.svd(np.concatenate(rows), full_matrices=False)
    across = model.a_star - basis.T @ (basis @ model.a_star)
    return B_STAR_NORM**2 * float(across @ across)


def test_sums_of_products_over_own_factors_leave_the_floor_behind_geometrically(model: LinearModel) -> None:
    """Four nodes of rank 4 draw a new A each round.

    For subspaces of dimension r drawn at random the mean multiplier takes the squared error down by
    1 - 2r/d + r/(Nd) + (1 - 1/N) r^2/d^2 on average, here 0.609; eight rounds of it are 0.019. What is asserted is
    the closed form of these very draws, and that it ends at less than a tenth of where a frozen A would.

    Fails if factors were averaged instead of products, a weight or scale were wrong, the A that is trained on were
    not the one that is merged, two nodes or periods shared A, or training did not start from B = 0.
    """
    loss, allowed = run_rounds(model, nodes=NODES, rank=4, periods=range(8))
    floor = missed_by(model, [model.rows(seeds_of(model.genesis, "ada"), 4)])
    assert model.loss == pytest.approx(loss, abs=allowed)
    assert model.loss < 0.1 * floor


def test_kept_factors_stop_at_the_part_that_all_rows_together_miss(model: LinearModel) -> None:
    """Two nodes of rank 4 keep their A: eight rows of sixteen, so half of the directions are out of reach.

    Fails as the test above, and if the A of a period were not the same each time it is drawn.
    """
    loss, allowed = run_rounds(model, nodes=NODES[:2], rank=4, periods=[0] * 8)
    floor = missed_by(model, [model.rows(seeds_of(model.genesis, name), 4) for name in NODES[:2]])
    assert model.loss == pytest.approx(loss, abs=allowed)
    assert model.loss == pytest.approx(floor, rel=0.05)
    assert model.loss > floor - allowed


def test_averaged_factors_are_off_the_closed_form(model: LinearModel) -> None:
    """The control: mean(B) mean(A) of the same trained factors misses what the merge and the closed form agree on."""
    seeds = {name: seeds_of(model.genesis, name) for name in NODES}
    sent = [(model.train_b(name, one, rank=4, rate=0.5, steps=6), one) for name, one in seeds.items()]
    mean_b = np.mean([factors[LAYER].B_OR for factors, _ in sent], axis=0)
    mean_a = np.mean([model.rows(one, 4) for one in seeds.values()], axis=0)
    before = model.target
    rounding = model.merge(sent)
    closed_form = before @ mean_multiplier([model.rows(one, 4) for one in seeds.values()], rate=0.5, steps=6)
    assert np.abs(model.error - closed_form).max() <= rounding.max()
    assert np.abs(before - mean_b @ mean_a - closed_form).max() > 20 * rounding.max()


@dataclass(frozen=True, kw_only=True)
class Alternated:
    """What the closed form says of one merge of alternating nodes.

    Attributes:
        expected: The merged weights.
        norm: Largest norm of the error by the paper's rate: the mean of the nodes' |b*| delta_J.
        floors: The nodes' losses with a_0 frozen.
        rounding: How far the real weights may be from `expected`.
    """

    expected: FloatArray
    norm: float
    floors: list[float]
    rounding: FloatArray


def alternate(model: LinearModel, alternations: int) -> Alternated:
    """One round in which every node alternates as the paper does, from its own a_0, and ends with b."""
    import torch

    rate, sent = 0.8, []
    k = rate * B_STAR_NORM**2
    expected, norms, floors = np.zeros((OUT, IN)), [], []
    for name in NODES:
        seeds = seeds_of(model.genesis, name)
        adapter = model.attach(seeds, rank=1, mode="AB")
        a, b = (adapter.named_parameters()[f"{side}.{LAYER}"] for side in "AB")
        for number in range(2 * alternations + 1):
            trained, step = (b, 1.0) if number % 2 == 0 else (a, rate)
            adapter.model.zero_grad()
            model.half_loss(adapter, name).backward()
            assert trained.grad is not None
            with torch.no_grad():
                trained.sub_(step * trained.grad)
                if trained is a:
                    a.div_(a.norm())
        sent.append((adapter.factors(), seeds))

        start = model.rows(seeds, 1)[0]
        cosine = float(start @ model.a_star)
        sine = float(np.sqrt(1 - cosine**2))
        across = (start - cosine * model.a_star) / sine
        floors.append(B_STAR_NORM**2 * sine**2)
        norms.append(B_STAR_NORM * sine * (1 - k * cosine**2) ** (alternations / 2))
        for _ in range(alternations):
            along, aside = cosine * (1 + k * sine**2), sine * (1 - k * cosine**2)
            cosine, sine = along / np.hypot(along, aside), aside / np.hypot(along, aside)
        expected += np.outer(model.b_star * cosine, cosine * model.a_star + sine * across) / len(NODES)
    rounding = model.merge(sent) + float32_bound(expected)
    return Alternated(expected=expected, norm=float(np.mean(norms)), floors=floors, rounding=rounding)


@pytest.mark.parametrize("alternations", [0, 1, 4, 16])
def test_alternating_nodes_send_products_at_the_closed_form_angle(model: LinearModel, alternations: int) -> None:
    """Mode AB at rank 1: the closed form gives each node's a_J and b = b* cos, so the merge is known before it.

    Fails if A were not sent as trained, a scale were lost, columns of B and rows of A were paired wrongly, or the
    products were merged as anything but their mean. With no alternation it is FFA-LoRA's least squares.
    """
    found = alternate(model, alternations)
    assert (np.abs(model.shared[LAYER] - found.expected) <= found.rounding).all()
    assert found.rounding.max() < 0.02 * np.abs(found.expected).max()
    assert model.loss <= found.norm**2 + model.loss_within(found.rounding)


def test_alternating_leaves_the_floor_of_every_node_behind(model: LinearModel) -> None:
    """Sixteen alternations end at less than a hundredth of the best loss that any of the frozen a_0 allows."""
    found = alternate(model, 16)
    assert model.loss < 0.01 * min(found.floors)

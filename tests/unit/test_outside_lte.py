"""LTE's equivalence: N heads that merge after every step are one multi-head adapter at scale s / N.

Source: Minyoung Huh, Brian Cheung, Jeremy Bernstein, Phillip Isola, Pulkit Agrawal, "Training Neural Networks from
Scratch with Parallel Low-Rank Adapters" (LTE), 2024, arXiv:2402.16828; its code tests the equivalence on one linear
layer from 16 to 32 features with four heads of rank 8, ten steps of SGD and rtol 1e-3.

The multi-head adapter computes x (W_0 + s/N sum B_n A_n)^T, is never merged, and all of its heads see one batch. The
nodes each have the base alone and one head at scale s. When they merge (s/N) B_n A_n after every step, all of them
see the weights that the multi-head adapter stands for. Its gradient for B_n is s/N times G A_n^T, a node's is s times
G A_n^T, so SGD needs LTE's mean of the loss over the N copies of the batch, which divides the nodes' gradients by N;
for AdamW, whose step does not depend on the gradient's scale, it is enough to scale its epsilon along.

LTE keeps its heads over a merge and subtracts them from the base of each; a round here starts again from B = 0. With
A kept (mode B) that is the same: the product is linear in B, so steps on B add up, whatever B they start from. (With
A trained as well it would be the same only for heads that are kept.)

Here s = 1. What the merge may add is the rounding to integers, bounded from the scales that were sent. LTE's rtol is
not used: on outputs it would pass whenever the steps are small.
"""

import json
import warnings
from collections.abc import Callable, Sequence
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
from swarms import key_of

from fullrank_node.model.base_load import load_base
from fullrank_node.model.evaluate import token_losses
from fullrank_node.training import lora
from fullrank_node.training.blocks import IS_TARGET, Blocks
from fullrank_node.training.cache import BlockCache
from fullrank_node.training.loop import ADAM_BETAS, MAX_GRADIENT_NORM, block_order
from fullrank_node.training.trainer import Trainer
from fullrank_protocol.delta import seeded_rows
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.scaled import Scaled

HEADS = ("ada", "ben", "cyd", "dora")
N = len(HEADS)
IN, OUT, RANK = 16, 32, 8
MERGES, RATE, BATCH = 10, 1.0, 128
PERIOD, LLAMA_RANK, LLAMA_RATE = 3, 4, 0.01
EQUAL = [Scaled.of(1 / N)] * N


class Layer:
    """LTE's linear layer and its data: squared error here, as the mean of outputs has the same gradient everywhere."""

    def __init__(self, directory: Path) -> None:
        rng = np.random.default_rng(2402)
        self.genesis = genesis_of_layer(OUT, IN)
        self.shared = SharedWeights(directory, self.genesis, {LAYER: rng.normal(size=(OUT, IN)) / np.sqrt(IN)})
        self.start = self.shared[LAYER]
        self.batches = rng.normal(size=(MERGES, BATCH, IN)), rng.normal(size=(MERGES, BATCH, OUT))
        self.seeds = {name: seeds_of(self.genesis, name) for name in HEADS}
        self.rows = [seeded_rows(one, LAYER, rows=RANK, columns=IN) / np.sqrt(IN) for one in self.seeds.values()]

    def batch(self, step: int) -> tuple[Any, Any]:
        import torch

        return torch.from_numpy(self.batches[0][step]), torch.from_numpy(self.batches[1][step])

    def run_nodes(self, *, merge_every: int) -> list[FloatArray]:
        """Every node steps on its own head alone; returns what rounding can have moved in each merge."""
        import torch

        bounds = []
        for first in range(0, MERGES, merge_every):
            sent = []
            for seeds in self.seeds.values():
                adapter = lora.attach(line(self.shared[LAYER]), self.genesis, rank=RANK, mode="B", context=seeds)
                optimizer = torch.optim.SGD(list(adapter.named_parameters().values()), lr=RATE)
                for step in range(first, first + merge_every):
                    x, y = self.batch(step)
                    optimizer.zero_grad()
                    (squared_error(adapter.model(x), y) / N).backward()
                    optimizer.step()
                sent.append((encoded(adapter.factors(), self.genesis), seeds))
            deltas = self.shared.merge(sent, EQUAL)
            moved = np.mean([rounding_bound(delta, LAYER, bits=8) for delta in deltas], axis=0)
            bounds.append(moved + float32_bound(self.shared[LAYER]))
        return bounds

    def run_multi_head(self, *, scale: float) -> FloatArray:
        """The multi-head adapter after all steps, as the weights that it stands for."""
        import torch

        start = torch.from_numpy(self.start)
        heads_a = [torch.from_numpy(rows) for rows in self.rows]
        heads_b = [torch.zeros(OUT, RANK, dtype=torch.float64, requires_grad=True) for _ in HEADS]
        optimizer = torch.optim.SGD(heads_b, lr=RATE)
        for step in range(MERGES):
            x, y = self.batch(step)
            out = x @ start.T + sum(scale * (x @ a.T) @ b.T for a, b in zip(heads_a, heads_b, strict=True))
            optimizer.zero_grad()
            squared_error(out, y).backward()
            optimizer.step()
        products = [scale * (b @ a).detach().numpy() for a, b in zip(heads_a, heads_b, strict=True)]
        weights: FloatArray = self.start + np.sum(products, axis=0)
        return weights

    def carried_on(self, bounds: Sequence[FloatArray]) -> FloatArray:
        """What the rounding of all merges can add up to.

        On squared error a step is W <- W - (W - ...) H sum(A_n^T A_n) / N^2 with H the mean of x x^T, so whatever an
        earlier merge was off is multiplied by I - H sum(A_n^T A_n) / N^2, entry by entry at most its absolute value.
        """
        spread = sum(rows.T @ rows for rows in self.rows) / N**2
        total = np.zeros((OUT, IN))
        for step, bound in enumerate(bounds):
            x = self.batches[0][step]
            total = total @ np.abs(np.eye(IN) - RATE * (x.T @ x / BATCH) @ spread) + bound
        return total


def squared_error(out: Any, y: Any) -> Any:
    """Half the squared distance, mean over the batch."""
    return ((out - y) ** 2).sum() / (2 * BATCH)


@pytest.fixture
def layer(tmp_path: Path) -> Layer:
    return Layer(tmp_path / "masters")


def test_merging_every_sgd_step_is_a_multi_head_adapter_at_scale_one_over_n(layer: Layer) -> None:
    """LTE's own test on the trainer's adapters and the exact merge, ten steps in a row without a correction.

    Fails if a head's scale were lost or applied twice, a head were left out or counted twice, factors were averaged,
    the A that is trained on were not the one that is merged, or training did not start from B = 0.
    """
    allowed = layer.carried_on(layer.run_nodes(merge_every=1))
    expected = layer.run_multi_head(scale=1 / N)
    assert (np.abs(layer.shared[LAYER] - expected) <= allowed).all()
    assert allowed.max() < 0.1 * np.abs(expected - layer.start).max()


def test_a_multi_head_adapter_with_another_number_of_heads_is_told_apart(layer: Layer) -> None:
    """The control: at scale 1 / (N - 1) it is off by more than what the test above allows for."""
    allowed = layer.carried_on(layer.run_nodes(merge_every=1))
    assert (np.abs(layer.shared[LAYER] - layer.run_multi_head(scale=1 / (N - 1))) > 3 * allowed).any()


def test_merging_less_often_is_told_apart(layer: Layer) -> None:
    """The control: heads that see each other's steps only at every fifth end somewhere else."""
    expected = layer.run_multi_head(scale=1 / N)
    layer.run_nodes(merge_every=1)
    allowed = layer.carried_on(layer.run_nodes(merge_every=5))
    assert (np.abs(layer.shared[LAYER] - expected) > 3 * allowed).any()


class Swarm:
    """Four nodes of the real trainer on the tiny Llama, one AdamW step a round; they share seed and data."""

    def __init__(self, tiny_base: Path, directory: Path, make_swarm: Callable[..., Any], sentences: list[str]) -> None:
        swarm = make_swarm(period_rounds=PERIOD, embeddings=False)
        parameters = dict(load_base(tiny_base).named_parameters())
        self.genesis: Genesis = swarm.genesis
        weights = {module.name: parameters[module.name].detach().numpy() for module in self.genesis.modules}
        self.shared = SharedWeights(directory / "masters", self.genesis, weights)
        self.directory = directory
        self.trainer = Trainer()
        rows = directory / "rows.jsonl"
        rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences))
        self.request = {
            "base_dir": str(tiny_base), "device": "cpu", "threads": 1, "genesis_path": str(swarm.path),
            "masters_dir": str(self.shared.store.directory), "data_cache": str(directory / "blocks"),
            "block_length": 32, "cache_path": str(directory / "blocks"), "path": str(rows),
            "mode": "B", "rank": LLAMA_RANK, "bits_b": 8, "stochastic": False, "seed": 7,
            "max_steps": 1, "warmup_steps": 0, "batch_size": 2, "learning_rate": LLAMA_RATE,
        }  # fmt: skip
        self.trainer.prepare_data(self.request)

    def weights(self) -> dict[str, FloatArray]:
        return {module.name: self.shared[module.name] for module in self.genesis.modules}

    def round(self, number: int, **changes: Any) -> dict[str, FloatArray]:
        """Every node trains its step and sends it, and the masters take the mean; what rounding can have moved."""
        sent = []
        for name in HEADS:
            own = self.directory / name
            own.mkdir(exist_ok=True)
            request = {"member": key_of(name).public_key.hex(), "round": number, "manifest": self.shared.manifest}
            paths = {"state_dir": str(own), "out_path": str(own / "delta.bin")}
            done = self.trainer.train({**self.request, **request, **paths, **changes})
            sent.append((Path(done["blob_path"]).read_bytes(), seeds_of(self.genesis, name, period=done["period"])))
        deltas = self.shared.merge(sent, EQUAL)
        return {
            name: np.mean([rounding_bound(delta, name, bits=8) for delta in deltas], axis=0) + float32_bound(after)
            for name, after in self.weights().items()
        }

    def batch(self, number: int) -> Blocks:
        """What all nodes read in a round."""
        with BlockCache(self.directory / "blocks") as cache:
            order = block_order(seed=7, num_blocks=cache.summary.num_blocks, start=2 * number)
            return cache.read("train", np.array([next(order), next(order)]))


class MultiHead:
    """PEFT's forward pass over four active adapters at scale 1 / N, and one AdamW of torch for all of their B."""

    def __init__(self, tiny_base: Path, genesis: Genesis) -> None:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer

        self.genesis = genesis
        config = LoraConfig(
            r=LLAMA_RANK,
            lora_alpha=LLAMA_RANK / N,
            target_modules=[module.name.removesuffix(".weight") for module in genesis.modules],
            lora_dropout=0.0,
            bias="none",
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            self.model: Any = get_peft_model(load_base(tiny_base), config, adapter_name=HEADS[0])
            for name in HEADS[1:]:
                self.model.add_adapter(name, config)
        self.model.base_model.set_adapter(list(HEADS))
        found = self.model.base_model.model.named_modules()
        self.layers: dict[str, Any] = {f"{name}.weight": layer for name, layer in found if isinstance(layer, LoraLayer)}
        assert self.layers.keys() == {module.name for module in genesis.modules}
        assert {layer.scaling[head] for layer in self.layers.values() for head in HEADS} == {1 / N}

    def draw(self, period: int) -> None:
        """Take the heads' A of a period, with an optimiser that knows the size of each row's gradients at most."""
        import torch

        known = [self.optimizer.state[weight] for weight in self.heads_b] if period else []
        for name, layer in self.layers.items():
            columns = self.genesis.module(name).in_features
            for head in HEADS:
                signs = seeded_rows(seeds_of(self.genesis, head, period=period), name, rows=LLAMA_RANK, columns=columns)
                weight = layer.lora_A[head].weight.requires_grad_(requires_grad=False)
                weight.copy_(torch.from_numpy(signs / np.sqrt(columns)))
        self.heads_b = [layer.lora_B[head].weight for layer in self.layers.values() for head in HEADS]
        self.optimizer = torch.optim.AdamW(
            self.heads_b,
            lr=LLAMA_RATE * np.sqrt(lora.REFERENCE_RANK / LLAMA_RANK),
            betas=ADAM_BETAS,
            eps=1e-8 / N,
            weight_decay=0.0,
        )
        for weight, state in zip(self.heads_b, known, strict=False):
            second = state["exp_avg_sq"]
            mean = second.double().mean(dim=1, keepdim=True).expand_as(second).to(second.dtype).clone()
            self.optimizer.state[weight] = state | {"exp_avg": torch.zeros_like(second), "exp_avg_sq": mean}

    def step(self, weights: dict[str, FloatArray], blocks: Blocks) -> dict[str, FloatArray]:
        """One step from these weights and B = 0, the optimiser going on; the weights that it stands for."""
        import torch

        with torch.no_grad():
            for name, layer in self.layers.items():
                layer.base_layer.weight.copy_(torch.from_numpy(weights[name]))
            for weight in self.heads_b:
                weight.zero_()
        self.optimizer.zero_grad()
        losses = token_losses(
            self.model,
            tokens_NT=torch.from_numpy(blocks.tokens.astype(np.int64)),
            targets_NT=torch.from_numpy((blocks.flags & IS_TARGET).astype(np.bool_)),
            positions_NT=torch.from_numpy(blocks.positions().astype(np.int64)),
        )
        (losses.sum() / blocks.num_targets).backward()
        for head in HEADS:  # Nodes clip their gradients; that is no part of LTE, and must not happen here.
            squares = [(N * layer.lora_B[head].weight.grad).square().sum() for layer in self.layers.values()]
            assert float(sum(squares)) < MAX_GRADIENT_NORM**2
        self.optimizer.step()
        stepped: dict[str, FloatArray] = {}
        for name, layer in self.layers.items():
            factors = [(layer.lora_B[head].weight.double(), layer.lora_A[head].weight.double()) for head in HEADS]
            stepped[name] = weights[name] + sum((b @ a).detach().numpy() / N for b, a in factors)
        return stepped


@pytest.fixture
def swarm(tiny_base: Path, tmp_path: Path, make_swarm: Callable[..., Any], sentences: list[str]) -> Swarm:
    return Swarm(tiny_base, tmp_path, make_swarm, sentences)


def test_adamw_over_the_rounds_of_a_period_is_adamw_on_the_multi_head_adapter(swarm: Swarm, tiny_base: Path) -> None:
    """The daemon's trainer, one step a round, over a period and the first round of the next.

    After each merge the multi-head adapter goes on from the nodes' masters, so rounding is all that can differ, every
    entry of every module by at most its bound.

    Fails if AdamW's moments or step count were lost between rounds or kept into a new period, if A changed within a
    period or a node did not go on in its data, and by all that the test on one layer fails by.
    """
    multi_head = MultiHead(tiny_base, swarm.genesis)
    for number in range(PERIOD + 1):
        if number % PERIOD == 0:
            multi_head.draw(number // PERIOD)
        before = swarm.weights()
        expected = multi_head.step(before, swarm.batch(number))
        bounds = swarm.round(number)
        for name, after in swarm.weights().items():
            assert (np.abs(after - expected[name]) <= bounds[name]).all(), f"{name} in round {number}"
            assert bounds[name].max() < 0.01 * np.abs(expected[name] - before[name]).max()


def test_nodes_that_forget_their_moments_are_told_apart(swarm: Swarm, tiny_base: Path) -> None:
    """The control: with fresh moments in the second round each module is off by many times the bound."""
    multi_head = MultiHead(tiny_base, swarm.genesis)
    multi_head.draw(0)
    multi_head.step(swarm.weights(), swarm.batch(0))
    swarm.round(0)
    expected = multi_head.step(swarm.weights(), swarm.batch(1))
    bounds = swarm.round(1, carry_moments=False)
    for name, after in swarm.weights().items():
        assert (np.abs(after - expected[name]) > 10 * bounds[name]).any(), name

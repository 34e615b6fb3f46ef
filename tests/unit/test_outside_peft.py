"""PEFT as the oracle of exact aggregation: its `cat` of all adapters, merged, is the next model of the swarm.

Source: PEFT 0.21, `LoraModel.add_weighted_adapter(..., combination_type="cat")` and `merge_and_unload` (Sourab
Mangrulkar, Sylvain Gugger, Lysandre Debut, Younes Belkada, Sayak Paul, Benjamin Bossan, "PEFT: State-of-the-art
Parameter-Efficient Fine-Tuning methods", 2022). `cat` puts the adapters' A under and their B beside each other, A times
weight and scaling, so its product is the weighted sum of the products, whatever the ranks.

Three nodes of different ranks and modes train on the tiny Llama; the worker decodes, weighs and merges their blobs.
PEFT gets the same adapters, and from the worker nothing but the weights of the checkpoint:

- as the integers and scales that were sent, in float64. All components lie on one grid in which every factor is an
  integer and every partial sum at most 2^52 (protocol, section 6), so float64 is exact in PEFT too, in whatever order
  it adds. The masters must be its merged weights bit for bit.
- as the floats that were trained. Then they differ by the rounding to integers, bounded from the scales that were sent.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from outside_checks import FloatArray, float32_bound, rounding_bound, seeds_of
from swarms import id_of, key_of

from fullrank_node.child import Progress
from fullrank_node.model.base_load import import_masters, load_base
from fullrank_node.model.master import MasterStore
from fullrank_node.recompute import Recompute
from fullrank_node.training import lora
from fullrank_node.training.blocks import Blocks, Document, pack
from fullrank_node.training.loop import Deadline, Schedule, block_order, run_steps
from fullrank_node.training.optimizer_state import TrainingState
from fullrank_protocol.codec import CODEC_PACKED, decode, encode
from fullrank_protocol.delta import Delta, LowRank, expand
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.state import canonical_float32, plan_update

Pair = tuple[FloatArray, FloatArray]
"""B_OR and A_RI of one adapter for one module."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """How a member trains and rounds."""

    name: str
    rank: int
    mode: str
    bits: int
    num_steps: int


NODES = (
    Node(name="ada", rank=4, mode="B", bits=8, num_steps=3),
    Node(name="ben", rank=8, mode="B", bits=4, num_steps=2),
    Node(name="cyd", rank=3, mode="AB", bits=5, num_steps=4),
)


class Round:
    """One round of the swarm on the tiny Llama.

    Attributes:
        trained: Every node's factors as floats, by module.
        deltas: What its bytes say, with seeded A drawn.
        weights: The checkpoint's, in the order of the nodes.
        after: The masters that the worker made, by module.
    """

    def __init__(self, directory: Path, tiny_base: Path, genesis: Genesis, nodes: Sequence[Node]) -> None:
        self.tiny_base, self.genesis, self.nodes = tiny_base, genesis, nodes
        path = directory / "genesis.bin"
        path.write_bytes(genesis.envelope.encode())
        masters = MasterStore(directory / "masters")
        manifest = import_masters(load_base(tiny_base), genesis, masters)
        self.trained: list[dict[str, Pair]] = []
        self.deltas: list[Delta] = []
        entries = []
        for node in nodes:
            blob = self._train(node)
            (directory / node.name).write_bytes(blob)
            self.deltas.append(
                expand(decode(blob, genesis, CODEC_PACKED), seeds_of(genesis, node.name), genesis.modules)
            )
            entries.append(
                {
                    "contribution_id": id_of(node.name).hex(),
                    "member": key_of(node.name).public_key.hex(),
                    "num_tokens": 1000 * node.num_steps,
                    "staleness": 0,
                    "stranger": False,
                    "blob_path": str(directory / node.name),
                    "codec": CODEC_PACKED,
                    "period": 0,
                }
            )
        request = {"genesis_path": str(path), "masters_dir": str(masters.directory), "parent_manifest": manifest}
        made = Recompute().recompute({**request, "entries": entries, "trailing": []}, ignore)
        assert made["refused"] == []
        self.weights = [Scaled(mantissa=mantissa, exponent=exponent) for mantissa, exponent in made["weights"]]
        self.after = {
            module.name: masters.read(made["manifest"][module.name], (module.out_features, module.in_features))
            for module in genesis.modules
        }

    def _train(self, node: Node) -> bytes:
        """A few real steps, then the bytes that the node would send; what it trained is kept as floats."""
        rng = np.random.default_rng(len(node.name) + node.rank)
        tokens = rng.integers(3, 200, size=(12, 33)).astype(np.int32)
        documents = [Document(tokens=row, targets=np.ones(len(row), dtype=np.bool_)) for row in tokens]
        blocks = pack(documents, block_length=33, pad_token=1)
        seeds = seeds_of(self.genesis, node.name)
        adapter = lora.attach(load_base(self.tiny_base), self.genesis, rank=node.rank, mode=node.mode, context=seeds)
        run_steps(
            adapter,
            lambda rows: Blocks(tokens=blocks.tokens[rows], flags=blocks.flags[rows]),
            block_order(seed=node.rank, num_blocks=len(blocks), start=0),
            batch_size=2,
            schedule=Schedule(peak=0.02, warmup_steps=1, max_steps=node.num_steps, round=0, total_rounds=0),
            deadline=Deadline(at_ms=None, reserve_ms=0.0),
            state=TrainingState(),
            progress=lambda **_fields: None,
        )
        factors = adapter.factors()
        self.trained.append(
            {
                name: (
                    factor.B_OR.astype(np.float64),
                    adapter.modules[name].A_RI().astype(np.float64),
                )
                for name, factor in factors.items()
            }
        )
        delta = lora.quantize(factors, self.genesis, bits_b=node.bits, bits_a=node.bits, rng=rng, stochastic=True)
        return encode(delta, self.genesis, CODEC_PACKED)

    @property
    def sent(self) -> list[dict[str, Pair]]:
        """The integers of every node times their scales, which float64 holds exactly."""
        return [{part.module: sent_pair(part) for part in delta.parts} for delta in self.deltas]


ignore = Progress(lambda _fields: None)


def sent_pair(part: Any) -> Pair:
    assert isinstance(part, LowRank)
    assert part.A_RI is not None
    scale_R = np.ldexp(np.array(part.scale_mantissa_R, np.float64), part.scale_exponent_R)
    return part.B_OR.astype(np.float64) * scale_R, part.A_RI.astype(np.float64)


def merged_by_peft(
    tiny_base: Path, adapters: Sequence[Mapping[str, Pair]], weights: Sequence[float], *, how: str = "cat"
) -> dict[str, FloatArray]:
    """The base with all adapters combined and merged by PEFT, in float64, by module."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    names = [f"adapter {number}" for number in range(len(adapters))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")  # Merged, the head is tied as before.
        model: Any = load_base(tiny_base).double()
        for name, adapter in zip(names, adapters, strict=True):
            rank = max(len(A_RI) for _, A_RI in adapter.values())
            targets = [module.removesuffix(".weight") for module in adapter]
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, lora_dropout=0.0, bias="none")
            if name == names[0]:
                model = get_peft_model(model, config, adapter_name=name)
            else:
                model.add_adapter(name, config)
        found = model.base_model.model.named_modules()
        layers = {f"{name}.weight": layer for name, layer in found if isinstance(layer, LoraLayer)}
        with torch.no_grad():
            for name, adapter in zip(names, adapters, strict=True):
                for module, (B_OR, A_RI) in adapter.items():
                    layer = layers[module]
                    if name in layer.lora_embedding_A:  # PEFT holds the factors of embeddings transposed.
                        to_a, to_b = layer.lora_embedding_B[name].T, layer.lora_embedding_A[name].T
                    else:
                        to_a, to_b = layer.lora_A[name].weight, layer.lora_B[name].weight
                    assert to_a.dtype == to_b.dtype == torch.float64
                    to_a.zero_()[: len(A_RI)] = torch.from_numpy(A_RI)
                    to_b.zero_()[:, : len(A_RI)] = torch.from_numpy(B_OR)
        model.base_model.add_weighted_adapter(names, list(weights), "together", combination_type=how)
        merged = model.merge_and_unload(adapter_names=["together"])
    parameters = dict(merged.named_parameters())
    return {module: parameters[module].detach().numpy() for module in layers}


@pytest.fixture
def make_round(tiny_base: Path, tmp_path: Path, make_swarm: Callable[..., Any]) -> Callable[[Sequence[Node]], Round]:
    return lambda nodes: Round(tmp_path, tiny_base, make_swarm().genesis, nodes)


def test_the_masters_are_bit_for_bit_what_peft_makes_of_the_integers_sent(
    make_round: Callable[[Sequence[Node]], Round],
) -> None:
    """Fails if a weight, a scale, a seeded row, a component or a member's order were taken wrongly by one bit.

    The control: the same with the last weight one step of its eight bits higher is another model.
    """
    done = make_round(NODES)
    plans = list(plan_update(done.deltas, done.weights, done.genesis.modules))
    assert {module.name for module, plan in plans if plan.num_dropped == 0} == done.after.keys()
    weights = [weight.value() for weight in done.weights]
    merged = merged_by_peft(done.tiny_base, done.sent, weights)
    assert {name: bits(merged[name]) for name in done.after} == {name: bits(done.after[name]) for name in done.after}
    weights[-1] += 2.0 ** done.weights[-1].exponent
    higher = merged_by_peft(done.tiny_base, done.sent, weights)
    assert all(bits(higher[name]) != bits(done.after[name]) for name in done.after)


def test_the_masters_are_what_peft_makes_of_the_trained_floats_up_to_rounding(
    make_round: Callable[[Sequence[Node]], Round],
) -> None:
    """Fails if what is sent were not what was trained: a lost scale, a wrong A, a column with another's row.

    Nodes round to 4, 5 and 8 bits, stochastically: by up to one step.
    """
    done = make_round(NODES)
    weights = [weight.value() for weight in done.weights]
    merged = merged_by_peft(done.tiny_base, done.trained, weights)
    base = dict(load_base(done.tiny_base).named_parameters())
    for name, after in done.after.items():
        bounds = [
            weight * rounding_bound(delta, name, bits=node.bits, stochastic=True)
            for node, delta, weight in zip(done.nodes, done.deltas, weights, strict=True)
        ]
        allowed = np.sum(bounds, axis=0) + float32_bound(merged[name])
        assert (np.abs(after - merged[name]) <= allowed).all(), name
        assert allowed.max() < 0.25 * np.abs(merged[name] - base[name].detach().numpy()).max()


def test_factors_averaged_by_peft_are_told_apart(make_round: Callable[[Sequence[Node]], Round]) -> None:
    """The control: PEFT's `linear` of two equal ranks adds up factors, and no module comes out within rounding."""
    done = make_round([Node(name=name, rank=4, mode="AB", bits=8, num_steps=3) for name in ("ada", "dora")])
    weights = [weight.value() for weight in done.weights]
    merged = merged_by_peft(done.tiny_base, done.trained, weights, how="linear")
    for name, after in done.after.items():
        bounds = [
            weight * rounding_bound(delta, name, bits=8, stochastic=True)
            for delta, weight in zip(done.deltas, weights, strict=True)
        ]
        assert np.abs(after - merged[name]).max() > 10 * np.sum(bounds, axis=0).max(), name


def bits(weights: npt.NDArray[np.floating]) -> bytes:
    """Bytes of the nearest float32, small values flushed as masters are."""
    return canonical_float32(weights.astype(np.float32)).tobytes()

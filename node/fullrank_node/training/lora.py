"""Adapters on the shared weights, and what they have learned as an exact integer delta.

Implements ALGORITHM.md, "One round", steps 1, 2 and 4. Both modes start from dW = B @ A = 0 with the same
A: seeded rows of +1 and -1 over sqrt(in_features), so that a row has norm 1. Mode B keeps A and sends B
alone; mode AB trains and sends both.

Legend of array names: O = out_features, I = in_features, R = rank.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fullrank_node.errors import ExitCode, NodeError
from fullrank_protocol.delta import KIND_LINEAR, Delta, LowRank, SeedContext, quantize_low_rank, seeded_rows

if TYPE_CHECKING:
    import torch

    from fullrank_protocol.genesis import Genesis, Module

MODE_B = "B"
MODE_AB = "AB"

_NAME = "default"
"""PEFT's own name for a single adapter."""

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """Trained factors of one module; dW = B_OR @ A_RI.

    Attributes:
        A_RI: None in mode B, where A is the seeded one.
    """

    B_OR: Float32Array
    A_RI: Float32Array | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A model wrapped by PEFT, with its adapter layers by module name.

    Attributes:
        model: The wrapped model, to be called in training.
        layers: PEFT's layers by the genesis' module names, ascending.
        mode: `B` or `AB`.
    """

    model: Any
    layers: Mapping[str, Any]
    mode: str

    def named_parameters(self) -> dict[str, "torch.nn.Parameter"]:
        """What is trained: `B.<module>` and, in mode AB, `A.<module>`."""
        named = {f"B.{name}": layer.lora_B[_NAME].weight for name, layer in self.layers.items()}
        if self.mode == MODE_AB:
            named |= {f"A.{name}": layer.lora_A[_NAME].weight for name, layer in self.layers.items()}
        return named

    def factors(self) -> dict[str, Factors]:
        """Copies of the trained factors as float32."""
        return {
            name: Factors(
                B_OR=_copy(layer.lora_B[_NAME].weight),
                A_RI=_copy(layer.lora_A[_NAME].weight) if self.mode == MODE_AB else None,
            )
            for name, layer in self.layers.items()
        }

    def detach(self) -> Any:
        """Take the adapter off and return the bare model, its weights as they were."""
        return self.model.unload()


def attach(model: Any, genesis: "Genesis", *, rank: int, mode: str, context: SeedContext) -> Adapter:
    """Put a fresh adapter on every linear module of the genesis: B = 0, A drawn from the seed.

    Modules smaller than `rank` get as many components as they have rows or columns.

    Raises:
        NodeError: When the rank or mode is not possible, or the model lacks a module.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    if mode not in {MODE_B, MODE_AB}:
        raise NodeError(f"found training mode {mode!r}, required B or AB", exit_code=ExitCode.CONFIG)
    if not 1 <= rank <= genesis.max_rank:
        raise NodeError(
            f"found rank {rank}, required 1 to {genesis.max_rank}",
            hint="Set train.rank within what the swarm allows.",
            exit_code=ExitCode.CONFIG,
        )
    modules = {module.name.removesuffix(".weight"): module for module in genesis.modules if module.kind == KIND_LINEAR}
    ranks = {target: min(rank, module.out_features, module.in_features) for target, module in modules.items()}
    smaller = {_exactly(target): found for target, found in ranks.items() if found != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(modules),
        rank_pattern=smaller,
        alpha_pattern=smaller,
        lora_dropout=0.0,
        bias="none",
    )
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 under a name that has since been replaced; nothing follows from it.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        try:
            wrapped = get_peft_model(model, config)
        except ValueError as error:
            raise NodeError(f"the base does not fit the genesis: {error}", exit_code=ExitCode.CONFIG) from error
    found = {name: layer for name, layer in wrapped.base_model.model.named_modules() if isinstance(layer, LoraLayer)}
    if found.keys() != modules.keys():
        wrong = sorted(found.keys() ^ modules.keys())[0]
        raise NodeError(f"the base does not fit the genesis at {wrong}", exit_code=ExitCode.CONFIG)
    layers = {modules[target].name: found[target] for target in sorted(modules)}
    with torch.no_grad():
        for target, module in modules.items():
            A_RI = _first_rows(module, rank=ranks[target], context=context)
            layer = found[target]
            layer.lora_A[_NAME].weight.copy_(torch.from_numpy(A_RI))
            layer.lora_A[_NAME].weight.requires_grad_(mode == MODE_AB)
            layer.lora_B[_NAME].weight.zero_()
    return Adapter(model=wrapped, layers=layers, mode=mode)


def quantize(
    factors: Mapping[str, Factors],
    genesis: "Genesis",
    *,
    bits_b: int,
    bits_a: int,
    rng: np.random.Generator,
    stochastic: bool,
) -> Delta:
    """Round factors to the integers that travel.

    Raises:
        NodeError: When nothing is left, or a factor is beyond the swarm's scales.
    """
    parts = []
    for name, factor in factors.items():
        module = genesis.module(name)
        try:
            part = quantize_low_rank(
                name,
                factor.B_OR,
                factor.A_RI,
                bits_b=bits_b,
                bits_a=bits_a,
                scale=seeded_scale(module) if factor.A_RI is None else 1.0,
                rng=rng,
                stochastic=stochastic,
                limits=genesis.limits,
            )
        except ValueError as error:
            raise NodeError(f"the trained delta cannot be encoded: {error}", hint="Lower the learning rate.") from error
        parts.append(part)
    delta = Delta.of(parts)
    if not delta.parts:
        raise NodeError("training changed nothing: the delta rounds to zero", hint="Raise the learning rate or steps.")
    return delta


def rounding_residuals(factors: Mapping[str, Factors], delta: Delta, genesis: "Genesis") -> dict[str, Float32Array]:
    """What rounding took from each B in mode B: B minus what the integers stand for, by module name."""
    sent = {part.module: part for part in delta.parts if isinstance(part, LowRank)}
    residuals: dict[str, Float32Array] = {}
    for name, factor in factors.items():
        residual_OR = factor.B_OR.astype(np.float64)
        part = sent.get(name)
        if part is not None and part.row_R is not None:
            scale_R = np.ldexp(np.array(part.scale_mantissa_R, np.float64), part.scale_exponent_R)
            residual_OR[:, list(part.row_R)] -= part.B_OR * (scale_R / seeded_scale(genesis.module(name)))
        residuals[name] = residual_OR.astype(np.float32)
    return residuals


def seeded_scale(module: "Module") -> float:
    """What a seeded row of +1 and -1 is multiplied by to have norm 1."""
    return 1.0 / math.sqrt(module.in_features)


def _first_rows(module: "Module", *, rank: int, context: SeedContext) -> Float32Array:
    signs_RI = seeded_rows(context, module.name, rows=rank, columns=module.in_features)
    return (signs_RI * np.float32(seeded_scale(module))).astype(np.float32)


def _exactly(target: str) -> str:
    """PEFT reads the keys of its patterns as regular expressions on the end of a name."""
    return "^" + target.replace(".", r"\.")


def _copy(weight: "torch.Tensor") -> Float32Array:
    copied: Float32Array = np.array(weight.detach().float().cpu().numpy(), dtype=np.float32)
    return copied


def total_rank(delta: Delta) -> int:
    """Most components that the delta has for one module."""
    return max(part.rank if isinstance(part, LowRank) else 1 for part in delta.parts)

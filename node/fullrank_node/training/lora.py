"""Adapters on the shared weights, and what they have learned as an exact integer delta.

Why it is done like this: protocol/decisions/0015. Both modes start from dW = B @ A = 0 with the same
A: seeded rows of +1 and -1 over sqrt(in_features), so that a row has norm 1. Mode B keeps A and sends B
alone, less what B began with where a delta is on its way (`pending`); mode AB trains and sends both.

The matrix of the input embeddings is a module like any other, with a row of B for each token: PEFT holds both
factors of such a layer transposed. Where the head shares that matrix, the head gets the same change from the same
two factors, so there is one set of them to train and to send.

Legend of array names: O = out_features, I = in_features, R = rank.
"""

import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.model.base_load import embedding_layers
from fullrank_protocol.delta import KIND_LINEAR, Delta, LowRank, SeedContext, quantize_low_rank, seeded_rows

if TYPE_CHECKING:
    import torch

    from fullrank_protocol.genesis import Genesis, Module

MODE_B = "B"
MODE_AB = "AB"

EMBEDDING_RANKS = 2
"""Components of an embedding matrix for one of a linear layer, in mode B: its rows are learned one by one, by the
tokens that occur, and share little."""

REFERENCE_RANK = 32
"""Rank for which a swarm's learning rate in mode B holds. B of a higher rank takes shorter steps and of a lower one
longer steps, by the square root, so that a step of AdamW moves W alike at every rank (arXiv:2312.03732)."""

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
class Trained:
    """The adapter of one module inside PEFT.

    Attributes:
        B: (O, R), or transposed.
        A: (R, I), or transposed.
        transposed: Whether PEFT holds both the other way round, as it does for embeddings.
    """

    B: "torch.nn.Parameter"
    A: "torch.nn.Parameter"
    transposed: bool

    @property
    def rank(self) -> int:
        """Components."""
        return int(self.B.shape[0 if self.transposed else 1])

    def B_OR(self) -> Float32Array:  # noqa: N802  (named like the array)
        """A copy of B, the right way round."""
        return _copy(self.B, transposed=self.transposed)

    def A_RI(self) -> Float32Array:  # noqa: N802
        """A copy of A, the right way round."""
        return _copy(self.A, transposed=self.transposed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A model wrapped by PEFT, with its adapters by module name.

    Attributes:
        model: The wrapped model, to be called in training.
        modules: Their parameters by the genesis' module names, ascending.
        mode: `B` or `AB`.
        hooks: What of it PEFT does not know: the change of a head that shares its matrix with the embeddings.
    """

    model: Any
    modules: Mapping[str, Trained]
    mode: str
    hooks: Sequence[Any] = ()

    def named_parameters(self) -> dict[str, "torch.nn.Parameter"]:
        """What is trained: `B.<module>` and, in mode AB, `A.<module>`."""
        named = {f"B.{name}": module.B for name, module in self.modules.items()}
        if self.mode == MODE_AB:
            named |= {f"A.{name}": module.A for name, module in self.modules.items()}
        return named

    def rate_factors(self) -> dict[str, float]:
        """What the learning rate is multiplied by for each trained parameter, so that one rate fits all ranks."""
        if self.mode == MODE_AB:
            return dict.fromkeys(self.named_parameters(), 1.0)
        return {f"B.{name}": math.sqrt(REFERENCE_RANK / module.rank) for name, module in self.modules.items()}

    def component_axes(self) -> dict[str, int]:
        """The axis of each B along which its components lie, by parameter name."""
        return {f"B.{name}": 0 if module.transposed else 1 for name, module in self.modules.items()}

    def ranks(self) -> dict[str, int]:
        """Components by module name."""
        return {name: module.rank for name, module in self.modules.items()}

    def start_at(self, B: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """Set the B of some modules, (O, R) by name; returns them as they are held."""
        import torch

        with torch.no_grad():
            for name, B_OR in B.items():
                one = self.modules[name]
                one.B.copy_(torch.from_numpy(np.ascontiguousarray(B_OR.T) if one.transposed else B_OR))
        return {name: self.modules[name].B_OR() for name in B}

    def factors(self) -> dict[str, Factors]:
        """Copies of the trained factors as float32."""
        return {
            name: Factors(
                B_OR=module.B_OR(),
                A_RI=module.A_RI() if self.mode == MODE_AB else None,
            )
            for name, module in self.modules.items()
        }

    def detach(self) -> Any:
        """Take the adapter off and return the bare model, its weights as they were."""
        for hook in self.hooks:
            hook.remove()
        return self.model.unload()


def attach(model: Any, genesis: "Genesis", *, rank: int, mode: str, context: SeedContext) -> Adapter:
    """Put a fresh adapter on every low-rank module of the genesis: B = 0, A drawn from the seed.

    In mode B embeddings get `EMBEDDING_RANKS` times as many components. No module gets more than it has rows or
    columns, or than the swarm allows.

    Raises:
        NodeError: When the rank or mode is not possible, or the model lacks a module.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel

    if mode not in {MODE_B, MODE_AB}:
        raise NodeError(f"found training mode {mode!r}, required B or AB", exit_code=ExitCode.CONFIG)
    if not 1 <= rank <= genesis.max_rank:
        raise NodeError(
            f"found rank {rank}, required 1 to {genesis.max_rank}",
            hint="Set train.rank within what the swarm allows.",
            exit_code=ExitCode.CONFIG,
        )
    modules = {module.name.removesuffix(".weight"): module for module in genesis.modules if module.kind == KIND_LINEAR}
    # Asked before PEFT puts a layer of its own in the place of the embeddings.
    embeddings, shared_head = embedding_layers(model) if isinstance(model, PreTrainedModel) else ("", None)
    ranks = {
        target: min(
            rank * EMBEDDING_RANKS if target == embeddings and mode == MODE_B else rank,
            module.out_features,
            module.in_features,
            genesis.max_rank,
        )
        for target, module in modules.items()
    }
    others = {_exactly(target): found for target, found in ranks.items() if found != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(modules),
        rank_pattern=others,
        alpha_pattern=others,
        lora_dropout=0.0,
        bias="none",
    )
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 under a name that has since been replaced; nothing follows from it.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        # Its own way of tying the head gives it a second pair of parameters, which the optimiser would move twice.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        try:
            wrapped = get_peft_model(model, config)
        except ValueError as error:
            raise NodeError(f"the base does not fit the genesis: {error}", exit_code=ExitCode.CONFIG) from error
    found = {name: layer for name, layer in wrapped.base_model.model.named_modules() if isinstance(layer, LoraLayer)}
    if found.keys() != modules.keys():
        wrong = sorted(found.keys() ^ modules.keys())[0]
        raise NodeError(f"the base does not fit the genesis at {wrong}", exit_code=ExitCode.CONFIG)
    trained = {modules[target].name: _trained(found[target]) for target in sorted(modules)}
    with torch.no_grad():
        for target, module in modules.items():
            A_RI = _first_rows(module, rank=ranks[target], context=context)
            one = trained[module.name]
            one.A.copy_(torch.from_numpy(A_RI.T if one.transposed else A_RI))
            one.A.requires_grad_(mode == MODE_AB)
            one.B.zero_()
    hooks = []
    if shared_head is not None and embeddings in modules:
        head = wrapped.base_model.model.get_submodule(shared_head)
        hooks.append(head.register_forward_hook(_change_of_head(trained[modules[embeddings].name])))
    return Adapter(model=wrapped, modules=trained, mode=mode, hooks=hooks)


def _trained(layer: Any) -> Trained:
    if _NAME in layer.lora_embedding_A:
        return Trained(B=layer.lora_embedding_A[_NAME], A=layer.lora_embedding_B[_NAME], transposed=True)
    return Trained(B=layer.lora_B[_NAME].weight, A=layer.lora_A[_NAME].weight, transposed=False)


def _change_of_head(embeddings: Trained) -> Callable[[Any, tuple[Any, ...], Any], Any]:
    """A forward hook that adds x (B A)^T to what a head makes of x, without ever forming B A."""

    def add(_head: Any, inputs: tuple[Any, ...], logits: Any) -> Any:
        hidden = inputs[0].to(embeddings.A.dtype)
        return logits + ((hidden @ embeddings.A) @ embeddings.B).to(logits.dtype)

    return add


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


def learned(factors: Mapping[str, Factors], begun_with: Mapping[str, Float32Array]) -> dict[str, Factors]:
    """The factors, less the B (O, R) that training began with in some modules."""
    return {
        name: replace(one, B_OR=one.B_OR - begun_with[name]) if name in begun_with else one
        for name, one in factors.items()
    }


def rounding_residuals(factors: Mapping[str, Factors], delta: Delta, genesis: "Genesis") -> dict[str, Float32Array]:
    """What rounding took from each B in mode B: B minus what the integers stand for, by module name."""
    sent = {part.module: part for part in delta.parts if isinstance(part, LowRank)}
    residuals: dict[str, Float32Array] = {}
    for name, factor in factors.items():
        residual_OR = factor.B_OR.astype(np.float64)
        part = sent.get(name)
        if part is not None and part.row_R is not None:
            residual_OR -= meant_by(part, genesis.module(name), rank=residual_OR.shape[1])
        residuals[name] = residual_OR.astype(np.float32)
    return residuals


def meant_by(part: LowRank, module: "Module", *, rank: int) -> npt.NDArray[np.float64]:
    """What the integers of a part in mode B stand for: B, (out_features, rank), on rows of the seeded A of norm 1.

    Raises:
        IndexError: The part has a row beyond the rank.
    """
    B_OR = np.zeros((module.out_features, rank))
    if part.row_R is not None:
        scale_R = np.ldexp(np.array(part.scale_mantissa_R, np.float64), part.scale_exponent_R)
        B_OR[:, list(part.row_R)] = part.B_OR * (scale_R / seeded_scale(module))
    return B_OR


def seeded_scale(module: "Module") -> float:
    """What a seeded row of +1 and -1 is multiplied by to have norm 1."""
    return 1.0 / math.sqrt(module.in_features)


def _first_rows(module: "Module", *, rank: int, context: SeedContext) -> Float32Array:
    signs_RI = seeded_rows(context, module.name, rows=rank, columns=module.in_features)
    return (signs_RI * np.float32(seeded_scale(module))).astype(np.float32)


def _exactly(target: str) -> str:
    """PEFT reads the keys of its patterns as regular expressions on the end of a name."""
    return "^" + target.replace(".", r"\.")


def _copy(weight: "torch.Tensor", *, transposed: bool) -> Float32Array:
    held = weight.detach().float().cpu().numpy()
    copied: Float32Array = np.array(held.T if transposed else held, dtype=np.float32, order="C")
    return copied


def usual_rank(delta: Delta) -> int:
    """Components that the delta has for most of its modules; embeddings have more, small modules fewer."""
    return int(statistics.median_high(part.rank if isinstance(part, LowRank) else 1 for part in delta.parts))

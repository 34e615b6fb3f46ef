"""What the checks against other people's results share: shared weights merged as the worker merges them, bare linear
layers trained through the trainer's own adapters, and how far rounding to integers can move a model.

The expectations themselves stand in the tests, each beside its source.

Legend of array names: O = out_features, I = in_features, R = rank.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from swarms import genesis_message, id_of, key_of

from fullrank_node.model.master import MasterStore
from fullrank_node.training import lora
from fullrank_protocol.codec import CODEC_PACKED, decode, encode
from fullrank_protocol.delta import Delta, SeedContext, expand
from fullrank_protocol.genesis import Genesis, create_genesis
from fullrank_protocol.parts import LowRank
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.state import canonical_float32, plan_update
from fullrank_protocol.wire import objects_pb2 as wire

FloatArray = npt.NDArray[np.float64]

LAYER = "layer.weight"
"""The only module of `genesis_of_layer`, as `line` names it."""


def genesis_of_layer(out_features: int, in_features: int) -> Genesis:
    """A swarm that trains one bare linear layer."""
    message = genesis_message()
    del message.modules[:]
    del message.base.tensors[:]
    message.base.tensors.add(name=LAYER, shape=[out_features, in_features], sha256=id_of(LAYER))
    message.modules.add(name=LAYER, kind=wire.LINEAR, out_features=out_features, in_features=in_features)
    return create_genesis(key_of("ada"), message)


def seeds_of(genesis: Genesis, name: str, *, period: int = 0) -> SeedContext:
    """Where a named member's A comes from."""
    return SeedContext(swarm=genesis.swarm, member=key_of(name).public_key, period=period)


class SharedWeights:
    """Master files, and deltas applied to them from their bytes on, with weights that are given."""

    def __init__(self, directory: Path, genesis: Genesis, weights: Mapping[str, FloatArray]) -> None:
        self.genesis = genesis
        self.store = MasterStore(directory)
        self.manifest = {
            name: self.store.write(name, canonical_float32(values.astype(np.float32)))
            for name, values in weights.items()
        }

    def __getitem__(self, name: str) -> FloatArray:
        module = self.genesis.module(name)
        shape = (module.out_features, module.in_features)
        return self.store.read(self.manifest[name], shape).astype(np.float64)

    def merge(self, blobs: Sequence[tuple[bytes, SeedContext]], weights: Sequence[Scaled]) -> list[Delta]:
        """Decode, draw, plan, apply, as the worker does; returns the deltas that went in.

        No component may fall off the grid: what is compared is the whole sum.
        """
        modules = self.genesis.modules
        deltas = [expand(decode(blob, self.genesis, CODEC_PACKED), seeds, modules) for blob, seeds in blobs]
        plans = list(plan_update(deltas, weights, modules))
        assert all(plan.num_dropped == 0 for _, plan in plans)
        self.manifest = self.store.apply(self.manifest, plans)
        return deltas


def line(weight_OI: FloatArray) -> Any:
    """One linear layer without bias, in float64, frozen at these weights."""
    import torch

    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False, dtype=torch.float64)

        def forward(self, x: Any) -> Any:
            return self.layer(x)

    model = Line().requires_grad_(requires_grad=False)
    with torch.no_grad():
        model.layer.weight.copy_(torch.from_numpy(weight_OI))
    return model


def encoded(factors: Mapping[str, lora.Factors], genesis: Genesis, *, bits: int = 8) -> bytes:
    """Trained factors as they travel, rounded to the nearest integers."""
    rng = np.random.default_rng(0)
    return encode(lora.quantize(factors, genesis, bits_b=bits, bits_a=bits, rng=rng, stochastic=False), genesis)


def rounding_bound(delta: Delta, module: str, *, bits: int, stochastic: bool = False) -> FloatArray:
    """How far each entry of a delta can lie from the product of the factors that it was rounded from.

    A component s * 2^e * B_k A_k stands for trained columns b and a with |b - B_k| <= u and |a - A_k| <= v in units
    of the scale, so |b a - B_k A_k| <= |a - A_k| |b| + |b - B_k| |A_k| <= v (|B_k| + u) + u |A_k|. One step of n bits
    is 2^(8 - n) in units of the scale; rounding to the nearest errs by half of it, stochastic rounding by less than
    all of it. 2^-16 more covers the conversion of the factors to float32, 127 * 2^-24, and the float64 arithmetic
    of rounding. A seeded A is exact, but for its factor 1 / sqrt(I) in float32.
    """
    step = 2.0 ** (8 - bits) * (1.0 if stochastic else 0.5) + 2.0**-16
    for part in delta.parts:
        if part.module == module:
            assert isinstance(part, LowRank)
            assert part.A_RI is not None
            scale_R = np.ldexp(np.array(part.scale_mantissa_R, np.float64), part.scale_exponent_R)
            B_OR, A_RI = np.abs(part.B_OR.astype(np.float64)), np.abs(part.A_RI.astype(np.float64))
            step_a = 2.0**-23 if part.seeded else step
            moved_a: FloatArray = (scale_R * (B_OR + step)) @ np.full_like(A_RI, step_a)
            moved_b: FloatArray = np.full_like(B_OR, step) * scale_R @ A_RI
            return moved_a + moved_b
    raise AssertionError(f"the delta has no part for {module}")


def float32_bound(values: FloatArray) -> FloatArray:
    """One spacing of float32: half for the rounding of a master, half for float64 arithmetic on either side."""
    spacing: FloatArray = np.spacing(np.abs(values).astype(np.float32)).astype(np.float64)
    return spacing

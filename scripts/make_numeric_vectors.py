#!/usr/bin/env python3
"""Writes the numeric vectors of the protocol: protocol/vectors/{seeded_rows,delta,gram,weights,apply}.json.

Inputs are drawn from SHAKE-128, so the files depend on no library's random numbers. Numbers that are float64
or float32 stand as C99 hexadecimal strings, bytes as hexadecimal. The compressed delta alone may come out
differently with another zstd; whatever it is, it has to decode to the integers beside it.
"""

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from fullrank_protocol.codec import CODEC_PACKED, encode
from fullrank_protocol.delta import Delta, Dense, LowRank, Part, SeedContext, expand, seeded_rows, validate
from fullrank_protocol.genesis import AggregationRule, Limits, Module, ModuleKind
from fullrank_protocol.gram import gram
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.state import apply_tile, canonical_float32, model_digest, plan_module, tensor_sha256
from fullrank_protocol.weights import Entry, PastUpdate, past_update, weigh

VECTORS = Path(__file__).resolve().parent.parent / "protocol" / "vectors"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What of a genesis the vectors need."""

    modules: tuple[Module, ...]
    max_rank: int
    codecs: tuple[int, ...]
    limits: Limits


RULES = Rules(
    modules=(
        Module(name="model.layers.0.mlp.down_proj.weight", kind=ModuleKind.LINEAR, out_features=6, in_features=9),
        Module(name="model.layers.0.mlp.up_proj.weight", kind=ModuleKind.LINEAR, out_features=9, in_features=6),
        Module(name="model.norm.weight", kind=ModuleKind.DENSE, out_features=6, in_features=1),
    ),
    max_rank=8,
    codecs=(CODEC_PACKED,),
    limits=Limits(max_delta_bytes=4096, min_scale_exponent=-64, max_scale_exponent=0, max_checkpoint_bytes=1 << 20),
)
AGGREGATION = AggregationRule(
    max_contributions=64,
    token_cap=50_000,
    max_staleness_rounds=3,
    duplicate_cosine_micro=900_000,
    weiszfeld_steps=8,
    update_norm_cap_milli=1500,
    trailing_rounds=5,
    outer_step=Scaled.of(1.0),
    open_share_micro=200_000,
)
SWARM = hashlib.sha256(b"numeric vectors").digest()


class Draws:
    """Small integers from SHAKE-128 of a label."""

    def __init__(self, label: str) -> None:
        self._stream = hashlib.shake_128(label.encode()).digest(1 << 16)
        self._at = 0

    def below(self, bound: int) -> int:
        """Return an integer of at least 0 and below `bound`."""
        self._at += 4
        number: int = struct.unpack("<I", self._stream[self._at - 4 : self._at])[0]
        return number % bound

    def integers(self, *shape: int, bits: int) -> Any:
        """Return an int8 array of integers of `bits` bits as decoded, whose rows all reach at least 64."""
        largest = (1 << (bits - 1)) - 1
        drawn = np.array([self.below(2 * largest + 1) - largest for _ in range(int(np.prod(shape)))])
        array = drawn.reshape(shape)
        array[..., self.below(shape[-1])] = largest
        return (array << (8 - bits)).astype(np.int8)


def member(at: int) -> bytes:
    """Return a stand-in for a member's key."""
    return hashlib.sha256(f"member {at}".encode()).digest()


def context(at: int) -> SeedContext:
    """Return the seed of member `at` in period 2."""
    return SeedContext(swarm=SWARM, member=member(at), period=2)


def draw_delta(at: int) -> Delta:
    """Return the delta of member `at`: even ones with a seeded A; ranks, bits and scales differ."""
    draws = Draws(f"delta {at}")
    seeded = at % 2 == 0
    rank, bits = 2 + at % 3, (4, 8, 2, 3)[at % 4]
    parts: list[Part] = []
    for module in RULES.modules:
        if module.kind == ModuleKind.DENSE:
            if not seeded:
                values = draws.integers(1, module.out_features, bits=bits)[0]
                parts.append(Dense(module=module.name, values_O=values, scale_mantissa=5, scale_exponent=-14))
            continue
        # The third member's first component is too small for the common grid.
        exponents = [(-18 if seeded else -24) + k for k in range(rank)]
        if at == 3:
            exponents[0] = -64
        parts.append(
            LowRank(
                module=module.name,
                B_OR=draws.integers(rank, module.out_features, bits=bits).T,
                A_RI=None if seeded else draws.integers(rank, module.in_features, bits=bits),
                scale_mantissa_R=tuple(2 * draws.below(8) + 1 for _ in range(rank)),
                scale_exponent_R=tuple(exponents),
                row_R=tuple(range(1, 1 + rank)) if seeded else None,
            )
        )
    delta = Delta(parts=tuple(parts))
    validate(delta, RULES)
    return delta


def delta_json(delta: Delta) -> list[dict[str, Any]]:
    """Return a delta's integers; matrices as lists of rows."""
    return [
        {
            "module": part.module,
            "values": part.values_O.tolist(),
            "scale_mantissa": part.scale_mantissa,
            "scale_exponent": part.scale_exponent,
        }
        if isinstance(part, Dense)
        else {
            "module": part.module,
            "b": part.B_OR.tolist(),
            "a": None if part.A_RI is None else part.A_RI.tolist(),
            "scale_mantissas": list(part.scale_mantissa_R),
            "scale_exponents": list(part.scale_exponent_R),
            "seeded_rows": None if part.row_R is None else list(part.row_R),
        }
        for part in delta.parts
    ]


def scaled_json(number: Scaled) -> list[int]:
    """Return [mantissa, exponent]."""
    return [number.mantissa, number.exponent]


def rules_json() -> dict[str, Any]:
    """Return the genesis' part in decoding."""
    return {
        "modules": [
            {
                "name": module.name,
                "kind": int(module.kind),
                "out_features": module.out_features,
                "in_features": module.in_features,
            }
            for module in RULES.modules
        ],
        "max_rank": RULES.max_rank,
        "codecs": list(RULES.codecs),
        "max_delta_bytes": RULES.limits.max_delta_bytes,
        "min_scale_exponent": RULES.limits.min_scale_exponent,
        "max_scale_exponent": RULES.limits.max_scale_exponent,
    }


def make_seeded_rows() -> dict[str, Any]:
    """Rows whose bits begin inside bytes, names outside ASCII, and a period above 2^32."""
    cases = []
    for name, period, rows, columns in (
        ("model.layers.0.mlp.up_proj.weight", 0, 3, 16),
        ("model.layers.0.mlp.up_proj.weight", 1, 3, 5),
        ("schicht.größe", (1 << 32) + 7, 2, 9),
    ):
        drawn = seeded_rows(SeedContext(swarm=SWARM, member=member(0), period=period), name, rows=rows, columns=columns)
        cases.append(
            {
                "swarm": SWARM.hex(),
                "member": member(0).hex(),
                "module": name,
                "period": period,
                "columns": columns,
                "rows": ["".join("+" if entry > 0 else "-" for entry in row) for row in drawn],
            }
        )
    return {"cases": cases}


def make_delta() -> dict[str, Any]:
    """Encoded deltas, the integers in them, and encodings that are refused."""
    cases: list[dict[str, Any]] = []
    for at in range(4):
        delta = draw_delta(at)
        data = encode(delta, RULES, CODEC_PACKED)
        head = 4 + 9 * len(delta.parts)
        body = zstandard.ZstdDecompressor().decompress(data[head:])
        cases.append(
            {
                "encoded": (data[:head] + stored_frame(body)).hex(),
                "compressed": data.hex(),
                "unpacked": body.hex(),
                "parts": delta_json(delta),
            }
        )
    good = bytes.fromhex(cases[0]["encoded"])
    refused = [
        {"why": "one byte missing", "encoded": good[:-1].hex(), "rule": "CODEC"},
        {"why": "one byte too many", "encoded": (good + b"\0").hex(), "rule": "CODEC"},
        {"why": "module index beyond the genesis", "encoded": patched(good, 4, 9), "rule": "CODEC"},
        {"why": "width of 3 bits", "encoded": patched(good, 9, 3), "rule": "CODEC"},
        {"why": "rank above the genesis' maximum", "encoded": patched(good, 11, 9), "rule": "RANK"},
        {"why": "even scale mantissa", "encoded": patched(good, FIRST_BODY_BYTE, 2), "rule": "SCALE"},
        {"why": "scale exponent above the maximum", "encoded": patched(good, FIRST_BODY_BYTE + 3, 1), "rule": "SCALE"},
        {"why": "an entry of -128", "encoded": patched(good, FIRST_BODY_BYTE + 10, 0x88), "rule": "NON_CANONICAL"},
        {"why": "no parts", "encoded": (bytes(4) + stored_frame(b"")).hex(), "rule": "CODEC"},
    ]
    return {"rules": rules_json(), "codec": CODEC_PACKED, "cases": cases, "refused": refused}


FIRST_BODY_BYTE = 4 + 2 * 9 + 4 + 2 + 3
"""Where the frame's content begins in the first case: behind two heads, and behind magic, sizes and block header."""


def stored_frame(body: bytes) -> bytes:
    """Return a zstd frame of one uncompressed block: the same bytes with every library."""
    block = struct.pack("<I", len(body) << 3 | 1)[:3]
    if len(body) < 256:
        return bytes.fromhex("28b52ffd20") + bytes([len(body)]) + block + body
    return bytes.fromhex("28b52ffd60") + struct.pack("<H", len(body) - 256) + block + body


def patched(data: bytes, at: int, octet: int) -> str:
    """Return `data` with one byte replaced, as hexadecimal."""
    return (data[:at] + bytes([octet]) + data[at + 1 :]).hex()


def make_gram(deltas: list[Delta]) -> dict[str, Any]:
    """Inner products of four deltas that partly share modules."""
    return {
        "rules": rules_json(),
        "swarm": SWARM.hex(),
        "period": 2,
        "members": [member(at).hex() for at in range(len(deltas))],
        "deltas": [delta_json(draw_delta(at)) for at in range(len(deltas))],
        "gram": [[number.hex() for number in row] for row in gram(deltas, RULES.modules)],
    }


def past_json(update: PastUpdate) -> dict[str, str]:
    return {name: number.hex() for name, number in asdict(update).items()}


def make_weights() -> dict[str, Any]:
    """Seven deltas of twelve entries: ordinary, late, idle, huge, twins, reversed, a stranger."""
    draws = Draws("weights")
    vectors = [[draws.below(21) - 10 + 6 for _ in range(12)] for _ in range(7)]
    vectors[3] = [9 * entry for entry in vectors[3]]
    vectors[4] = [entry + (place == 0) for place, entry in enumerate(vectors[0])]
    vectors[5] = [-entry for entry in vectors[1]]
    inner = [[float(sum(a * b for a, b in zip(i, j, strict=True))) for j in vectors] for i in vectors]
    entries = [
        Entry(
            contribution_id=hashlib.sha256(f"contribution {at}".encode()).digest(),
            member=member(min(at, 5)),
            num_tokens=(40_000, 60_000, 20_000, 10**9, 40_000, 30_000, 50_000)[at],
            staleness=(0, 0, 2, 0, 1, 0, 0)[at],
            stranger=at == 6,
        )
        for at in range(7)
    ]
    cases = []
    for why, steps, past in (
        ("no history, no cap", 8, ()),
        ("the update norm is capped", 8, ((3.0, 2.0), (0.0, 0.0), (5.0, 3.5), (4.0, 3.0))),
        ("fewer deltas count than usual", 8, ((1e6, 60.0), (1e6, 0.0), (0.0, 9.0), (1e6, 9.5), (1e6, 8.0), (1e6, 7.0))),
        ("fewer deltas, and the update norm is capped", 0, ((2.0, 12.0),)),
        ("without the geometric median", 0, ()),
    ):
        rule = AggregationRule(**{**fields_of(AGGREGATION), "weiszfeld_steps": steps})
        trailing = [PastUpdate(full_norm=norm, breadth=breadth) for norm, breadth in past]
        found = weigh(entries, inner, rule, trailing)
        by_id = sorted(zip(entries, found.weights, strict=True), key=lambda pair: pair[0].contribution_id)
        ascending = [weight for _, weight in by_id]
        cases.append(
            {
                "why": why,
                "weiszfeld_steps": steps,
                "trailing": [past_json(update) for update in trailing],
                "weights": [scaled_json(weight) for weight in found.weights],
                "update_norm": scaled_json(found.update_norm),
                "remembered": past_json(past_update(ascending, found.update_norm, rule, trailing)),
            }
        )
    rule_json = {**fields_of(AGGREGATION), "outer_step": scaled_json(AGGREGATION.outer_step)}
    return {
        "rule": rule_json,
        "entries": [
            {
                "contribution_id": entry.contribution_id.hex(),
                "member": entry.member.hex(),
                "num_tokens": entry.num_tokens,
                "staleness": entry.staleness,
                "stranger": entry.stranger,
            }
            for entry in entries
        ],
        "gram": [[number.hex() for number in row] for row in inner],
        "cases": cases,
    }


def fields_of(rule: AggregationRule) -> dict[str, Any]:
    """Return a rule's constants by name."""
    return {name: getattr(rule, name) for name in rule.__dataclass_fields__}


def make_apply(deltas: list[Delta]) -> dict[str, Any]:
    """Four deltas merged into three tensors; one component falls off the grid, one weight is negligible."""
    weights = [Scaled.of(weight) for weight in (0.5, 0.2, 1 / 3, 3e-9)]
    draws = Draws("masters")
    tensors = []
    hashes: dict[str, bytes] = {}
    for module in RULES.modules:
        drawn = [draw_weight(draws) for _ in range(module.out_features * module.in_features)]
        old = canonical_float32(np.array(drawn, np.float32).reshape(module.out_features, module.in_features))
        parts = [
            (part, weight)
            for delta, weight in zip(deltas, weights, strict=True)
            for part in delta.parts
            if part.module == module.name
        ]
        plan = plan_module(module, parts)
        new = apply_tile(old, plan, slice(0, module.out_features))
        hashes[module.name] = tensor_sha256(new)
        tensors.append(
            {
                "module": module.name,
                "grid_exponent": plan.grid_exponent,
                "num_dropped": plan.num_dropped,
                "old": [float(number).hex() for number in old.reshape(-1)],
                "new": [float(number).hex() for number in new.reshape(-1)],
                "sha256": hashes[module.name].hex(),
            }
        )
    return {
        "rules": rules_json(),
        "swarm": SWARM.hex(),
        "period": 2,
        "members": [member(at).hex() for at in range(len(deltas))],
        "deltas": [delta_json(draw_delta(at)) for at in range(len(deltas))],
        "weights": [scaled_json(weight) for weight in weights],
        "tensors": tensors,
        "model_digest": model_digest(hashes).hex(),
    }


def draw_weight(draws: Draws) -> float:
    """Return a number with all 24 bits of float32 in use, sometimes tiny or minus zero."""
    kind = draws.below(12)
    if kind == 0:
        return -0.0
    if kind == 1:
        return 2.0**-130
    return (draws.below(1 << 24) - (1 << 23)) * 2.0**-27


def build() -> dict[str, dict[str, Any]]:
    """Return all vectors by file name."""
    deltas = [expand(draw_delta(at), context(at), RULES.modules) for at in range(4)]
    return {
        "seeded_rows.json": make_seeded_rows(),
        "delta.json": make_delta(),
        "gram.json": make_gram(deltas),
        "weights.json": make_weights(),
        "apply.json": make_apply(deltas),
    }


def main() -> None:
    """Write every file."""
    for name, content in build().items():
        (VECTORS / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(VECTORS / name)


if __name__ == "__main__":
    main()

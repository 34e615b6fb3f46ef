"""The numbers that every implementation must reach, fixed by files in protocol/vectors."""

import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fullrank_protocol.codec import decode, encode
from fullrank_protocol.delta import Delta, Dense, LowRank, Part, SeedContext, expand, seeded_rows
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import AggregationRule, Limits, Module, ModuleKind
from fullrank_protocol.gram import gram
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.state import apply_tile, canonical_float32, model_digest, plan_module, tensor_sha256
from fullrank_protocol.weights import Entry, PastUpdate, past_update, weigh

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Rules:
    modules: tuple[Module, ...]
    max_rank: int
    codecs: tuple[int, ...]
    limits: Limits


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "protocol" / "vectors" / name).read_text(encoding="utf-8"))
    return content


def read_rules(content: dict[str, Any]) -> Rules:
    return Rules(
        modules=tuple(Module(**{**module, "kind": ModuleKind(module["kind"])}) for module in content["modules"]),
        max_rank=content["max_rank"],
        codecs=tuple(content["codecs"]),
        limits=Limits(
            max_delta_bytes=content["max_delta_bytes"],
            min_scale_exponent=content["min_scale_exponent"],
            max_scale_exponent=content["max_scale_exponent"],
            max_checkpoint_bytes=1 << 20,
        ),
    )


def read_delta(parts: list[dict[str, Any]]) -> Delta:
    read_parts: list[Part] = []
    for part in parts:
        if "values" in part:
            read_parts.append(
                Dense(
                    module=part["module"],
                    values_O=np.array(part["values"], np.int8),
                    scale_mantissa=part["scale_mantissa"],
                    scale_exponent=part["scale_exponent"],
                )
            )
        else:
            read_parts.append(
                LowRank(
                    module=part["module"],
                    B_OR=np.array(part["b"], np.int8),
                    A_RI=None if part["a"] is None else np.array(part["a"], np.int8),
                    scale_mantissa_R=tuple(part["scale_mantissas"]),
                    scale_exponent_R=tuple(part["scale_exponents"]),
                    row_R=None if part["seeded_rows"] is None else tuple(part["seeded_rows"]),
                )
            )
    return Delta(parts=tuple(read_parts))


def read_expanded(content: dict[str, Any]) -> list[Delta]:
    return [
        expand(
            read_delta(parts),
            SeedContext(swarm=bytes.fromhex(content["swarm"]), member=bytes.fromhex(member), period=content["period"]),
            read_rules(content["rules"]).modules,
        )
        for parts, member in zip(content["deltas"], content["members"], strict=True)
    ]


def test_seeded_rows_are_those_of_the_file() -> None:
    for case in read("seeded_rows.json")["cases"]:
        context = SeedContext(
            swarm=bytes.fromhex(case["swarm"]), member=bytes.fromhex(case["member"]), period=case["period"]
        )
        drawn = seeded_rows(context, case["module"], rows=len(case["rows"]), columns=case["columns"])
        assert ["".join("+" if entry == 1 else "-" for entry in row) for row in drawn] == case["rows"]


def test_encoded_deltas_hold_the_integers_of_the_file() -> None:
    content = read("delta.json")
    rules = read_rules(content["rules"])
    for case in content["cases"]:
        delta = read_delta(case["parts"])
        for data in (case["encoded"], case["compressed"], encode(delta, rules, content["codec"]).hex()):
            assert decode(bytes.fromhex(data), rules, content["codec"]) == delta


@pytest.mark.parametrize("case", read("delta.json")["refused"], ids=lambda case: str(case["why"]))
def test_malformed_deltas_of_the_file_are_refused(case: dict[str, str]) -> None:
    content = read("delta.json")
    with pytest.raises(RejectError) as caught:
        decode(bytes.fromhex(case["encoded"]), read_rules(content["rules"]), content["codec"])
    assert caught.value.rule == Rule[case["rule"]]


def test_inner_products_are_those_of_the_file() -> None:
    content = read("gram.json")
    found = gram(read_expanded(content), read_rules(content["rules"]).modules)
    assert [[number.hex() for number in row] for row in found] == content["gram"]


def test_weights_are_those_of_the_file() -> None:
    content = read("weights.json")
    entries = [
        Entry(
            **{
                **entry,
                "contribution_id": bytes.fromhex(entry["contribution_id"]),
                "member": bytes.fromhex(entry["member"]),
            }
        )
        for entry in content["entries"]
    ]
    inner = [[float.fromhex(number) for number in row] for row in content["gram"]]
    mantissa, exponent = content["rule"]["outer_step"]
    for case in content["cases"]:
        rule = AggregationRule(
            **{
                **content["rule"],
                "outer_step": Scaled(mantissa=mantissa, exponent=exponent),
                "weiszfeld_steps": case["weiszfeld_steps"],
            }
        )
        trailing = [
            PastUpdate(**{name: float.fromhex(number) for name, number in past.items()}) for past in case["trailing"]
        ]
        found = weigh(entries, inner, rule, trailing)
        assert [[weight.mantissa, weight.exponent] for weight in found.weights] == case["weights"], case["why"]
        assert [found.update_norm.mantissa, found.update_norm.exponent] == case["update_norm"], case["why"]
        by_id = sorted(zip(entries, found.weights, strict=True), key=lambda pair: pair[0].contribution_id)
        remembered = past_update([weight for _, weight in by_id], found.update_norm, rule, trailing)
        assert {name: number.hex() for name, number in asdict(remembered).items()} == case["remembered"], case["why"]


def test_applying_reaches_the_bytes_and_the_digest_of_the_file() -> None:
    content = read("apply.json")
    deltas = read_expanded(content)
    weights = [Scaled(mantissa=mantissa, exponent=exponent) for mantissa, exponent in content["weights"]]
    hashes = {}
    for module, tensor in zip(read_rules(content["rules"]).modules, content["tensors"], strict=True):
        plan = plan_module(
            module,
            [
                (part, weight)
                for delta, weight in zip(deltas, weights, strict=True)
                for part in delta.parts
                if part.module == module.name
            ],
        )
        assert (plan.grid_exponent, plan.num_dropped) == (tensor["grid_exponent"], tensor["num_dropped"])
        shape = (module.out_features, module.in_features)
        old = canonical_float32(np.array([float.fromhex(n) for n in tensor["old"]], np.float32).reshape(shape))
        new = apply_tile(old, plan, slice(0, module.out_features))
        assert [float(number).hex() for number in new.reshape(-1)] == tensor["new"]
        assert tensor_sha256(new).hex() == tensor["sha256"]
        hashes[module.name] = tensor_sha256(new)
    assert sum(tensor["num_dropped"] for tensor in content["tensors"]) > 0
    assert model_digest(hashes).hex() == content["model_digest"]


def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location(
        "make_numeric_vectors", ROOT / "scripts" / "make_numeric_vectors.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_script_makes_these_files() -> None:
    for name, content in script().build().items():
        stored = read(name)
        if name == "delta.json":  # Compressed bytes depend on the zstd library; the tests above decode them.
            for case in (*content["cases"], *stored["cases"]):
                del case["compressed"]
        assert json.loads(json.dumps(content)) == stored, name

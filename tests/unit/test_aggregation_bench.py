"""The benchmark of aggregation measures the product's own merge, and beside it arithmetic that means the same."""

from pathlib import Path

import numpy as np
import pytest
from aggregating.parts import Bench, Part, decoded, planned, reader
from aggregating.product import Product, run_product
from aggregating.profile import profile
from aggregating.reference import run_reference
from aggregating.report import digests_differ, missed_aims, summary, tables
from aggregating.setting import MODES, SHAPES, Setting

from fullrank_protocol.delta import Delta
from fullrank_protocol.gram import gram
from fullrank_protocol.parts import components
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.state import canonical_float32, model_digest, tensor_sha256

TINY = SHAPES["tiny"]
NUM_DELTAS, RANK = 5, 3
UNITS = 200
"""All scales are whole multiples of 2^-200."""


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(TINY, tmp_path)


def straightforward(setting: Setting, deltas: list[Delta], weights: list[Scaled]) -> bytes:
    """The digest of W + the weighted sum of B A, in whole numbers of any length and rounded once."""
    tensors: dict[str, bytes] = {}
    for at, module in enumerate(setting.genesis.modules):
        total = np.zeros((module.out_features, module.in_features), dtype=object)
        for delta, weight in zip(deltas, weights, strict=True):
            one = components(delta.parts[at])
            for k in range(RANK):
                exponent = weight.exponent + int(one.exponent_R[k]) + UNITS
                scale = (weight.mantissa * int(one.mantissa_R[k])) << exponent
                total += scale * np.outer(one.B_OR[:, k].astype(object), one.A_RI[k].astype(object))
        change = (total / (1 << UNITS)).astype(np.float64)
        new = (reader(setting)(module).astype(np.float64) + change).astype(np.float32)
        tensors[module.name] = tensor_sha256(canonical_float32(new))
    return model_digest(tensors)


def weights_of(product: Product) -> list[Scaled]:
    return [Scaled(mantissa=mantissa, exponent=exponent) for mantissa, exponent in product.weights]


@pytest.mark.parametrize("mode", MODES)
def test_the_digest_is_that_of_the_straightforward_apply(setting: Setting, mode: str) -> None:
    entries = setting.entries(mode=mode, num_deltas=NUM_DELTAS, rank=RANK)
    product = run_product(setting, entries, threads=2)
    assert product.digest == straightforward(setting, decoded(setting, entries), weights_of(product)).hex()
    assert run_product(setting, entries, threads=1).digest == product.digest
    assert list(product.stages_s) == ["decode", "weigh", "apply"]
    assert sum(product.stages_s.values()) == pytest.approx(product.wall_s)
    assert product.peak_anonymous_bytes > 0


def test_a_merge_leaves_only_the_masters_that_were_there(setting: Setting) -> None:
    run_product(setting, setting.entries(mode="b", num_deltas=2, rank=1), threads=1)
    assert setting.masters.total_bytes() == 4 * TINY.num_parameters
    assert all(setting.masters.verify(sha256) for sha256 in setting.manifest.values())


def test_the_reference_computes_the_same_up_to_rounding(setting: Setting) -> None:
    deltas = decoded(setting, setting.entries(mode="b", num_deltas=NUM_DELTAS, rank=RANK))
    weights = [0.1, 0.2, 0.3, 0.4, 0.5]
    modules = setting.genesis.modules
    found = run_reference(deltas, weights, modules, reader(setting), threads=2, keep=True)
    exact = np.array(gram(deltas, modules))
    assert np.allclose(found.gram_NN, exact, rtol=1e-9, atol=1e-9 * exact.max())
    for at, module in enumerate(modules):
        new = reader(setting)(module).astype(np.float64)
        for delta, weight in zip(deltas, weights, strict=True):
            one = components(delta.parts[at])
            scales = np.ldexp(one.mantissa_R.astype(np.float64), one.exponent_R)
            new += weight * (one.B_OR * scales) @ one.A_RI
        assert np.allclose(found.new[module.name], new, rtol=0, atol=1e-12)


def test_a_setting_is_found_again(setting: Setting, tmp_path: Path) -> None:
    again = Setting(TINY, tmp_path)
    assert (again.manifest, again.genesis.swarm) == (setting.manifest, setting.genesis.swarm)
    wanted = {"mode": "b", "num_deltas": 2, "rank": 2}
    assert again.entries(**wanted) == setting.entries(**wanted)  # type: ignore[arg-type]


def test_pairs_that_were_measured_are_kept_and_reported(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    parts = [
        Part(shape="tiny", mode="b", num_deltas=2, rank=1, threads=threads, pair=pair)
        for threads in (1, 2)
        for pair in (0, 1)
    ]
    lines = [bench.measure(part) for part in parts]
    assert Bench(tmp_path).lines == dict(zip(parts, lines, strict=True))
    missing = Part(shape="tiny", mode="b", num_deltas=2, rank=2, threads=1, pair=0)
    report = summary(bench.lines, [], parts=[*parts, missing], full="tiny")
    assert [(part["rank"], part["pair"]) for part in report["missing"]] == [(2, 0)]
    assert "not measured: 1 pairs" in tables(report)
    assert [(row["threads"], row["pairs"]) for row in report["headline"]] == [(1, 2), (2, 2)]
    assert not digests_differ(report)
    assert "tiny" in tables(report)
    report["headline"][0]["digests"] = ["00"]
    assert digests_differ(report)


def test_what_misses_its_aim_is_named() -> None:
    row = {"mode": "b", "num_deltas": 64, "rank": 16, "threads": 1, "ratio": 2.0, "peak_anonymous_mb": 2000}
    assert missed_aims({"headline": [row]}) == []
    assert missed_aims({"headline": [row, {**row, "ratio": 2.25}, {**row, "peak_anonymous_mb": 2001}]}) == [
        "b, 64 deltas of rank 16, 1 threads: 2.25 times the plain arithmetic, aim 2",
        "b, 64 deltas of rank 16, 1 threads: 2001 MB, aim 2000",
    ]


def test_a_torn_line_and_lines_of_other_code_are_measured_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    part = Part(shape="tiny", mode="b", num_deltas=1, rank=1, threads=1, pair=0)
    bench.measure(part)
    path = tmp_path / "lines.jsonl"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + whole[:-20], encoding="utf-8")
    assert list(Bench(tmp_path).lines) == [part]
    path.write_text(whole.replace('"code": "', '"code": "other'), encoding="utf-8")
    assert Bench(tmp_path).lines == {}


def test_every_case_is_planned_once_before_any_is_repeated() -> None:
    once, twice = (planned(full="1b", small="100m", pairs=pairs) for pairs in (1, 2))
    assert len(once) == len(set(once)) == 4 + 18
    assert twice[: len(once)] == once
    assert {part.pair for part in twice[len(once) :]} == {1}


def test_the_profile_names_the_lines_that_take_time(setting: Setting) -> None:
    rows = profile(setting, setting.entries(mode="b", num_deltas=64, rank=16), threads=1)
    assert "gram.products" in {row["where"] for row in rows}
    assert 0 < sum(row["share"] for row in rows) <= 1.001

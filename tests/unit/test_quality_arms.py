"""Arms of the quality benchmark differ in what they should differ in, and agree where theory says so."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learning.arm import AfterRound, Arm, Weights
from learning.arms_adapter import (
    AloneAdapter,
    FactorAveraging,
    ResidualFolding,
    Restarts,
    SingleAdapter,
    Stacking,
    TruncatedMean,
    added,
    mean_product,
    product,
    shared_seed,
    truncated,
)
from learning.arms_mixed import Mixed
from learning.arms_swarm import Swarm
from learning.arms_whole import Alone, LocalSteps, Parallel, Sequential, Sparse
from learning.bench import Bench, open_bench
from learning.catalogue import KINDS, OURS
from learning.corpus import Sources
from learning.ranks import RankTrack
from learning.run import Run
from learning.setting import DOMAINS, IID, TEST, TUNE, Setting, Trial, deal
from learning.sparse import CHUNK, compress
from learning.trial import run_trial, trial_from_json

from fullrank_node.training.contribute import Plan
from fullrank_node.training.lora import Factors
from fullrank_protocol.genesis import TrainingMode
from fullrank_protocol.genesis_defaults import default_rule, default_training
from fullrank_protocol.scaled import Scaled

ARMS: tuple[Arm, ...] = (
    Alone(),
    AloneAdapter(rank=4),
    FactorAveraging(rank=4, own=True, restart=True),
    FactorAveraging(rank=4, own=False, restart=False),
    LocalSteps(carry=True),
    Mixed(mode="B", rank=4, lowest_rank=2),
    Parallel(),
    Parallel(linear_only=True),
    ResidualFolding(rank=4),
    Restarts(rank=4),
    Sequential(),
    SingleAdapter(rank=4),
    Sparse(density=1 / 32),
    Stacking(rank=4),
    Swarm(mode="AB", rank=4, period=1),
    Swarm(mode="B", rank=4),
    TruncatedMean(rank=4),
)


@pytest.fixture(scope="module")
def bench(tiny_base: Path, sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The tiny base with three files of sentences, of which the last rows are held out."""
    directory = tmp_path_factory.mktemp("texts")
    paths = []
    for number in range(3):
        paths.append(directory / f"domain-{number}.jsonl")
        rows = [json.dumps({"text": f"{text} {number}"}) + "\n" for text in sentences[number * 60 : number * 60 + 60]]
        paths[-1].write_text("".join(rows))
    sources = Sources(name="sentences", train=tuple(paths), test=(), block_length=32, valid_blocks=4, test_blocks=4)
    return open_bench(tiny_base, sources, base_name="tiny")


def setting_of(bench: Bench, **changes: Any) -> Setting:
    """Two nodes, two rounds of two steps."""
    usual = Setting(base=bench.name, corpus=bench.corpus.name, nodes=2, rounds=2, steps=2, batch=2, warmup=1, split=IID)
    return replace(usual, **changes)


def ends(bench: Bench, arm: Arm, directory: Path, *, rate: float = 1e-3, **changes: Any) -> list[AfterRound]:
    """What an arm yields, round by round."""
    run = Run(bench, setting_of(bench, **changes), rate=rate, seed=1, directory=directory)
    return list(arm.rounds(run))


def assert_equal(first: Weights, second: Weights) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert np.array_equal(tensor, second[name]), name


def test_every_kind_of_arm_is_tested_here() -> None:
    assert {type(arm) for arm in ARMS} == set(KINDS)


@pytest.mark.parametrize("split", [IID, DOMAINS])
def test_all_arms_read_the_same_blocks_equally_often(bench: Bench, split: str) -> None:
    setting = setting_of(bench, split=split, steps=1)
    lines = [
        run_trial(bench, Trial(setting=setting, arm=arm, rate=1e-2, seed=3, purpose=TUNE))["result"] for arm in ARMS
    ]
    assert len({(line["num_tokens"], line["data"]) for line in lines}) == 1
    assert lines[0]["num_tokens"] > 4 * 20
    losses = [line["loss"] for line in lines]
    assert len(set(losses)) == len(losses), "every arm learns in a way of its own"


def test_a_constant_rate_stays_and_another_falls(bench: Bench, tmp_path: Path) -> None:
    setting = setting_of(bench, steps=4, warmup=2)
    falling, constant = (
        [
            Run(bench, replace(setting, constant=stays), rate=0.5, seed=1, directory=tmp_path)
            .schedule(number, steps=4, warm=True)
            .rate(step)
            for number in (0, 1)
            for step in range(4)
        ]
        for stays in (False, True)
    )
    assert constant == [0.25, 0.5, 0.5, 0.5] * 2
    assert falling[1] > falling[2] > falling[3] > falling[6] > falling[7]


def test_another_seed_reads_other_blocks(bench: Bench) -> None:
    trial = Trial(setting=setting_of(bench), arm=Parallel(), rate=1e-3, seed=1, purpose=TUNE)
    first, second = (run_trial(bench, replace(trial, seed=seed))["result"]["data"] for seed in (1, 2))
    assert first != second


def test_with_one_node_training_in_step_is_training_in_sequence(bench: Bench, tmp_path: Path) -> None:
    parallel, sequential = (ends(bench, arm, tmp_path, nodes=1) for arm in (Parallel(), Sequential()))
    assert_equal(parallel[-1].models[0], sequential[-1].models[0])
    assert not np.array_equal(
        parallel[-1].models[0]["model.embed_tokens.weight"], bench.initial["model.embed_tokens.weight"]
    )


def test_with_one_node_and_no_warm_up_local_steps_with_carried_state_are_one_training(
    bench: Bench, tmp_path: Path
) -> None:
    local, sequential, fresh = (
        ends(bench, arm, tmp_path, nodes=1, warmup=0)[-1].models[0]
        for arm in (LocalSteps(carry=True), Sequential(), LocalSteps(carry=False))
    )
    assert_equal(local, sequential)
    assert any(not np.array_equal(fresh[name], local[name]) for name in local)


def test_training_linear_layers_alone_leaves_embeddings_and_norms(bench: Bench, tmp_path: Path) -> None:
    after = ends(bench, Parallel(linear_only=True), tmp_path)[-1].models[0]
    changed = {name for name, tensor in after.items() if not np.array_equal(tensor, bench.initial[name])}
    assert changed == set(bench.linear)


def test_with_one_node_ours_is_a_single_adapter_within_the_rounding_of_eight_bits(bench: Bench, tmp_path: Path) -> None:
    arms = Swarm(mode="AB", rank=4, bits=8, period=1), SingleAdapter(rank=4)
    ours, single = (ends(bench, arm, tmp_path, nodes=1, rounds=1, rate=0.02)[0].models[0] for arm in arms)
    run = Run(bench, setting_of(bench, nodes=1, rounds=1), rate=0.02, seed=1, directory=tmp_path)
    factors, _ = run.train_adapter(
        bench.initial,
        run.nodes[0].order(),
        rank=4,
        seed_of=run.seed_of(run.nodes[0], 0),
        schedule=run.schedule(0, steps=2, warm=True),
    )
    for name, factor in factors.items():
        assert factor.A_RI is not None
        # Stochastic rounding is off by less than a step: 1/127 of a row's largest entry, and of a column's 9/8 of it.
        B_R, A_R = np.abs(factor.B_OR).max(axis=0), np.abs(factor.A_RI).max(axis=1)
        bound = float(np.sum(B_R * A_R)) * (1.125 / 127 + 1 / 127 + 1.125 / 127**2)
        bound += 4 * 2.0**-24 * float(np.abs(single[name]).max())
        apart = np.abs(ours[name].astype(np.float64) - single[name])
        assert 0.0 < apart.max() <= bound
        assert bound < 0.1 * np.abs(single[name] - bench.initial[name]).max()


def test_ours_leaves_what_no_adapter_reaches(bench: Bench, tmp_path: Path) -> None:
    embeddings, norm = "model.embed_tokens.weight", "model.norm.weight"
    for arm in (Swarm(mode="B", rank=4), Swarm(mode="B", rank=4, embeddings=False)):
        after = ends(bench, arm, tmp_path)[-1]
        assert np.array_equal(after.models[0][norm], bench.initial[norm])
        assert np.array_equal(after.models[0][embeddings], bench.initial[embeddings]) != arm.embeddings
        assert len(after.merged) == len(after.num_bytes) == 2


def linear_layers(bench: Bench) -> list[Any]:
    return [module for module in bench.modules if module.name in bench.linear]


def node_ends(run: Run, rank: int) -> list[Any]:
    """What each node's adapter becomes in the first round, on an A that all have in common."""
    schedule = run.schedule(0, steps=run.setting.steps, warm=True)
    return [
        run.train_adapter(run.bench.initial, node.order(), rank=rank, seed_of=shared_seed(run, 0), schedule=schedule)[0]
        for node in run.nodes
    ]


def test_residual_folding_is_exact_averaging(bench: Bench, tmp_path: Path) -> None:
    run = Run(bench, setting_of(bench, rounds=1), rate=0.02, seed=1, directory=tmp_path)
    exact = added(bench.initial, mean_product(node_ends(run, 4)))
    folded = ends(bench, ResidualFolding(rank=4), tmp_path, rate=0.02, rounds=1)[0].models[0]
    averaged = ends(bench, FactorAveraging(rank=4, own=False, restart=False), tmp_path, rate=0.02, rounds=1)[0].models[
        0
    ]
    for module in bench.modules:
        name = module.name
        rounding = 2.0**-23 * float(np.abs(exact[name]).max())
        assert np.abs(folded[name] - exact[name]).max() <= rounding
        assert np.abs(averaged[name] - exact[name]).max() > 10 * rounding


def test_residual_folding_stays_exact_when_adapters_start_from_the_average() -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((6, 5)).astype(np.float32)}
    sent = [
        {"w": Factors(B_OR=rng.standard_normal((6, 2)).astype("f4"), A_RI=rng.standard_normal((2, 5)).astype("f4"))}
        for _ in range(3)
    ]
    below, start = ResidualFolding(rank=2).merge(weights, sent)
    assert start is not None
    assert np.allclose(added(below, product(start))["w"], added(weights, mean_product(sent))["w"], atol=1e-6)


def test_stacked_adapters_have_the_rank_of_all_of_them(bench: Bench, tmp_path: Path) -> None:
    after = ends(bench, Stacking(rank=3), tmp_path, rate=0.02, rounds=1)[0]
    track = RankTrack(bench.initial, linear_layers(bench), seed=0)
    track.add(after)
    assert track.change[0]["numerical"] == 6.0


def test_cutting_to_full_rank_cuts_nothing() -> None:
    change = np.random.default_rng(0).standard_normal((6, 4))
    whole, cut = truncated(change, 4), truncated(change, 1)
    assert whole.A_RI is not None
    assert cut.A_RI is not None
    assert np.allclose(whole.B_OR @ whole.A_RI, change, atol=1e-5)
    second = np.linalg.svd(change, compute_uv=False)[1]
    assert np.linalg.norm(cut.B_OR @ cut.A_RI - change, 2) == pytest.approx(second, rel=1e-5)


def test_nodes_alone_have_models_of_their_own(bench: Bench, tmp_path: Path) -> None:
    for arm in (Alone(), AloneAdapter(rank=4)):
        first, second = ends(bench, arm, tmp_path)[-1].models
        assert any(not np.array_equal(first[name], second[name]) for name in first)


def test_a_sparse_change_keeps_the_largest_entries_in_two_magnitudes() -> None:
    vector = np.zeros(CHUNK + 10)
    vector[:4] = [5.0, -3.0, 2.0, -1.0]
    sent = compress(vector, density=4 / CHUNK)
    assert sent.values[:4].tolist() == [4.0, -4.0, 1.5, -1.5]
    assert not sent.values[4:].any()


def test_a_sparse_change_is_counted_with_signs_levels_and_an_ideal_code_for_places() -> None:
    one_chunk = compress(np.ones(CHUNK), density=1 / CHUNK)
    assert one_chunk.num_bytes == pytest.approx((2 + 32 + 12) / 8)


def test_what_sparse_sharing_keeps_back_is_sent_later(bench: Bench, tmp_path: Path) -> None:
    once, kept = (
        ends(bench, Sparse(density=1 / 32, decay=decay), tmp_path, nodes=1)[-1].models[0] for decay in (0.0, 1.0)
    )
    assert any(not np.array_equal(once[name], kept[name]) for name in once)


def test_noise_has_the_rank_of_random_products_on_the_same_a(bench: Bench, tmp_path: Path) -> None:
    track = RankTrack(bench.initial, linear_layers(bench), seed=0)
    for after in ends(bench, Swarm(mode="B", rank=3, bits=8, period=2), tmp_path, rate=0.02, rounds=3):
        track.add(after)
    # Two nodes of rank 3 keep their A for two rounds, then draw new ones; no matrix has more than rank 32.
    assert [line["numerical"] for line in track.noise] == [6.0, 6.0, 12.0]
    assert all(
        noise["effective"] > change["effective"] for noise, change in zip(track.noise, track.change, strict=True)
    )


def shares(bench: Bench, nodes: int, split: str) -> list[Sequence[int]]:
    return [shard.tolist() for shard in deal(bench.corpus, nodes=nodes, split=split, seed=5)]


@pytest.mark.parametrize("split", [IID, DOMAINS])
@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
def test_every_block_has_one_owner(bench: Bench, nodes: int, split: str) -> None:
    owned = [number for shard in shares(bench, nodes, split) for number in shard]
    assert sorted(owned) == list(range(len(bench.corpus.train)))


def test_domains_stay_together_while_there_are_enough_and_are_shared_when_not(bench: Bench) -> None:
    domains = bench.corpus.domains
    assert [set(domains[shard]) for shard in shares(bench, 2, DOMAINS)] == [{0, 2}, {1}]
    assert [set(domains[shard]) for shard in shares(bench, 5, DOMAINS)] == [{0}, {1}, {2}, {0}, {1}]


def test_tuning_never_looks_at_test_blocks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    measure = bench.loss

    def watched(weights: Weights, blocks: Any) -> float:
        seen.extend(row.tobytes() for row in blocks.tokens)
        return measure(weights, blocks)

    monkeypatch.setattr(bench, "loss", watched)
    trial = Trial(setting=setting_of(bench), arm=Parallel(), rate=1e-3, seed=0, purpose=TUNE)
    run_trial(bench, trial)
    test_rows = {row.tobytes() for row in bench.corpus.test.tokens}
    assert seen
    assert not test_rows & set(seen)
    seen.clear()
    run_trial(bench, replace(trial, purpose=TEST))
    assert set(seen) == test_rows


@pytest.mark.parametrize("arm", [Parallel(), SingleAdapter(rank=4), Swarm(mode="B", rank=4)])
def test_a_line_has_every_rank_of_every_round(bench: Bench, arm: Arm) -> None:
    result = run_trial(bench, Trial(setting=setting_of(bench), arm=arm, rate=2e-3, seed=2, purpose=TEST))["result"]
    kept = [result["rank"], *([result["rank_noise"]] if isinstance(arm, Swarm) else [])]
    for columns in kept:
        assert columns.keys() == {"numerical", "stable", "effective", "full"}
        for stable, effective, numerical, full in zip(
            *(columns[name] for name in ("stable", "effective", "numerical", "full")), strict=True
        ):
            assert 1.0 <= stable <= effective <= numerical * 1.001 <= full * 1.001
        assert len(columns["full"]) == 2
    assert ("rank_noise" in result) == isinstance(arm, Swarm)


@pytest.mark.parametrize("arm", [Swarm(mode="B", rank=4, bits=2, feedback=True), Sparse(density=1 / 8)])
def test_a_line_can_be_made_again_from_what_it_says_of_itself(bench: Bench, arm: Arm) -> None:
    trial = Trial(setting=setting_of(bench), arm=arm, rate=2e-3, seed=2, purpose=TEST)
    line = json.loads(json.dumps(run_trial(bench, trial)))
    again = trial_from_json(line["trial"])
    assert again == trial
    assert again.key == line["key"]
    assert run_trial(bench, again)["result"] == line["result"]
    assert len(line["result"]["curve"]) == 3
    assert len(line["result"]["rank"]["effective"]) == 2


def test_a_rate_that_is_too_high_is_a_failed_trial(bench: Bench) -> None:
    for arm in (Parallel(), Swarm(mode="B", rank=4)):
        trial = Trial(setting=setting_of(bench), arm=arm, rate=1e30, seed=0, purpose=TUNE)
        result = run_trial(bench, trial)["result"]
        assert result["loss"] is None
        assert result["failed"]


def test_a_trial_of_another_base_is_refused(bench: Bench) -> None:
    trial = Trial(setting=setting_of(bench, base="another"), arm=Parallel(), rate=1e-3, seed=0, purpose=TUNE)
    with pytest.raises(ValueError, match="required another"):
        run_trial(bench, trial)


def test_a_trial_follows_the_rule_of_today_and_draws_the_same_a_under_any(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = bench.genesis(outer_step=0.5)
    rule = default_rule()
    assert (today.rule.token_cap, today.rule.duplicate_cosine_micro) == (rule.token_cap, rule.duplicate_cosine_micro)
    rule.token_cap, rule.duplicate_cosine_micro = 1, 2
    monkeypatch.setattr("learning.bench.default_rule", lambda: rule)
    monkeypatch.setattr(bench, "_geneses", {})
    other = bench.genesis(outer_step=0.5)
    assert (other.rule.token_cap, other.rule.duplicate_cosine_micro) == (1, 2)
    assert other.swarm == today.swarm


def test_before_the_first_merge_a_node_counts_on_itself_alone_unless_it_is_eager(bench: Bench, tmp_path: Path) -> None:
    run = Run(bench, setting_of(bench, nodes=2), rate=1e-3, seed=1, directory=tmp_path)
    genesis = bench.genesis()
    arm = Swarm(mode="B", rank=4)
    assert arm.expected(run, [], genesis) == (1, 0)
    assert replace(arm, eager=True).expected(run, [], genesis) == (2, 0)
    assert arm.expected(run, [(2, 1)], genesis) == replace(arm, eager=True).expected(run, [(2, 1)], genesis) == (2, 1)


def test_what_others_are_compared_with_is_what_a_daemon_does_by_default(bench: Bench) -> None:
    training, plan = default_training(), Plan.of({"round": 0, "member": "00" * 32}, bench.genesis())
    assert (training.mode, training.rank, training.bits_b, training.period_rounds) == (
        TrainingMode.MODE_B,
        OURS.rank,
        OURS.bits,
        OURS.period,
    )
    assert (plan.error_feedback, plan.carry_moments, plan.stochastic) == (OURS.feedback, OURS.carry, OURS.stochastic)
    assert plan.betas[0] == OURS.first_decay
    assert Scaled.from_wire(default_rule().outer_step).value() == OURS.outer_step

"""The figures of the aggregation rule's tables, on deltas so simple that a person can check them."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rule
from learning.arms_swarm import Swarm
from learning.bench import Bench, open_bench
from learning.corpus import Sources
from learning.rule_figures import cell, history, hostile_path, over_trailing
from learning.rule_replay import (
    RULE,
    Sender,
    apart,
    at_random,
    averaged,
    boasting,
    concerted,
    copies,
    crowding,
    disguised,
    distance,
    honest,
    replayed,
    strangers,
)
from learning.rule_rounds import COPY, MEMBER, RANDOM, STRANGER, Round, cosine_of, real_rounds, round_from_json
from learning.run import Run
from learning.setting import IID, Setting

from fullrank_protocol.weights import PastUpdate

MEAN_RULE = replace(RULE, weiszfeld_steps=0)
"""Clips, and takes the mean."""


@pytest.fixture
def orthogonal() -> Round:
    """Four members, three strangers and others, all of norm 2 and at right angles."""
    names = [f"{kind}{place}" for kind, count in ((MEMBER, 4), (STRANGER, 3), (RANDOM, 3)) for place in range(count)]
    copied = [f"{COPY}{place}" for place in range(3)]
    size = len(names) + len(copied)
    return Round(
        names=(*names, *copied), gram_DD=4.0 * np.eye(size), weights=(0.25,) * 4, consecutive=(0.5,) * 4, loss=3.0
    )


@pytest.fixture(scope="module")
def bench(tiny_base: Path, sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The tiny base with a file of sentences."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences[:180]))
    sources = Sources(name="sentences", train=(path,), test=(), block_length=32, valid_blocks=4, test_blocks=4)
    return open_bench(tiny_base, sources, base_name="tiny")


def run_of(bench: Bench, directory: Path) -> Run:
    """Three nodes, four rounds of two steps; strangers train in the last."""
    setting = Setting(
        base=bench.name, corpus=bench.corpus.name, nodes=3, rounds=4, steps=2, batch=2, warmup=1, split=IID
    )
    directory.mkdir()
    return Run(bench, setting, rate=1e-2, seed=1, directory=directory)


def gram_of(one: Round, senders: Sequence[Sender]) -> np.ndarray:
    mix_SD = np.array([sender.mix_D for sender in senders])
    found: np.ndarray = mix_SD @ one.gram_DD @ mix_SD.T
    return found


def test_honest_members_are_averaged(orthogonal: Round) -> None:
    found = replayed(orthogonal, honest(orthogonal))
    assert found.weights == (0.25,) * 4
    assert (found.cosine, found.progress, found.norm, found.update_norm) == pytest.approx((1.0, 1.0, 1.0, 1.0))


def test_a_delta_ten_times_as_long_counts_as_one_of_the_median_length(orthogonal: Round) -> None:
    senders = [*honest(orthogonal, 3), *apart(orthogonal, 1)]
    found = replayed(orthogonal, senders, MEAN_RULE)
    # (d0 + d1 + d2 - d3) / 4 beside (d0 + d1 + d2) / 3.
    assert found.share == pytest.approx(1 / 4, abs=0.002)
    assert found.cosine == pytest.approx(math.sqrt(3) / 2, abs=0.002)
    assert found.progress == pytest.approx(3 / 4)


def test_a_plain_mean_goes_where_the_longest_goes(orthogonal: Round) -> None:
    found = averaged(orthogonal, [*honest(orthogonal, 3), *apart(orthogonal, 1)])
    assert found.share == pytest.approx(10 / 13)
    assert found.cosine == pytest.approx(math.sqrt(3) / math.sqrt(103))


@pytest.mark.parametrize(("count", "threshold"), [(2, 0.5), (3, 0.5), (2, 0.9), (3, 0.9)])
def test_those_who_act_in_concert_lie_just_below_the_threshold(orthogonal: Round, count: int, threshold: float) -> None:
    gram_SS = gram_of(orthogonal, concerted(orthogonal, count, threshold=threshold)) / 20.0**2
    assert np.diag(gram_SS) == pytest.approx([1.0] * count)
    assert gram_SS[np.triu_indices(count, 1)].tolist() == pytest.approx([threshold - 0.01] * math.comb(count, 2))


def test_the_noise_of_those_who_act_in_concert_adds_up_to_nothing(orthogonal: Round) -> None:
    summed_D = sum(sender.mix_D for sender in concerted(orthogonal, 3))
    members = orthogonal.places(MEMBER)
    assert summed_D == pytest.approx(np.where(np.isin(np.arange(summed_D.size), members), summed_D[members[0]], 0.0))
    assert summed_D[members[0]] < 0.0


def test_whoever_turns_the_mean_alone_adds_no_noise(orthogonal: Round) -> None:
    (alone,) = concerted(orthogonal, 1)
    # The unit vector along the mean of four deltas of norm 2 is a quarter of each; times -10 and the median norm.
    assert alone.mix_D[orthogonal.places(MEMBER)] == pytest.approx([-5.0] * 4)


def test_random_integers_are_as_long_as_members_deltas(orthogonal: Round) -> None:
    longer = replace(orthogonal, gram_DD=np.diag([9.0 if name == "random0" else 4.0 for name in orthogonal.names]))
    assert gram_of(longer, at_random(longer, 1)) == pytest.approx(np.array([[4.0]]))


def test_four_copies_weigh_as_much_as_one_delta_unless_there_is_no_threshold(orthogonal: Round) -> None:
    senders = [*copies(orthogonal), *honest(orthogonal)[1:]]
    assert replayed(orthogonal, senders).share == pytest.approx(1 / 4, abs=0.002)
    unlimited = replace(MEAN_RULE, duplicate_cosine_micro=1_010_000)
    assert replayed(orthogonal, senders, unlimited).share == pytest.approx(4 / 7, abs=0.002)


def test_a_copy_in_disguise_lies_just_below_the_threshold(orthogonal: Round) -> None:
    gram_SS = gram_of(orthogonal, disguised(orthogonal, 0.9))
    assert np.diag(gram_SS) == pytest.approx([4.0] * 4)
    assert gram_SS[0, 1:] / 4.0 == pytest.approx([0.89] * 3)
    assert gram_SS[1, 2] / 4.0 == pytest.approx(0.89**2)


def test_whoever_is_like_the_sum_of_others_shares_their_weight(orthogonal: Round) -> None:
    senders = crowding(orthogonal, 1, 2)
    # The sum has a cosine of 0.71 with both: they count half, it a third, and one member is left.
    assert replayed(orthogonal, senders, replace(MEAN_RULE, duplicate_cosine_micro=500_000)).share == pytest.approx(
        1 / (1 + 1 / 3 + 1), abs=0.003
    )
    assert replayed(orthogonal, senders, replace(MEAN_RULE, duplicate_cosine_micro=900_000)).share == pytest.approx(
        1 / 2, abs=0.003
    )


def test_whoever_declares_without_bound_weighs_as_much_as_the_cap_is_worth(orthogonal: Round) -> None:
    senders = boasting(orthogonal, 4, num_tokens=1 << 18, hostile=False)
    found = replayed(orthogonal, senders, replace(MEAN_RULE, token_cap=1 << 20))
    assert found.share == pytest.approx(4 / 7, abs=0.002)


def test_strangers_weigh_no_more_than_the_open_share(orthogonal: Round) -> None:
    senders = [*honest(orthogonal), *strangers(orthogonal, 3)]
    assert replayed(orthogonal, senders, replace(MEAN_RULE, open_share_micro=200_000)).share == pytest.approx(
        0.2, abs=0.002
    )
    assert replayed(orthogonal, senders, replace(MEAN_RULE, open_share_micro=1_000_000)).share == pytest.approx(
        3 / 7, abs=0.002
    )


def test_the_distance_of_two_updates_is_in_lengths_of_a_delta(orthogonal: Round) -> None:
    senders = honest(orthogonal)
    first = replayed(orthogonal, senders)
    second = replace(first, weights=(0.25, 0.25, 0.0, 0.0))
    # They differ by a quarter of two deltas at right angles.
    assert distance(orthogonal, senders, first, second) == pytest.approx(math.sqrt(2) / 4)


def test_a_cohort_that_is_hostile_as_a_whole_raises_its_cap_only_with_the_median(orthogonal: Round) -> None:
    # One honest round of norm 1 came before; medians are the lower ones of 1; 1, 1.5; and 1, 1.5, 1.5.
    path = hostile_path([orthogonal], RULE, most=3)
    assert path == pytest.approx([1.5, 1.5, 2.25], rel=0.01)
    assert hostile_path([orthogonal], replace(RULE, update_norm_cap_milli=0), most=2) == pytest.approx([10.0, 10.0])


def test_a_swarm_is_remembered_by_the_norms_of_its_updates(orthogonal: Round) -> None:
    assert history([orthogonal]) == [PastUpdate(full_norm=1.0, breadth=4.0)]
    norms = [PastUpdate(full_norm=norm, breadth=4.0) for norm in (1.0, 2.0, 4.0)]
    assert over_trailing(norms) == [None, 2.0, 4.0]
    assert over_trailing(norms, trailing=1) == [None, 2.0, 2.0]


def test_a_place_of_a_table_shows_the_mean_and_keeps_the_extremes() -> None:
    found = cell("{share:.0%} ({least_share:.2f} to {most_share:.2f})", share=[0.25, 0.5, 0.75])
    assert (found.text, found.figures) == ("50 % (0.25 to 0.75)", {"share": (0.5, 0.25, 0.75)})


def test_a_round_is_read_as_it_was_written(orthogonal: Round) -> None:
    leaning = orthogonal.gram_DD.copy()
    leaning[0, 1] = leaning[1, 0] = 1.0
    written = replace(orthogonal, gram_DD=leaning).to_json()
    found = round_from_json(json.loads(json.dumps(written)))
    assert (found.names, found.weights, found.loss) == (orthogonal.names, orthogonal.weights, 3.0)
    assert found.gram_DD == pytest.approx(leaning)
    assert found.places(STRANGER) == [4, 5, 6]


def test_those_beside_a_swarm_do_not_disturb_it(bench: Bench, tmp_path: Path) -> None:
    arm = Swarm(mode="B", rank=4)
    alone = list(real_rounds(run_of(bench, tmp_path / "alone"), arm, alone=True))
    watched = list(real_rounds(run_of(bench, tmp_path / "watched"), arm))
    assert len(alone) == len(watched) == 4
    for one, other in zip(alone, watched, strict=True):
        assert one.names == ("member0", "member1", "member2")
        members = other.places(MEMBER)
        assert np.array_equal(one.gram_DD, other.gram_DD[np.ix_(members, members)])
        assert (one.weights, one.consecutive, one.loss) == (other.weights, other.consecutive, other.loss)
    assert [len(one.places(STRANGER)) for one in watched] == [0, 0, 0, 16]


def test_a_copy_is_like_its_original_and_random_integers_are_like_nothing(bench: Bench, tmp_path: Path) -> None:
    *_, last = real_rounds(run_of(bench, tmp_path / "run"), Swarm(mode="B", rank=4))
    likest = {kind: max(cosine_of(last.gram_DD, 0, place) for place in last.places(kind)) for kind in (COPY, RANDOM)}
    assert likest[COPY] > 0.3
    assert abs(likest[RANDOM]) < 0.1


def test_results_that_were_cut_off_are_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "rule.jsonl"
    path.write_text('{"version": 1, "seed": 7}\n{"version": 0}\n{"versi')
    assert rule.lines_of(path) == [{"version": 1, "seed": 7}]
    assert path.read_text() == '{"version": 1, "seed": 7}\n{"version": 0}\n'


def test_there_is_no_report_without_all_swarms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rule.report(tmp_path / "rule.jsonl") == 1
    assert "iid, domains, full, long" in capsys.readouterr().err

"""The picture and the table say what the results say, whatever arms are missing, and twice the same."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import picture
import pytest
from learning.arm import Arm
from learning.arms_adapter import FactorAveraging, SingleAdapter
from learning.arms_swarm import Swarm
from learning.arms_whole import Parallel, Sequential
from learning.catalogue import GROWING, OURS, STANDARD
from learning.drawing import GROUND, INK, OTHER_POINT, POINTS, STYLES, apart, draw, draw_ranks
from learning.plan import Lineup
from learning.report import Comparison, compare
from learning.setting import Setting
from learning.shown import WORDS, choose, followed, frontier, loss_curves, rank_curves, senders, tabled
from learning.store import Results

SETTING = Setting(base="b", corpus="c", nodes=2, rounds=2, steps=5, batch=4, warmup=1, split="iid")

FACTORS = FactorAveraging(rank=8, own=False, restart=False)
SMALL = replace(OURS, rank=8)
WASTEFUL = replace(OURS, outer_step=2.0)

LOSSES: Mapping[Arm, tuple[float, float]] = {
    Parallel(): (2.0, 2.2),
    Sequential(): (1.9, 2.0),
    SingleAdapter(rank=4): (2.8, 2.9),
    SingleAdapter(rank=16): (2.4, 2.5),
    OURS: (2.5, 2.6),
    SMALL: (3.0, 3.1),
    WASTEFUL: (2.6, 2.7),
    FACTORS: (3.5, 3.6),
}
"""Test losses of two seeds."""

SENT = {Parallel(): 9e6, OURS: 50e3, SMALL: 10e3, WASTEFUL: 120e3, FACTORS: 100e3}
"""Bytes of a contribution, of those who send any."""


def add_lines(results: Results, arm: Arm, losses: Sequence[float], *, setting: Setting = SETTING) -> None:
    """A tuning line and a test line for each seed, as trials would make them."""
    lineup = Lineup(setting=setting, arms=(arm,), seeds=(1, 2), rates=(0.5,))
    cost = {"cpu_s": 2.0, "machine": "a machine", "versions": "some versions"}
    read = {"num_tokens": 4000, "data": "d"}
    tuning = lineup.tuning(arm, 0.5)
    results.add({"key": tuning.key, "trial": tuning.to_json(), "result": {"loss": 3.0, **read}, "cost": cost})
    for trial, loss in zip(lineup.tests(arm, 0.5), losses, strict=True):
        columns = {"numerical": [8.0, 8.0], "stable": [2.0, 2.0], "effective": [3.0, loss], "full": [8.0, 8.0]}
        result: dict[str, Any] = {"loss": loss, "start": 5.0, "curve": [5.0, 4.0, loss], **read, "rank": columns}
        result["num_bytes"] = SENT.get(arm)
        if isinstance(arm, Swarm):
            result["rank_noise"] = columns | {"effective": [5.0, 6.0]}
        results.add({"key": trial.key, "trial": trial.to_json(), "result": result, "cost": cost})


def results_of(path: Path, losses: Mapping[Arm, Sequence[float]] = LOSSES) -> Results:
    results = Results(path)
    for arm, values in losses.items():
        add_lines(results, arm, values)
    return results


def comparison_of(path: Path, losses: Mapping[Arm, Sequence[float]] = LOSSES) -> Comparison:
    return choose(compare(results_of(path, losses), ours=OURS.name), nodes=None, rounds=None, split=None)


# ---- what is shown -----------------------------------------------------------------------------


def test_over_rounds_the_mark_the_swarm_the_best_adapter_and_noise_are_drawn(tmp_path: Path) -> None:
    comparison = comparison_of(tmp_path / "r.jsonl")
    assert [(role, row.arm) for role, row in followed(comparison)] == [
        ("mark", Parallel()),
        ("ours", OURS),
        ("adapter", SingleAdapter(rank=16)),
    ]
    assert [curve.values for curve in loss_curves(comparison)] == [
        pytest.approx((5.0, 4.0, 2.1)),
        pytest.approx((5.0, 4.0, 2.55)),
        pytest.approx((5.0, 4.0, 2.45)),
    ]
    assert [(curve.role, curve.values) for curve in rank_curves(comparison)] == [
        ("mark", pytest.approx((3.0, 2.1))),
        ("ours", pytest.approx((3.0, 2.55))),
        ("noise", pytest.approx((5.0, 6.0))),
        ("adapter", pytest.approx((3.0, 2.45))),
    ]


def test_the_ranks_of_narrow_contributions_are_drawn_and_no_ablation_is_among_the_points(tmp_path: Path) -> None:
    comparison = comparison_of(tmp_path / "r.jsonl", {**LOSSES, GROWING: (3.0, 3.2)})
    assert rank_curves(comparison)[-1].role == "growing"
    assert rank_curves(comparison)[-1].values == pytest.approx((3.0, 3.1))
    assert GROWING not in [row.arm for _, _, row in senders(comparison)]
    assert GROWING not in [row.arm for row in tabled(comparison)]


def test_on_the_frontier_is_whom_nobody_beats_with_as_few_bytes(tmp_path: Path) -> None:
    comparison = comparison_of(tmp_path / "r.jsonl")
    assert [row.arm for _, _, row in frontier(comparison)] == [SMALL, OURS, Parallel()]


def test_the_table_has_others_ours_and_of_our_variants_those_on_the_frontier(tmp_path: Path) -> None:
    comparison = comparison_of(tmp_path / "r.jsonl")
    assert [row.arm for row in tabled(comparison)] == [
        Sequential(),
        Parallel(),
        SingleAdapter(rank=16),
        OURS,
        SingleAdapter(rank=4),
        SMALL,
        FACTORS,
    ]


def test_the_setting_with_most_arms_is_shown_unless_another_is_asked_for(tmp_path: Path) -> None:
    results = results_of(tmp_path / "r.jsonl")
    longer = replace(SETTING, rounds=30, nodes=8)
    add_lines(results, Parallel(), (1.0, 1.1), setting=longer)
    comparisons = compare(results, ours=OURS.name)
    assert choose(comparisons, nodes=None, rounds=None, split=None).setting == SETTING
    assert choose(comparisons, nodes=None, rounds=30, split="iid").setting == longer
    with pytest.raises(ValueError, match="required a tested setting of"):
        choose(comparisons, nodes=2, rounds=30, split=None)
    with pytest.raises(ValueError, match="found nothing"):
        choose([], nodes=None, rounds=None, split=None)


def test_every_kind_of_arm_has_words() -> None:
    assert {type(arm).__name__ for arm in STANDARD} <= set(WORDS)


# ---- the picture -------------------------------------------------------------------------------


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    comparison = comparison_of(tmp_path / "r.jsonl")
    drawn = draw(comparison)
    assert draw(comparison) == drawn
    assert draw_ranks(comparison) == draw_ranks(comparison) != drawn
    assert drawn.startswith(b"<?xml")
    assert b"dc:date" not in drawn
    assert GROUND.encode() in drawn


def test_another_loss_gives_another_picture(tmp_path: Path) -> None:
    other = {**LOSSES, OURS: (2.5, 2.7)}
    assert draw(comparison_of(tmp_path / "a.jsonl")) != draw(comparison_of(tmp_path / "b.jsonl", other))


@pytest.mark.parametrize("arms", [[Parallel()], [OURS], [FACTORS], [Sequential()], [SingleAdapter(rank=4), SMALL]])
def test_arms_may_be_missing(tmp_path: Path, arms: list[Arm]) -> None:
    comparison = comparison_of(tmp_path / "r.jsonl", {arm: LOSSES[arm] for arm in arms})
    assert draw(comparison).rstrip().endswith(b"</svg>")
    assert len(picture.table(comparison, Results(tmp_path / "r.jsonl")).splitlines()) >= 4


def test_labels_keep_apart_and_near_to_their_lines() -> None:
    assert apart([0.0, 100.0, 50.0], 10.0) == [0.0, 100.0, 50.0]
    assert apart([20.0, 20.0], 10.0) == [15.0, 25.0]
    assert apart([21.0, 20.0, 31.0], 10.0) == pytest.approx([24.0, 14.0, 34.0])
    assert apart([], 10.0) == []


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb by WCAG 2.1."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_texts_and_marks_stand_out_from_their_ground() -> None:
    def contrast(colour: str) -> float:
        return (luminance(GROUND) + 0.05) / (luminance(colour) + 0.05)

    assert min(contrast(style["color"]) for style in STYLES.values()) >= 4.5
    assert contrast(INK) >= 7.0
    assert min(contrast(colour) for colour, _ in [*POINTS.values(), OTHER_POINT]) >= 3.0


# ---- the table ---------------------------------------------------------------------------------


def test_the_table_is_written_between_its_marks_and_nowhere_else(tmp_path: Path) -> None:
    path, readme = tmp_path / "r.jsonl", tmp_path / "README.md"
    results_of(path)
    readme.write_text(f"# Title\n\n{picture.BEGIN}\nold\n{picture.END}\n\nThe rest.\n")
    command = ["--table", "--results", str(path), "--readme", str(readme)]
    assert picture.main(command) == 0
    written = readme.read_text()
    assert written.startswith(f"# Title\n\n{picture.BEGIN}\n| 2 nodes, 2 rounds |")
    assert written.endswith(f"a machine; some versions.\n{picture.END}\n\nThe rest.\n")
    assert "old" not in written
    assert picture.main(command) == 0
    assert readme.read_text() == written


def test_a_line_of_the_table_can_be_checked_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    found = picture.table(comparison_of(path), Results(path)).splitlines()
    # Ours: losses 2.5 and 2.6, mean 2.55, Student's t with one degree of freedom: 12.706 * 0.0707 / sqrt(2) = 0.635.
    # Gains 2.5 / 3.0 and 2.4 / 2.8. The rank of the last round is the loss here.
    assert found[5] == f"| **the swarm** `{OURS.name}` | 2.550 ± 0.635 | 0.85 ± 0.15 |  | 50.0 ◆ | 3 (6) |"
    # The adapter is 0.1 better with both seeds; it sends nothing, and has no deltas to make noise of.
    assert re.fullmatch(
        r"\| one adapter, all steps in sequence `adapter-r16` \| 2\.450 ± 0\.635 \| .* "
        rf"\| {picture.MINUS}0\.100 ± 0\.000 \|  \| 2 \|",
        found[4],
    )
    assert "9,000 ◆" in found[3]


@pytest.mark.parametrize(
    "page", ["no marks", f"{picture.END}\n{picture.BEGIN}", f"{picture.BEGIN}\n{picture.END}\n" * 2]
)
def test_a_page_without_a_place_for_the_table_is_left_alone(
    tmp_path: Path, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, readme = tmp_path / "r.jsonl", tmp_path / "README.md"
    results_of(path)
    readme.write_text(page)
    assert picture.main(["--table", "--results", str(path), "--readme", str(readme)]) == 1
    assert readme.read_text() == page
    assert "found no place for the table" in capsys.readouterr().err


def test_without_results_nothing_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert picture.main(["--results", str(tmp_path / "none.jsonl")]) == 1
    assert "found nothing" in capsys.readouterr().err
    assert not (tmp_path / "none.svg").exists()

"""The demo's decisions: how long a slot is, where the model goes, what is shown, and what it says of itself."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fullrank_node.cli.demo import report_lines
from fullrank_node.demo import plan, run, tasks
from fullrank_node.demo.plan import make_plan
from fullrank_node.demo.screen import NodeLine, PlainScreen
from fullrank_node.errors import ExitCode, NodeError

FIGURES: dict[str, Any] = {
    "nodes": 3,
    "final_round": 2,
    "certifiers": 3,
    "accepted_per_round": [3, 2],
    "bytes_per_contribution": 74_000,
    "digest": "ab" * 32,
    "digests_equal": True,
    "loss_before": 3.4,
    "loss_after": 2.75,
    "losses_single": [3.25, 3.0],
    "loss_best_single": 3.0,
    "swarm_beats_best_single": True,
    "rank_per_round": [25.2, 43.4],
    "rank_noise_control": [30.0, 59.0],
    "rank_full": 128.0,
    "prompt": "def f():\n    ",
    "sample_before": "the value",
    "sample_after": "return 1\n\ndef g():",
    "seconds": 101.4,
    "training_share_of_time": 0.62,
    "model_dir": "/somewhere/model",
    "kept": None,
}


def report(**changes: Any) -> str:
    return "\n".join(f"{label:<9}{text}" for label, text in report_lines(FIGURES | changes))


# ---- plan ------------------------------------------------------------------------------------------


def test_a_fast_machine_gets_the_shortest_slots_and_all_steps() -> None:
    made = make_plan(nodes=3, rounds=None, step_s=0.01, cores=8)
    assert (made.window_s, made.max_steps, made.rounds) == (plan.MIN_WINDOW_S, plan.MAX_STEPS, plan.DEFAULT_ROUNDS)


def test_a_slot_is_as_long_as_the_steps_of_all_nodes_take_on_the_cores_there_are() -> None:
    made = make_plan(nodes=4, rounds=5, step_s=0.08, cores=2)
    # 24 steps of 0.08 s, 1.5 times slower in the swarm, two nodes a core, 1.5 s for all else: nine tenths of a slot.
    assert made.window_s == pytest.approx((24 * 0.08 * 1.5 * 2 + 1.5) / 0.9, abs=0.06)
    assert (made.max_steps, made.rounds) == (24, 5)


def test_a_slow_machine_gets_fewer_steps_before_slots_get_long() -> None:
    made = make_plan(nodes=8, rounds=None, step_s=0.2, cores=2)
    assert made.window_s <= plan.MAX_WINDOW_S + 0.05
    assert plan.MIN_STEPS <= made.max_steps < plan.MAX_STEPS


def test_a_very_slow_machine_simply_takes_longer() -> None:
    made = make_plan(nodes=8, rounds=None, step_s=2.0, cores=1)
    assert made.max_steps == plan.MIN_STEPS
    assert made.window_s > plan.MAX_WINDOW_S


def test_the_schedule_and_the_training_end_after_the_last_round() -> None:
    options = make_plan(nodes=2, rounds=3, step_s=0.05, cores=2).options()
    assert options.total_rounds == 3


# ---- places ----------------------------------------------------------------------------------------


def test_the_model_goes_into_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run.model_place(None) == tmp_path / "fullrank-demo-model"
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_model_is_replaced_but_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "fullrank-demo-model"
    place.mkdir()
    with pytest.raises(NodeError, match="in the way") as found:
        run.model_place(None)
    assert found.value.exit_code is ExitCode.USAGE
    (place / "fullrank.json").write_text("{}")
    assert run.model_place(None) == place


def test_a_directory_to_keep_must_be_empty(tmp_path: Path) -> None:
    assert run.model_place(tmp_path / "new") == tmp_path / "new" / "model"
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes").touch()
    with pytest.raises(NodeError, match="not an empty directory"):
        run.model_place(tmp_path / "used")


async def test_more_nodes_than_there_are_domains_of_text_are_refused() -> None:
    with pytest.raises(NodeError, match="found 9 nodes, required 2 to 8"):
        await run.run_demo(9, None, keep=None)


# ---- waiting ---------------------------------------------------------------------------------------


async def test_the_first_failure_ends_what_runs_beside_it() -> None:
    ended = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def failing() -> None:
        raise NodeError("a reason")

    with pytest.raises(NodeError, match="a reason"):
        await tasks.together(endless(), failing())
    assert ended.is_set()


async def test_results_come_in_the_order_of_the_work() -> None:
    async def later(value: int, *, turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return value

    assert await tasks.together(later(1, turns=5), later(2, turns=0)) == [1, 2]


async def test_what_takes_too_long_is_named() -> None:
    with pytest.raises(NodeError, match="pulling the model has taken more than 0 s"):
        async with tasks.bounded(0, "pulling the model"):
            await asyncio.Event().wait()


# ---- what is shown ---------------------------------------------------------------------------------


def test_a_plain_screen_prints_each_milestone_of_a_node_once(capsys: pytest.CaptureFixture[str]) -> None:
    def line(milestone: str, figures: str) -> NodeLine:
        return NodeLine(
            name="node-1", domain="formats", text="step 3/24", done=3, total=48, milestone=milestone, figures=figures
        )

    with PlainScreen() as screen:
        screen.phase("training")
        screen.phase("training")
        for figures in ("", "loss 3.10", "loss 3.05"):
            screen.nodes([line("", figures)])
        screen.nodes([line("round 1, final 0", "loss 3.00")])
        screen.nodes([line("round 1, final 0", "loss 2.90")])
    shown = capsys.readouterr().err.splitlines()

    assert [text.partition(" s  ")[2] for text in shown] == [
        "training",
        "  node-1  formats  round 1, final 0  loss 3.00",
    ]


def test_the_report_says_what_came_out() -> None:
    text = report()
    assert "3 nodes, 2 rounds final by 3 certifiers, 5 deltas of 74 kB merged" in text
    assert "loss 3.400 -> 2.750" in text
    assert "The swarm beats the best of them by 0.250." in text
    assert "25 43 of 128 (random updates of the same size: 30 59)" in text
    assert "the same on all nodes and for the reader" in text
    assert "the nodes trained 62 % of the rounds' time" in text
    assert "after    | return 1\n         | \n         | def g():" in text
    assert "/somewhere/model" in text


def test_a_swarm_that_loses_says_so() -> None:
    text = report(loss_after=3.1, swarm_beats_best_single=False)
    assert "The swarm does NOT beat the best of them." in text
    assert "beats the best of them by" not in text


def test_different_digests_are_shouted() -> None:
    assert "NOT THE SAME ON ALL NODES" in report(digests_equal=False)

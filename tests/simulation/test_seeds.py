"""Random faults from many seeds: safety always, and recovery within a stated number of slots after healing.

What safety is, `invariants` says: every final checkpoint has its quorum and stays, and every checkpoint that an honest
node holds for right keeps the rules, by books of the checker's own. `test_planted_bugs` shows that each can fail.
Together 900 seeds of up to 7 certifiers, 20 of 20, 5 of 50 and 2 of 200, on two processes. `scripts/bench/simulate.py`
runs thousands.
"""

import concurrent.futures
import itertools
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from simulation.__main__ import read_arguments
from simulation.faults import Plan, draw_plan, has_hostile
from simulation.hostile import HostileNode
from simulation.scenario import MAX_AGREEMENT_SLOTS, MAX_RECOVERY_SLOTS, Outcome, replay_command, run, tell

NUM_PROCESSES = 2

pytestmark = pytest.mark.timeout(1800)  # Minutes on two free cores; a busy machine takes longer.


def outcome_of(plan: Plan) -> Outcome:
    return run(plan, hostile=HostileNode)


def outcomes(plans: Iterable[Plan]) -> list[Outcome]:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(NUM_PROCESSES, mp_context=context) as pool:
        return list(pool.map(outcome_of, plans, chunksize=1))


def check(found: list[Outcome], *, min_rounds: int) -> None:
    for outcome in found:
        assert not outcome.failure, tell(outcome.plan, hostile=HostileNode)
        replay = replay_command(outcome.plan)
        assert 0 < outcome.agreement_slots <= MAX_AGREEMENT_SLOTS, replay
        assert 0 < outcome.recovery_slots <= MAX_RECOVERY_SLOTS, replay
        assert outcome.rounds >= min_rounds, replay


@pytest.mark.parametrize(("size", "seeds"), [(1, 150), (2, 200), (3, 200), (4, 250), (7, 100)])
def test_small_swarms_survive_everything(size: int, seeds: int) -> None:
    check(outcomes(draw_plan(seed, size, hostile=has_hostile(seed)) for seed in range(seeds)), min_rounds=10)


@pytest.mark.parametrize(("size", "seeds"), [(20, 20), (50, 5), (200, 2)])
def test_large_swarms_survive_everything(size: int, seeds: int) -> None:
    check(outcomes(draw_plan(seed, size, hostile=has_hostile(seed)) for seed in range(seeds)), min_rounds=10)


def test_the_same_seed_gives_the_same_run_in_every_process() -> None:
    plan = draw_plan(3, 4, hostile=True)
    found = outcomes([plan, plan])
    assert found[0] == found[1] == outcome_of(plan)
    assert draw_plan(3, 4, hostile=True) == plan


@pytest.mark.parametrize("size", [1, 4, 7, 19, 20, 50, 200])
@pytest.mark.parametrize("seed", [0, 1, 8, 57])
def test_the_command_that_replays_a_seed_draws_the_same_plan(size: int, seed: int) -> None:
    plan = draw_plan(seed, size, hostile=has_hostile(seed))
    assert bool(plan.hostile) == (has_hostile(seed) and size > 3)
    path, *start, options = replay_command(plan).split(" ", 4)
    assert [path, *start] == ["PYTHONPATH=tests", "python", "-m", "simulation"]
    assert read_arguments(options.split()) == ([plan], True)


def test_the_command_that_replays_a_seed_runs_in_the_root_folder() -> None:
    command = replay_command(draw_plan(5, 4, hostile=True)).split()[2:]
    path = os.pathsep.join(["tests", *filter(None, [os.environ.get("PYTHONPATH")])])
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, *command], cwd=root, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 seeds of 4 in")


def test_what_fails_by_hand_has_no_such_command() -> None:
    assert not replay_command(Plan(seed=1, size=4, faults=()))


def test_founders_go_only_while_the_hostile_are_less_than_a_third_of_those_who_stay() -> None:
    kinds: set[str] = set()
    for size, seed in itertools.product((5, 7, 20), range(300)):
        plan = draw_plan(seed, size, hostile=True)
        going = [fault for fault in plan.faults if fault.kind in ("leave", "step down", "revoke", "retire")]
        founders = {number for fault in going for number in fault.nodes or [fault.node] if number < size}
        kinds |= {fault.kind for fault in going if fault.node < size}
        assert founders.isdisjoint({0, *plan.hostile})
        assert 3 * len(plan.hostile) < size - len(founders)
    assert kinds == {"leave", "step down", "revoke", "retire"}

"""One seed, one run: chaos by a plan, healing, recovery, and what came of it."""

import traceback
from dataclasses import dataclass, replace

from simulation.faults import STALL_SLOTS, Plan, arrange, draw_plan
from simulation.invariants import MAX_EXCLUSION_SLOTS, Violation
from simulation.node import SimulatedNode
from simulation.shared import collected_afterwards, opened_once
from simulation.splits import Kept
from simulation.world import World, make_genesis


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run showed.

    Attributes:
        failure: What was violated; empty when all held.
        rounds: Of the honest head with the most.
        finals: Final checkpoints, in any honest view.
        events: Handed to round machines.
        agreement_slots: Slots after healing until all honest nodes had one head; -1 when never.
        recovery_slots: Slots after healing until all honest nodes had a final checkpoint from after it as well.
        offenders: Certifiers of whom evidence was found.
        kept: Honest contributions that are final at the end.
        made: Honest contributions made.
        splits: What healed partitions cost their lighter sides.
        fingerprint: Differs where anything in the chain of finals differs.
    """

    plan: Plan
    failure: str
    rounds: int
    finals: int
    events: int
    agreement_slots: int
    recovery_slots: int
    offenders: int
    kept: int
    made: int
    splits: tuple[Kept, ...]
    fingerprint: str
    trace: str = ""


MAX_AGREEMENT_SLOTS = 12
"""After healing, all honest nodes have had one head, and so one digest, within as many slots."""

MAX_RECOVERY_SLOTS = 14
"""After healing, all honest nodes have one head, and a final checkpoint from after it, within as many slots."""

MIN_CALM_SLOTS = 3
"""As long it must stay so."""

MAX_LAG_SLOTS = 6
"""When all is calm, what is final is at most as many slots behind: hostile proposers waste some of their turns."""


def build(plan: Plan, *, hostile: type[SimulatedNode] | None = None, story: bool = False) -> World:
    """The world of a plan, before the first event."""
    world = World(make_genesis(founders=plan.size, stall_slots=STALL_SLOTS), seed=plan.seed, size=plan.size)
    if story:
        world.story = []
    for number in range(plan.size):
        kind = hostile if hostile is not None and number in plan.hostile else SimulatedNode
        world.add(number, kind=kind)
    arrange(world, plan)
    return world


def run(plan: Plan, *, hostile: type[SimulatedNode] | None = None, world: World | None = None) -> Outcome:
    """Play a plan to its end."""
    with collected_afterwards(), opened_once():
        return _run(plan, hostile=hostile, world=world)


def _run(plan: Plan, *, hostile: type[SimulatedNode] | None, world: World | None) -> Outcome:
    failure, trace, agreement, recovery = "", "", -1, -1
    kept, made, splits = 0, 0, []
    world = world or build(plan, hostile=hostile)
    checker = world.checker
    try:
        world.run(plan.chaos_slots)
        healed_slot = world.slot
        offenders = checker.offenders()
        while recovery < 0:
            world.run(1)
            slots = world.slot - healed_slot
            if agreement < 0 and (slots >= MAX_AGREEMENT_SLOTS or not checker.different_heads()):
                checker.check_heads()
                agreement = slots
            if slots >= MAX_RECOVERY_SLOTS or not checker.disagreement(final_slot=healed_slot):
                checker.check_agreement(final_slot=healed_slot)
                recovery = slots
        world.run(MIN_CALM_SLOTS)
        while _rounds(world) < plan.rounds and world.slot < healed_slot + plan.calm_slots:
            world.run(1)
        while checker.at_large(offenders, since_slot=healed_slot) and world.slot < healed_slot + MAX_EXCLUSION_SLOTS:
            world.run(1)
        checker.check_excluded(offenders, since_slot=healed_slot)
        checker.check_agreement(final_slot=max(healed_slot, world.slot - MAX_LAG_SLOTS))
        kept, made = checker.check_kept()
        splits = checker.kept_of_splits()
    except Violation as violation:
        failure, trace = str(violation), traceback.format_exc()
    except Exception as error:  # noqa: BLE001 - whatever the machine raises is the finding.
        failure, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
    return Outcome(
        plan=plan,
        failure=failure,
        rounds=_rounds(world),
        finals=len(checker.final_chain) - 1,
        events=world.num_events,
        agreement_slots=agreement,
        recovery_slots=recovery,
        offenders=len(checker.accused_keys),
        kept=kept,
        made=made,
        splits=tuple(splits),
        fingerprint=checker.final_chain[-1].checkpoint.hex()[:16],
        trace=trace,
    )


def _rounds(world: World) -> int:
    return max((node.state.tree.head().round for node in world.honest()), default=0)


def minimise(plan: Plan, *, hostile: type[SimulatedNode] | None = None) -> Plan:
    """The same failure with as few faults as can be found by leaving out one at a time."""
    smaller = True
    while smaller:
        smaller = False
        for left_out in range(len(plan.faults)):
            faults = plan.faults[:left_out] + plan.faults[left_out + 1 :]
            candidate = replace(plan, faults=faults)
            if run(candidate, hostile=hostile).failure:
                plan, smaller = candidate, True
                break
    return plan


def replay_command(plan: Plan) -> str:
    """What to type in the root folder of a checkout, in its environment, to see this run again; empty for no seed."""
    if draw_plan(plan.seed, plan.size, hostile=bool(plan.hostile)) != plan:
        return ""
    hostile = " --hostile" if plan.hostile else ""
    return f"PYTHONPATH=tests python -m simulation --size {plan.size} --seeds {plan.seed}{hostile} --story"


def tell(plan: Plan, *, hostile: type[SimulatedNode] | None = None, lines: int = 60) -> str:
    """The story of a failing plan: its faults, then what happened up to the failure."""
    replay = replay_command(plan)
    plan = minimise(plan, hostile=hostile)
    world = build(plan, hostile=hostile, story=True)
    outcome = run(plan, hostile=hostile, world=world)
    told = [f"seed {plan.seed}, {plan.size} founders, hostile {list(plan.hostile)}: {outcome.failure}"]
    told += [f"  {fault}" for fault in plan.faults]
    told.append("what happened:")
    told += [f"  {at_ms / 10_000:8.3f}  {text}" for at_ms, text in (world.story or [])[-lines:]]
    told += [replay] if replay else []
    return "\n".join(told)

"""One seed, one run: chaos by a plan, healing, recovery, and what came of it."""

import traceback
from dataclasses import dataclass, replace

from simulation.faults import Plan, arrange
from simulation.invariants import Violation
from simulation.node import SimulatedNode
from simulation.shared import collected_afterwards, opened_once
from simulation.world import World, make_genesis


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run showed.

    Attributes:
        failure: What was violated; empty when all held.
        rounds: Of the honest head with the most.
        recovery_slots: Slots after healing until every honest node had a final checkpoint from after it and one
            head with the others; -1 when never.
        kept: Honest contributions that are final at the end.
        made: Honest contributions made.
        fingerprint: Differs where anything in the chain of finals differs.
    """

    plan: Plan
    failure: str
    rounds: int
    recovery_slots: int
    kept: int
    made: int
    fingerprint: str
    trace: str = ""


MAX_RECOVERY_SLOTS = 14
"""After healing, every honest node has one head, and a final checkpoint from after it, within as many slots."""


def build(plan: Plan, *, hostile: type[SimulatedNode] | None = None, story: bool = False) -> World:
    """The world of a plan, before the first event."""
    world = World(make_genesis(founders=plan.size), seed=plan.seed, size=plan.size)
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
    failure, trace, recovery = "", "", -1
    try:
        world = world or build(plan, hostile=hostile)
        world.run(plan.chaos_slots)
        healed_slot = world.slot
        for slots in range(1, MAX_RECOVERY_SLOTS + 1):
            world.run(1)
            if has_recovered(world, healed_slot):
                recovery = slots
                break
        else:
            world.checker.check_agreement(final_slot=healed_slot)
        world.run(max(2, plan.calm_slots - slots))
        world.checker.check_agreement(final_slot=max(healed_slot, world.slot - 6))
        kept, made = world.checker.check_kept()
    except Violation as violation:
        failure, trace = str(violation), traceback.format_exc()
        kept = made = 0
    except Exception as error:  # noqa: BLE001 - whatever the machine raises is the finding.
        failure, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
        kept = made = 0
    assert world is not None
    return Outcome(
        plan=plan,
        failure=failure,
        rounds=max((node.state.tree.head().round for node in world.honest()), default=0),
        recovery_slots=recovery,
        kept=kept,
        made=made,
        fingerprint=world.checker.final_chain[-1].checkpoint.hex()[:16],
        trace=trace,
    )


def has_recovered(world: World, healed_slot: int) -> bool:
    """Whether honest nodes agree and have made something final since everything healed."""
    return not world.checker.disagreement(final_slot=healed_slot)


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


def tell(plan: Plan, *, hostile: type[SimulatedNode] | None = None, lines: int = 60) -> str:
    """The story of a failing plan: its faults, then what happened up to the failure."""
    plan = minimise(plan, hostile=hostile)
    world = build(plan, hostile=hostile, story=True)
    outcome = run(plan, hostile=hostile, world=world)
    told = [f"seed {plan.seed}, {plan.size} founders, hostile {list(plan.hostile)}: {outcome.failure}"]
    told += [f"  {fault}" for fault in plan.faults]
    told.append("what happened:")
    told += [f"  {at_ms / 10_000:8.3f}  {text}" for at_ms, text in (world.story or [])[-lines:]]
    return "\n".join(told)

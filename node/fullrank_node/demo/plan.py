"""What the demo's swarm is founded with: fixed where our trials settled it, measured where the machine decides.

The rounds must end by themselves and in good time on a slow machine and on a fast one. So the steps of a round
are fixed, a short run on this machine says how long they take, and the window of a slot follows; only where
that would be too long are there fewer steps.
"""

from dataclasses import dataclass

from fullrank_node.operations import CreateOptions

DEFAULT_ROUNDS = 8
"""Enough for four periods of a fresh A and a falling curve; with three nodes on two cores less than a minute."""

MAX_STEPS = 24
"""Optimiser steps of one delta: below, AdamW has not warmed up; above, the first rounds take long to appear."""

MIN_STEPS = 4
"""Fewer steps teach nothing: from here on a slow machine simply takes longer."""

BATCH_SIZE = 4
BLOCK_LENGTH = 128
"""512 tokens a step keep one step near 50 ms on one core, so that a round ends close to its deadline."""

RANK = 32
PERIOD_ROUNDS = 2
LEARNING_RATE = 5e-3
"""Mode B with an ample rank, at ten times the rate of a full fine-tune: best for the swarm of the rates 5e-3, 1e-2 and
2e-2, and for a single node, too. A new A every two rounds lets the accumulated update leave the span of the first."""

MIN_WINDOW_S = 5.0
"""Shorter ones would be mostly overhead."""

MAX_WINDOW_S = 15.0
"""A person watches: a round shall show something every few seconds."""

SLOT_OVERHEAD_S = 1.5
"""Of every slot: merge, vote and adopt at its start (measured: 0.3 to 1 s), encode and send the delta at its end."""

TRAINING_SHARE = 0.9
"""Training ends a tenth of the window before the slot does (the round machine's deadline)."""

CROWDING = 1.5
"""Steps take longer in the swarm than measured alone: daemons, workers and caches are shared, and the adapter's own
products come on top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One demo.

    Attributes:
        window_s: Length of a slot.
        max_steps: Most optimiser steps in one delta.
    """

    nodes: int
    rounds: int
    window_s: float
    max_steps: int

    def options(self) -> CreateOptions:
        """What the founder chooses for the genesis; training ends by itself after the last round."""
        return CreateOptions(
            window_s=self.window_s,
            mode="b",
            rank=RANK,
            learning_rate=LEARNING_RATE,
            max_steps=self.max_steps,
            batch_size=BATCH_SIZE,
            block_length=BLOCK_LENGTH,
            period_rounds=PERIOD_ROUNDS,
            total_rounds=self.rounds,
        )


def make_plan(*, nodes: int, rounds: int | None, step_s: float, cores: int) -> Plan:
    """Choose window and steps.

    Args:
        nodes: Nodes that train at the same time, one thread each.
        rounds: Wanted number of rounds; None for the default.
        step_s: Seconds of one step of `BATCH_SIZE` blocks on one core that nobody else uses.
        cores: Cores of this machine.
    """
    real_step_s = step_s * CROWDING * max(1.0, nodes / cores)
    steps = MAX_STEPS
    window_s = _window_s(steps, real_step_s)
    if window_s > MAX_WINDOW_S:
        steps = max(MIN_STEPS, int((MAX_WINDOW_S * TRAINING_SHARE - SLOT_OVERHEAD_S) / real_step_s))
        window_s = _window_s(steps, real_step_s)
    # Whole tenths read better, and the genesis holds milliseconds.
    window_s = round(max(MIN_WINDOW_S, window_s), 1)
    return Plan(nodes=nodes, rounds=rounds or DEFAULT_ROUNDS, window_s=window_s, max_steps=steps)


def _window_s(steps: int, step_s: float) -> float:
    return (steps * step_s + SLOT_OVERHEAD_S) / TRAINING_SHARE

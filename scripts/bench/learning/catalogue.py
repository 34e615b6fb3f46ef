"""Which arms there are, and which are compared by default.

Baselines of the federated kind have rank 8, whose unquantised factors are the bytes that ours must not exceed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from fullrank_node.training.lora import MODE_AB, MODE_B
from learning.arm import Arm
from learning.arms_adapter import (
    AloneAdapter,
    FactorAveraging,
    ResidualFolding,
    Restarts,
    SingleAdapter,
    Stacking,
    TruncatedMean,
)
from learning.arms_mixed import Mixed
from learning.arms_swarm import Swarm
from learning.arms_whole import Alone, LocalSteps, Parallel, Sequential, Sparse

KINDS: tuple[type[Arm], ...] = (
    Alone,
    AloneAdapter,
    FactorAveraging,
    LocalSteps,
    Mixed,
    Parallel,
    ResidualFolding,
    Restarts,
    Sequential,
    SingleAdapter,
    Sparse,
    Stacking,
    Swarm,
    TruncatedMean,
)

MARK = Parallel()
"""What gains are measured against."""

OURS = Swarm(mode=MODE_B, rank=64)
"""What others are compared with in pairs, unless another of ours is named: how a daemon trains by default."""

GROWING = replace(OURS, rank=8, period=1)
"""In whom rank can be seen to grow: contributions far narrower than the model, each along directions of its own."""

STANDARD: tuple[Arm, ...] = (
    MARK,
    Sequential(),
    LocalSteps(carry=True),
    Sparse(density=1 / 32),
    Sparse(density=1 / 16),
    Sparse(density=1 / 8),
    Alone(),
    AloneAdapter(rank=16),
    SingleAdapter(rank=4),
    SingleAdapter(rank=16),
    Restarts(rank=16),
    FactorAveraging(rank=8, own=False, restart=False),
    FactorAveraging(rank=8, own=False, restart=True),
    FactorAveraging(rank=8, own=True, restart=True),
    ResidualFolding(rank=8),
    Stacking(rank=8),
    TruncatedMean(rank=8),
    OURS,
    replace(OURS, rank=32),
    replace(OURS, rank=16),
    replace(OURS, rank=8),
    Swarm(mode=MODE_AB, rank=8, bits=4, period=1),
)
"""What others do, and ours in several sizes."""

ABLATIONS: tuple[Arm, ...] = (
    Parallel(linear_only=True),
    Parallel(first_decay=0.6),
    LocalSteps(carry=False),
    replace(OURS, bits=8),
    replace(OURS, bits=4),
    replace(OURS, bits=3),
    replace(OURS, bits=4, stochastic=True, feedback=False),
    replace(OURS, feedback=False),
    replace(OURS, period=1),
    replace(OURS, period=3),
    GROWING,
    replace(OURS, rank=8, period=3),
    replace(OURS, carry=False),
    replace(OURS, embeddings=False),
    replace(OURS, outer_step=1.25),
    replace(OURS, averaged=False),
    replace(OURS, eager=True),
    replace(OURS, first_decay=0.7),
    Swarm(mode=MODE_AB, rank=4, bits=4, period=1),
    Swarm(mode=MODE_AB, rank=16, bits=4, period=1),
)
"""Ours and others with one choice made otherwise: why the defaults are what they are."""

CATALOGUE = STANDARD + ABLATIONS
"""Every arm that has a name here."""

SWEEP: tuple[Arm, ...] = (
    MARK,
    Sequential(),
    LocalSteps(carry=True),
    FactorAveraging(rank=8, own=False, restart=False),
    OURS,
    Swarm(mode=MODE_AB, rank=8, bits=4, period=1),
)
"""The few that are compared at other numbers of nodes and rounds."""

UNIFORM = replace(OURS, rank=32)
"""What volunteers of all kinds are measured against."""

_ALIKE = Mixed(mode=MODE_B, rank=32)

VOLUNTEERS: tuple[Arm, ...] = (
    UNIFORM,
    replace(_ALIKE, lowest_rank=2),
    replace(_ALIKE, missing=0.3),
    replace(_ALIKE, late=0.5),
    replace(_ALIKE, late=1.0),
    replace(_ALIKE, slow_every=4),
    replace(_ALIKE, lowest_rank=2, missing=0.3, late=0.5, slow_every=4),
)
"""The same swarm with volunteers of other ranks, who miss rounds, are late, or slow; they are compared at equal
accepted tokens, by a command of their own (`mixed.py`)."""

SETS: Mapping[str, tuple[Arm, ...]] = {"standard": STANDARD, "ablations": ABLATIONS, "sweep": SWEEP}


def arms_named(wanted: Sequence[str]) -> tuple[Arm, ...]:
    """The arms that names, patterns (`ours-*`) or sets (`standard`, `ablations`, `sweep`) stand for, in order.

    Raises:
        ValueError: A name stands for nothing.
    """
    found: list[Arm] = []
    for name in wanted:
        matching = SETS.get(name) or tuple(arm for arm in CATALOGUE if fnmatchcase(arm.name, name))
        if not matching:
            raise ValueError(f"no arm is called {name!r}; there are {', '.join(arm.name for arm in CATALOGUE)}")
        found += matching
    return tuple(arm for arm in CATALOGUE if arm in found)


def arm_from_json(value: Mapping[str, Any]) -> Arm:
    """The inverse of `Arm.to_json`."""
    kinds = {kind.__name__: kind for kind in KINDS}
    return kinds[value["kind"]](**{name: field for name, field in value.items() if name != "kind"})

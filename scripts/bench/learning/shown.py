"""What of the results is shown to people who read no more than a picture and a table: which setting, arms and words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fullrank_node.training.lora import MODE_AB
from learning.arms_adapter import FactorAveraging, SingleAdapter
from learning.arms_swarm import Swarm
from learning.arms_whole import Parallel
from learning.catalogue import GROWING, MARK, STANDARD
from learning.report import Comparison, Row

WORDS: Mapping[str, str] = {
    "Alone": "full fine-tuning, each node by itself",
    "AloneAdapter": "an adapter, each node by itself",
    "FactorAveraging": "factors averaged",
    "LocalSteps": "full fine-tuning apart, averaged every round",
    "Parallel": "full fine-tuning in step",
    "ResidualFolding": "factors averaged, residual folded (FedEx)",
    "Restarts": "one adapter, begun anew every round",
    "Sequential": "full fine-tuning, all steps in sequence",
    "SingleAdapter": "one adapter, all steps in sequence",
    "Sparse": "full fine-tuning apart, largest entries sent (SparseLoCo)",
    "Stacking": "adapters stacked (FLoRA)",
    "Swarm": "the swarm",
    "TruncatedMean": "mean cut to the rank (FlexLoRA)",
}
"""What an arm of a kind is, for people. A kind that is missing here is shown by its arm's name."""

SHORT_WORDS: Mapping[str, str] = {
    "Alone": "alone",
    "AloneAdapter": "alone, adapter",
    "FactorAveraging": "factors averaged",
    "LocalSteps": "full, averaged",
    "Parallel": "full fine-tuning",
    "ResidualFolding": "FedEx",
    "Restarts": "adapter, restarted",
    "Sequential": "full, in sequence",
    "SingleAdapter": "one adapter",
    "Sparse": "SparseLoCo",
    "Stacking": "FLoRA",
    "Swarm": "the swarm",
    "TruncatedMean": "FlexLoRA",
}
"""The same in a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What is drawn over rounds, the mean over seeds.

    Attributes:
        role: `mark`, `ours`, `adapter`, `growing` or `noise`: decides colour and dashes.
        label: In words.
        values: One for each round; losses begin with the one before training.
    """

    role: str
    label: str
    values: tuple[float, ...]


def choose(
    comparisons: Sequence[Comparison], *, nodes: int | None, rounds: int | None, split: str | None
) -> Comparison:
    """The setting in which most arms were tested, of those with these numbers; the first of several.

    Raises:
        ValueError: Nothing was tested in such a setting.
    """
    wanted = {"nodes": nodes, "rounds": rounds, "split": split}
    fitting = [
        comparison
        for comparison in comparisons
        if all(value is None or getattr(comparison.setting, name) == value for name, value in wanted.items())
        and any(row.loss is not None for row in comparison.rows)
    ]
    if not fitting:
        titles = "; ".join(comparison.setting.title for comparison in comparisons) or "nothing"
        raise ValueError(f"found {titles}, required a tested setting of {wanted}")
    return max(fitting, key=lambda comparison: sum(row.loss is not None for row in comparison.rows))


def words(row: Row) -> str:
    """An arm for people; its name where its kind has no words."""
    return WORDS.get(type(row.arm).__name__, row.arm.name) + _way(row)


def short_words(row: Row) -> str:
    """An arm in a picture."""
    name = SHORT_WORDS.get(type(row.arm).__name__, row.arm.name)
    if isinstance(row.arm, FactorAveraging):
        return name + (", own A" if row.arm.own else ", anew" if row.arm.restart else "")
    return name + (", in part" if isinstance(row.arm, Parallel) and row.arm.linear_only else "")


def size_words(row: Row, *, ours: str) -> str:
    """An arm beside its bytes: of ours, but for the one that others are compared with, what makes it another."""
    if isinstance(row.arm, Swarm) and row.arm.name != ours:
        return f"rank {row.arm.rank}" + (", A sent" if row.arm.mode == MODE_AB else "")
    return short_words(row)


def followed(comparison: Comparison) -> list[tuple[str, Row]]:
    """Roles and rows of the arms that are drawn over rounds, as far as they were tested.

    These are full fine-tuning in step, the swarm, and of single adapters the one of the highest rank.
    """
    tested = {row.arm.name: row for row in comparison.rows if row.lines}
    adapters = [row for row in tested.values() if isinstance(row.arm, SingleAdapter)]
    found: list[tuple[str, Row]] = []
    if MARK.name in tested:
        found.append(("mark", tested[MARK.name]))
    if comparison.ours in tested:
        found.append(("ours", tested[comparison.ours]))
    if adapters:
        found.append(("adapter", max(adapters, key=_rank_of)))
    return found


def loss_curves(comparison: Comparison) -> list[Curve]:
    """Test losses from before training to the end."""
    return [
        Curve(role=role, label=_label(row), values=_mean([line["result"]["curve"] for line in row.lines.values()]))
        for role, row in followed(comparison)
    ]


def rank_curves(comparison: Comparison, kind: str = "effective") -> list[Curve]:
    """Rank of the change after each round, and what random updates of the same sizes would give.

    Args:
        comparison: One setting.
        kind: `effective`, `stable` or `numerical`.
    """
    found: list[Curve] = []
    growing = [("growing", row) for row in comparison.rows if row.arm == GROWING and row.lines]
    for role, row in [*followed(comparison), *growing]:
        for key, shown, label in (("rank", role, _label(row)), ("rank_noise", "noise", "random updates")):
            columns = [line["result"][key][kind] for line in row.lines.values() if key in line["result"]]
            if columns and (key == "rank" or role == "ours"):
                found.append(Curve(role=shown, label=label, values=_mean(columns)))
    return found


def full_rank(comparison: Comparison) -> float | None:
    """The mean of the largest possible ranks."""
    return next((row.ranks["full"] for row in comparison.rows if "full" in row.ranks), None)


def num_tokens(comparison: Comparison) -> int:
    """Training tokens that every arm has read, all nodes together."""
    return int(next(line["result"]["num_tokens"] for row in comparison.rows for line in row.lines.values()))


def senders(comparison: Comparison) -> list[tuple[float, float, Row]]:
    """Bytes of a contribution, loss and row of every arm in which something is sent, the fewest bytes first.

    Of ours, those that are compared with others, and none of the ablations.
    """
    found = [
        (row.num_bytes, row.loss.value, row)
        for row in comparison.rows
        if row.num_bytes is not None
        and row.loss is not None
        and (not isinstance(row.arm, Swarm) or row.arm in STANDARD or row.arm.name == comparison.ours)
    ]
    return sorted(found, key=lambda point: (point[0], point[1], point[2].arm.name))


def frontier(comparison: Comparison) -> list[tuple[float, float, Row]]:
    """Of `senders`, those for whom nobody has a smaller loss with as few bytes."""
    best: list[tuple[float, float, Row]] = []
    for point in senders(comparison):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def tabled(comparison: Comparison) -> list[Row]:
    """Rows of the table, the best first: all of others; of ours, the compared one, the frontier, each mode's best."""
    wanted = {row.arm.name for _, _, row in frontier(comparison)} | {comparison.ours}
    modes: set[str] = set()
    for row in comparison.rows:
        if row.loss is not None and isinstance(row.arm, Swarm) and row.arm.mode not in modes:
            modes.add(row.arm.mode)
            wanted.add(row.arm.name)
    return [
        row
        for row in comparison.rows
        if row.loss is not None and (not isinstance(row.arm, Swarm) or row.arm.name in wanted)
    ]


def _way(row: Row) -> str:
    """What tells an arm from others of its kind."""
    if isinstance(row.arm, Parallel) and row.arm.linear_only:
        return ", adapted matrices alone"
    if isinstance(row.arm, FactorAveraging):
        return (", each node its own A" if row.arm.own else "") + (
            ", begun anew every round" if row.arm.restart else ""
        )
    if isinstance(row.arm, Swarm) and row.arm.mode == MODE_AB:
        return ", A sent as well"
    return ""


def _rank_of(row: Row) -> int:
    return row.arm.rank if isinstance(row.arm, SingleAdapter) else 0


def _label(row: Row) -> str:
    if row.arm == GROWING:
        return f"rank {GROWING.rank}, new A"
    return short_words(row) + (f", rank {row.arm.rank}" if isinstance(row.arm, SingleAdapter) else "")


def _mean(columns: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.mean(np.array(columns, dtype=np.float64), axis=0))

"""The states of a contribution and of a checkpoint on one node, and every way from one to another (protocol section 5).

The round machine makes these transitions and no others: a test watches it under random faults. The diagrams in the
protocol's text are drawn from this table by `diagram`.
"""

from dataclasses import dataclass
from typing import Final

OUTSIDE: Final = "[*]"
"""Before an object is known here, and after it is forgotten."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One arrow: from, to, and what makes it happen."""

    before: str
    after: str
    why: str


CONTRIBUTION: Final = (
    Transition(OUTSIDE, "waiting", "arrives, alone or in a checkpoint"),
    Transition("waiting", "checking", "its delta is fetched and decoded"),
    Transition("checking", "ready", "holds"),
    Transition("checking", "refused", "the delta breaks a rule"),
    Transition("checking", "unavailable", "the blob is not to be had"),
    Transition("unavailable", "checking", "asked for again after a pause"),
    Transition("ready", "waiting", "a merge failed here, so look again"),
    Transition("ready", OUTSIDE, "decided on by a final checkpoint, or too old"),
    Transition("refused", OUTSIDE, "the same"),
    Transition("waiting", OUTSIDE, "the same"),
    Transition("checking", OUTSIDE, "the same"),
    Transition("unavailable", OUTSIDE, "the same"),
)
"""A contribution; the states are those of `DeltaStatus`."""

CHECKPOINT: Final = (
    Transition(OUTSIDE, "open", "its parent and bases are known, and its place is right"),
    Transition(OUTSIDE, "left_behind", "the same, but it branches off below what is final"),
    Transition(OUTSIDE, "beside", "the same, but it branches off below what a snapshot gave"),
    Transition("open", "holds", "recomputed and equal, or final by votes and taken by a snapshot"),
    Transition("open", "refused", "recomputed and different, or its parent is refused"),
    Transition("open", "left_behind", "another branch has become final"),
    Transition("open", "beside", "a snapshot was taken, from which it branches off below"),
    Transition("left_behind", "beside", "the same"),
    Transition("left_behind", "open", "finality is contradicted, and the root may choose it"),
)
"""A checkpoint in the tree: none ever leaves it. Justified and final are read from votes (section 8)."""


def diagram(table: tuple[Transition, ...]) -> str:
    """The table as a Mermaid state diagram."""
    arrows = [f"  {arrow.before} --> {arrow.after}: {arrow.why}" for arrow in table]
    return "\n".join(["stateDiagram-v2", *arrows])

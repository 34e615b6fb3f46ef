"""How much training of the lighter side of a partition is kept once it has healed (protocol section 8).

While a partition lasts, every side trains and closes slots. Afterwards one side's chain goes on, and the other sides
offer their deltas again as stale ones; what is too stale is lost.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from simulation.node import SimulatedNode


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What one healed partition cost: deltas that the lighter sides made meanwhile, and how many are final in the end.

    Attributes:
        slots: How long it lasted, in whole slots.
    """

    slots: int
    kept: int
    made: int

    @property
    def share(self) -> float:
        """Kept of made."""
        return self.kept / self.made


@dataclass(slots=True)
class _Split:
    groups: dict[int, int]
    begin_slot: int
    end_slot: int = 0
    made: defaultdict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    heads: dict[int, bytes] = field(default_factory=dict)


class Splits:
    """The partitions of one world, one after another: each cuts the whole swarm anew."""

    def __init__(self) -> None:
        self._splits: list[_Split] = []
        self._now: _Split | None = None

    def begin(self, groups: dict[int, int], *, slot: int, nodes: "Iterable[SimulatedNode]") -> None:
        """Nodes reach only those of their own group from now on; the dictionary may grow by newcomers."""
        self.end(slot=slot, nodes=nodes)
        self._now = _Split(groups, slot)

    def trained(self, node: "SimulatedNode", contribution_id: bytes) -> None:
        """An honest node has made a delta."""
        if self._now is not None and (group := self._now.groups.get(node.number)) is not None:
            self._now.made[group].append(contribution_id)

    def end(self, *, slot: int, nodes: "Iterable[SimulatedNode]") -> None:
        """The partition in force, if there is one, is over."""
        split, self._now = self._now, None
        if split is None:
            return
        heads: defaultdict[int, Counter[bytes]] = defaultdict(Counter)
        for node in nodes:
            if node.is_up and node.is_honest and node.number in split.groups:
                heads[split.groups[node.number]][node.state.tree.head().id] += 1
        split.heads = {group: found.most_common(1)[0][0] for group, found in heads.items()}
        split.end_slot = slot
        self._splits.append(split)

    def kept(self, final_slots: dict[bytes, int], applied: "Container[bytes]") -> list[Kept]:
        """For every healed partition in which a lighter side trained: what is final of that in the end.

        Args:
            final_slots: Slot of every final checkpoint by id.
            applied: Contributions on the final chain.
        """
        found = []
        for split in self._splits:
            winner = max(split.heads, key=lambda group: final_slots.get(split.heads[group], -1), default=None)
            made = [each for group, ids in split.made.items() if group != winner for each in ids]
            if made:
                num_kept = sum(each in applied for each in made)
                found.append(Kept(slots=split.end_slot - split.begin_slot, kept=num_kept, made=len(made)))
        return found

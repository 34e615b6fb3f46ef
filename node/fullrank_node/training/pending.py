"""What this node has sent and no merge has taken yet: training starts as if it had been.

A node whose delta is late would otherwise take the same steps once more from the same weights, and the swarm would
make them twice. What of a pending delta to expect in the shared weights is its own share of the mean, and what others'
late deltas do within the same subspace. As with eager updates in DiLoCo (Kale, Douillard and Donchev 2025,
arXiv:2502.12996), a node stands in for the others until theirs are there, but only as far as its A sees them.

Legend of array names: O = out_features, I = in_features, R = rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fullrank_node.training import lora
from fullrank_protocol.codec import decode
from fullrank_protocol.errors import RejectError
from fullrank_protocol.parts import LowRank

if TYPE_CHECKING:
    from fullrank_protocol.genesis import Genesis


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingDelta:
    """A delta of this node that waits.

    Attributes:
        path: The encoded delta.
        codec: It is encoded in.
        period: Of its A.
    """

    path: Path
    codec: int
    period: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """All that waits, and how merges are made.

    Attributes:
        deltas: Of this node, in one period of A.
        num_averaged: Contributions that a merge averages.
        num_late: How many of them are late.
    """

    deltas: Sequence[PendingDelta]
    num_averaged: int
    num_late: int

    def expected_share(self, *, rank: int, in_features: int) -> float:
        """Share of a pending delta that a whole step of merges will bring, within the rows of its A; at most 1.

        Its own weight in the mean, and that of others who are late: their A, drawn as this one is, sees
        `rank / in_features` of what this one sees. All are taken to weigh alike.
        """
        own = 1.0 / self.num_averaged
        return own + (1.0 - own) * self.num_late / self.num_averaged * min(1.0, rank / in_features)


def expected(pending: Pending, ranks: Mapping[str, int], genesis: "Genesis") -> dict[str, lora.Float32Array]:
    """What is expected to be merged of the pending deltas: B (O, R) by module name, for mode B.

    A delta that cannot be read any more is left out, and so is what does not fit the ranks.

    Args:
        pending: Deltas of the same period.
        ranks: Of the adapter, by module.
        genesis: Of the swarm.
    """
    outer_step = genesis.rule.outer_step.value()
    found: dict[str, lora.Float32Array] = {}
    for one in pending.deltas:
        try:
            delta = decode(one.path.read_bytes(), genesis, one.codec)
        except (OSError, RejectError):
            continue
        for part in delta.parts:
            rank = ranks.get(part.module, 0)
            if not isinstance(part, LowRank) or part.row_R is None or max(part.row_R) >= rank:
                continue
            module = genesis.module(part.module)
            share = outer_step * pending.expected_share(rank=rank, in_features=module.in_features)
            B_OR = (share * lora.meant_by(part, module, rank=rank)).astype(np.float32)
            found[part.module] = found.get(part.module, np.float32(0)) + B_OR
    return found

"""Rows that people read: what became of each contribution, and what each checkpoint was worth."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from fullrank_protocol.scaled import Scaled

ID_BYTES = 32
"""Length of an object's id."""

STATUSES = ("pending", "accepted", "refused", "late", "unavailable")
"""Pending: not decided. Late: missed its slot, still eligible or too stale. Unavailable: nobody had its blob."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionRow:
    """One contribution and the latest verdict on it.

    Attributes:
        contribution_id: Id of the signed contribution.
        member: Key of its author.
        base_checkpoint: Checkpoint that the training started from.
        base_slot: That checkpoint's slot.
        num_tokens: Tokens trained on, as claimed.
        num_steps: Optimiser steps, as claimed.
        loss_first_micro: Training loss of the first steps, in millionths.
        loss_last_micro: Training loss of the last steps, in millionths.
        num_bytes: Size of the encoded delta.
        created_at_ms: When its author signed it.
        status: One of `STATUSES`.
        rule: Number of the rule broken, 0 if none.
        detail: What was found and what was required.
        weight: Weight given by `checkpoint`, when accepted.
        checkpoint: The checkpoint that decided.
        round: That checkpoint's round.
    """

    contribution_id: bytes
    member: bytes
    base_checkpoint: bytes
    base_slot: int
    num_tokens: int
    num_steps: int
    loss_first_micro: int
    loss_last_micro: int
    num_bytes: int
    created_at_ms: int
    status: str = "pending"
    rule: int = 0
    detail: str = ""
    weight: Scaled | None = None
    checkpoint: bytes | None = None
    round: int | None = None

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Self:
        """From a row of the table `contributions`."""
        plain = {item.name: columns[item.name] for item in fields(cls) if item.name in columns}
        mantissa, exponent = columns["weight_mantissa"], columns["weight_exponent"]
        weight = None if mantissa is None else Scaled(mantissa=mantissa, exponent=exponent)
        return cls(**plain, contribution_id=columns["id"], weight=weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchRow:
    """This node went over to a heavier branch, as the lighter side of a healed partition does.

    Attributes:
        at_ms: When, by this node's clock.
        left_checkpoint: The head that it left.
        left_round: That head's round.
        fork_round: Round of the newest checkpoint that both branches have.
        contributions: Ids of what only the branch that was left had accepted; they are offered again as stale ones.
    """

    at_ms: int
    left_checkpoint: bytes
    left_round: int
    fork_round: int
    contributions: tuple[bytes, ...]

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Self:
        """From a row of the table `switches`."""
        plain = {item.name: columns[item.name] for item in fields(cls)}
        joined = bytes(plain["contributions"])
        ids = tuple(joined[start : start + ID_BYTES] for start in range(0, len(joined), ID_BYTES))
        return cls(**{**plain, "contributions": ids})


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    """One checkpoint as this node saw it.

    Attributes:
        checkpoint: Its id.
        slot: Its slot.
        round: Normal checkpoints on its chain, itself included.
        kind: Kind of checkpoint, as in the wire enumeration.
        digest: Digest of the model after it.
        num_accepted: Contributions merged by it.
        received_at_ms: When this node first adopted or saw it.
        effective_rank: Mean effective rank of the accumulated update over the adapted matrices, if measured.
        heldout_loss: Held-out loss of the shared model in nats per token, if measured.
    """

    checkpoint: bytes
    slot: int
    round: int
    kind: int
    digest: bytes
    num_accepted: int
    received_at_ms: int
    effective_rank: float | None = None
    heldout_loss: float | None = None

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Self:
        """From a row of the table `rounds`."""
        return cls(**{item.name: columns[item.name] for item in fields(cls)})

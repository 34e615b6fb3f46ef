"""One contribution: train an adapter on the shared weights, round it to integers, write the encoded delta.

Decides what of a request overrides the genesis' hints, and what is carried from one delta to the next.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import write_atomically
from fullrank_node.training import lora
from fullrank_node.training.cache import BlockSource
from fullrank_node.training.loop import ADAM_BETAS, Deadline, Schedule, StepsDone, block_order, run_steps
from fullrank_node.training.optimizer_state import (
    TrainingState,
    forgotten,
    load_state,
    read_means,
    read_moments,
    save_state,
    state_for,
    state_key,
)
from fullrank_node.training.pending import Pending, PendingDelta, expected
from fullrank_protocol.codec import CODEC_PACKED, encode
from fullrank_protocol.delta import SeedContext
from fullrank_protocol.errors import RejectError
from fullrank_protocol.genesis import Genesis, TrainingMode

FIRST_RESERVE_MS = 500.0
"""Time kept for encoding before it has been measured; the demo's deltas take a tenth of it."""

RESERVE_FACTOR = 1.5
"""Margin on the measured time of encoding: other processes share the machine."""

MAX_RESERVE_SHARE = 0.5
"""Of the time left for a contribution. Where the machine slept while it encoded, the measured time is hours."""


def reserve_ms(*, encoding_ms: float, left_ms: float) -> float:
    """Time to keep for encoding a delta.

    Args:
        encoding_ms: What the last encoding took.
        left_ms: Until the delta must be there.
    """
    return max(FIRST_RESERVE_MS, min(RESERVE_FACTOR * encoding_ms, MAX_RESERVE_SHARE * left_ms))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides how one contribution is trained.

    Attributes:
        base_round: Round of the checkpoint that training starts from.
        seed: Fixes the order of the data and the rounding.
        deadline_ms: Unix milliseconds by which the encoded delta must be written; None for never.
        stochastic: Round up with the probability of the fraction, else to the nearest.
        error_feedback: Add to each delta what rounding took from the last one (mode B, within a period).
        carry_moments: Whether AdamW's state lives as long as A does, and its second moments longer.
        betas: AdamW's decays of first and second moments.
        num_averaged: Contributions that this one is expected to be averaged with, itself included.
        num_late: How many of them are expected to be late.
        pending: Deltas of this node that no merge has taken yet.
    """

    member: bytes
    base_round: int
    period: int
    mode: str
    rank: int
    bits_b: int
    bits_a: int
    batch_size: int
    schedule: Schedule
    seed: int
    deadline_ms: float | None
    stochastic: bool
    error_feedback: bool
    carry_moments: bool
    betas: tuple[float, float]
    num_averaged: int
    num_late: int
    pending: tuple[PendingDelta, ...]

    @classmethod
    def of(cls, request: Mapping[str, Any], genesis: Genesis) -> "Plan":
        """The genesis' hints, with whatever the request states instead."""
        hints = genesis.training
        base_round = int(request["round"])
        mode = lora.MODE_AB if hints.mode == TrainingMode.MODE_AB else lora.MODE_B

        stated = {name: value for name, value in request.items() if value is not None}

        return cls(
            member=bytes.fromhex(request["member"]),
            base_round=base_round,
            period=base_round // hints.period_rounds,
            mode=str(stated.get("mode", mode)),
            rank=int(stated.get("rank", hints.rank)),
            bits_b=int(stated.get("bits_b", hints.bits_b)),
            bits_a=int(stated.get("bits_a", hints.bits_a)),
            batch_size=int(stated.get("batch_size", hints.batch_size)),
            schedule=Schedule(
                peak=float(stated.get("learning_rate", hints.learning_rate_nano / 1e9)),
                warmup_steps=int(stated.get("warmup_steps", hints.warmup_steps)),
                max_steps=int(stated.get("max_steps", hints.max_steps)),
                round=base_round,
                total_rounds=int(stated.get("total_rounds", hints.total_rounds)),
            ),
            seed=int(stated.get("seed", 0)),
            deadline_ms=request.get("deadline_ms"),
            stochastic=bool(stated.get("stochastic", False)),
            error_feedback=bool(stated.get("error_feedback", True)),
            carry_moments=bool(stated.get("carry_moments", True)),
            betas=ADAM_BETAS,
            num_averaged=int(stated.get("num_averaged", 1)),
            num_late=int(stated.get("num_late", 0)),
            pending=tuple(
                PendingDelta(
                    path=Path(one["path"]), codec=int(one["codec"]), period=int(one["round"]) // hints.period_rounds
                )
                for one in stated.get("pending", ())
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contributed:
    """A finished delta, written to disk."""

    steps: StepsDone
    num_bytes: int
    rank: int
    encode_ms: float


def contribute(
    model: Any,
    genesis: Genesis,
    plan: Plan,
    cache: BlockSource,
    *,
    state_dir: Path,
    out_path: Path,
    encoding_ms: float,
    progress: Callable[..., None],
) -> Contributed:
    """Train, encode and write one delta; then, and only then, remember how far the data was read.

    `model` is the bare base with the current shared weights; it comes back as it was. `encoding_ms` is what the last
    encoding took, 0 before there was one.

    Raises:
        NodeError: When training or encoding fails; nothing is written then.
    """
    key = state_key(swarm=genesis.swarm, member=plan.member, mode=plan.mode, rank=plan.rank, period=plan.period)
    state = load_state(state_dir)
    position = state.position_in(cache.summary.fingerprint)
    context = SeedContext(swarm=genesis.swarm, member=plan.member, period=plan.period)
    left_ms = plan.deadline_ms - time.time() * 1000 if plan.deadline_ms is not None else 0.0
    adapter = lora.attach(model, genesis, rank=plan.rank, mode=plan.mode, context=context)
    try:
        if plan.carry_moments:
            state = state_for(state, key, component_axes=adapter.component_axes())
        else:
            state = forgotten(state)
        begun_with = adapter.start_at(_expected(plan, adapter, genesis))
        steps = run_steps(
            adapter,
            lambda rows: cache.read("train", rows),
            block_order(seed=plan.seed, num_blocks=cache.summary.num_blocks, start=position),
            batch_size=plan.batch_size,
            schedule=plan.schedule,
            deadline=Deadline(at_ms=plan.deadline_ms, reserve_ms=reserve_ms(encoding_ms=encoding_ms, left_ms=left_ms)),
            state=state,
            num_averaged=plan.num_averaged,
            betas=plan.betas,
            progress=progress,
        )
        started_s = time.monotonic()
        factors = lora.learned(adapter.factors(), begun_with)
        parameters = adapter.named_parameters()
        moments = read_moments(steps.optimizer, parameters) if plan.mode == lora.MODE_B else {}
        means = read_means(steps.optimizer, parameters) if plan.mode == lora.MODE_B else {}
    finally:
        adapter.detach()
    blob, rank, residuals = _encoded(factors, genesis, plan, state)
    write_atomically(out_path, blob)
    done = Contributed(steps=steps, num_bytes=len(blob), rank=rank, encode_ms=(time.monotonic() - started_s) * 1000)
    save_state(
        state_dir,
        TrainingState(
            key=key,
            data=cache.summary.fingerprint,
            position=position + steps.num_steps * plan.batch_size,
            num_steps=state.num_steps + steps.num_steps,
            moments=moments,
            means=means,
            num_mean_steps=state.num_mean_steps + steps.num_steps if means else 0,
            residuals=residuals,
        ),
    )
    return done


def _expected(plan: Plan, adapter: lora.Adapter, genesis: Genesis) -> dict[str, lora.Float32Array]:
    """What merges will bring of this node's pending deltas that have the same A."""
    same = tuple(one for one in plan.pending if one.period == plan.period)
    if plan.mode != lora.MODE_B or not same:
        return {}
    pending = Pending(deltas=same, num_averaged=plan.num_averaged, num_late=plan.num_late)
    return expected(pending, adapter.ranks(), genesis)


def _encoded(
    factors: Mapping[str, lora.Factors], genesis: Genesis, plan: Plan, state: TrainingState
) -> tuple[bytes, int, dict[str, lora.Float32Array]]:
    """The encoded delta, its rank, and what rounding left over."""
    feeds_back = plan.error_feedback and plan.mode == lora.MODE_B
    if feeds_back:
        factors = {
            name: replace(factor, B_OR=factor.B_OR + state.residuals.get(name, np.float32(0)))
            for name, factor in factors.items()
        }
    rounding = hashlib.sha256(f"{plan.seed}:{plan.member.hex()}:{plan.base_round}:rounding".encode()).digest()
    delta = lora.quantize(
        factors,
        genesis,
        bits_b=plan.bits_b,
        bits_a=plan.bits_a,
        rng=np.random.Generator(np.random.Philox(key=int.from_bytes(rounding[:16], "big"))),
        stochastic=plan.stochastic,
    )
    try:
        blob = encode(delta, genesis, CODEC_PACKED)
    except RejectError as error:
        raise NodeError(
            f"the swarm's rules do not take this delta: {error.detail}",
            hint="Lower train.rank.",
            exit_code=ExitCode.CONFIG,
        ) from error
    residuals = lora.rounding_residuals(factors, delta, genesis) if feeds_back else {}
    return blob, lora.usual_rank(delta), residuals

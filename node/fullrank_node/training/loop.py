"""The optimiser steps of one contribution: AdamW, one global schedule, a re-warm-up, a deadline.

Why it is done like this: protocol/decisions/0015. Shape legend: N blocks in a step, T tokens in a block.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.model.evaluate import token_losses
from fullrank_node.training.blocks import IS_TARGET, Blocks
from fullrank_node.training.optimizer_state import TrainingState, restore_moments

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

ADAM_BETAS = (0.9, 0.999)
"""The second moment is carried from round to round: where it forgets within one (0.95), the swarm learns less, and
even synchronous training does (protocol/decisions/0015)."""

MAX_GRADIENT_NORM = 1.0
"""Gradients are clipped to it: the usual one, and 0.3 or hardly any clipping is no better (protocol/decisions/0015)."""

LOWEST_RATE = 0.1
"""Share of the peak rate at which a schedule ends: a swarm that outlives its schedule keeps learning slowly."""

PROGRESS_INTERVAL_S = 0.2
"""Progress is for people: five reports a second are plenty."""

LOSS_WINDOW = 5
"""Steps averaged into the first and the last loss of a contribution: a single small batch says little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Learning rate of every step.

    Attributes:
        peak: Highest learning rate.
        warmup_steps: Linear re-warm-up at the start of each contribution.
        max_steps: Steps that make up one round of the schedule.
        round: Round of the base checkpoint.
        total_rounds: Length of the cosine; 0 for a constant rate.
    """

    peak: float
    warmup_steps: int
    max_steps: int
    round: int
    total_rounds: int

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if not self.total_rounds:
            return self.peak * warm
        done = min(1.0, (self.round + step / self.max_steps) / self.total_rounds)
        return self.peak * warm * (LOWEST_RATE + (1 - LOWEST_RATE) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """When training must stop to leave time for encoding.

    Attributes:
        at_ms: Milliseconds since the Unix epoch by which the encoded delta must be there; None for never.
        reserve_ms: Time that encoding takes.
        now_ms: The clock.
    """

    at_ms: float | None
    reserve_ms: float
    now_ms: Callable[[], float] = lambda: time.time() * 1000

    def allows(self, duration_ms: float) -> bool:
        """Whether another step of this duration still fits."""
        return self.at_ms is None or self.now_ms() + duration_ms + self.reserve_ms <= self.at_ms


class Learner(Protocol):
    """A model and what of it is trained: an adapter, or in a benchmark the whole."""

    @property
    def model(self) -> Any:
        """To be called in training."""

    def named_parameters(self) -> dict[str, "torch.nn.Parameter"]:
        """What the optimiser moves."""

    def rate_factors(self) -> Mapping[str, float]:
        """What the learning rate is multiplied by for each of these parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsDone:
    """What a contribution's training amounted to.

    Attributes:
        num_tokens: Tokens predicted, over all steps.
        loss_first: Mean loss of the first steps, nats per token.
        loss_last: Mean loss of the last steps.
        stopped_by: `steps` or `deadline`.
        micro_batch: Blocks in one forward pass; fewer than the batch where memory was short.
    """

    num_steps: int
    num_tokens: int
    loss_first: float
    loss_last: float
    stopped_by: str
    micro_batch: int
    optimizer: "torch.optim.Optimizer"


def block_order(*, seed: int, num_blocks: int, start: int) -> Iterator[int]:
    """Block numbers from a position on: every pass over the data in a new order, fixed by the seed."""
    position = start
    while True:
        epoch, offset = divmod(position, num_blocks)
        order = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), epoch])).permutation(num_blocks)
        for block in order[offset:]:
            yield int(block)
        position = (epoch + 1) * num_blocks


def run_steps(
    learner: Learner,
    read: Callable[[npt.NDArray[np.int64]], Blocks],
    order: Iterator[int],
    *,
    batch_size: int,
    schedule: Schedule,
    deadline: Deadline,
    state: TrainingState,
    num_averaged: int = 1,
    betas: tuple[float, float] = ADAM_BETAS,
    progress: Callable[..., None],
) -> StepsDone:
    """Train an adapter, or whatever learns, until its steps are done or the deadline is near.

    Each step takes `batch_size` block numbers of `order` and has them `read`. AdamW starts from the moments
    of `state`, where they fit the parameters; `num_averaged` contributions are expected to be averaged.

    Raises:
        NodeError: When the loss is not finite, memory does not suffice for a single block, or there is no
            time for a single step.
    """
    import torch

    parameters = learner.named_parameters()
    optimizer = _optimizer(learner, rate=schedule.peak, betas=betas, num_averaged=num_averaged)
    restore_moments(optimizer, parameters, state)
    learner.model.train()
    losses: list[float] = []
    num_tokens, longest_ms, reported_s, micro_batch = 0, 0.0, -math.inf, batch_size
    started_s = time.monotonic()
    while len(losses) < schedule.max_steps and deadline.allows(longest_ms):
        step_started_s = time.monotonic()
        step = len(losses)
        blocks = read(np.array([next(order) for _ in range(batch_size)], dtype=np.int64))
        rate = schedule.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        loss, micro_batch = _gradients(learner.model, optimizer, blocks, micro_batch=micro_batch)
        if not math.isfinite(loss):
            raise NodeError(
                f"the training loss became {loss} at step {step + 1}; nothing is contributed",
                hint=f"Lower the learning rate (it was {schedule.peak:g}) with train.learning_rate.",
            )
        torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_GRADIENT_NORM)
        optimizer.step()
        losses.append(loss)
        num_tokens += blocks.num_targets
        now_s = time.monotonic()
        longest_ms = max(longest_ms, (now_s - step_started_s) * 1000)
        if now_s - reported_s >= PROGRESS_INTERVAL_S or len(losses) == schedule.max_steps:
            reported_s = now_s
            speed = num_tokens / max(now_s - started_s, 1e-9)
            progress(step=len(losses), of=schedule.max_steps, loss=loss, tokens_per_s=speed, learning_rate=rate)
    if not losses:
        raise NodeError(
            "there is no time left for a single training step before the round closes",
            hint="The node takes part in the next round.",
            exit_code=ExitCode.RETRY,
        )
    return StepsDone(
        num_steps=len(losses),
        num_tokens=num_tokens,
        loss_first=float(np.mean(losses[:LOSS_WINDOW])),
        loss_last=float(np.mean(losses[-LOSS_WINDOW:])),
        stopped_by="steps" if len(losses) == schedule.max_steps else "deadline",
        micro_batch=micro_batch,
        optimizer=optimizer,
    )


def _optimizer(
    learner: Learner, *, rate: float, betas: tuple[float, float], num_averaged: int
) -> "torch.optim.Optimizer":
    import torch

    from fullrank_node.training.optimizer import AveragedAdamW

    if num_averaged > 1:
        return AveragedAdamW(_groups(learner), lr=rate, betas=betas, num_averaged=num_averaged)
    return torch.optim.AdamW(_groups(learner), lr=rate, betas=betas, weight_decay=0.0)


def _groups(learner: Learner) -> list[dict[str, Any]]:
    """AdamW's groups: the parameters that share a rate."""
    parameters, factors = learner.named_parameters(), learner.rate_factors()
    return [
        {"params": [parameters[name] for name in parameters if factors[name] == factor], "factor": factor}
        for factor in sorted(set(factors.values()))
    ]


def _gradients(
    model: Any, optimizer: "torch.optim.Optimizer", blocks: Blocks, *, micro_batch: int
) -> tuple[float, int]:
    """Gradients of the mean loss of a batch; halves what is computed at once when memory runs out.

    Returns:
        The loss, and how many blocks fitted.

    Raises:
        NodeError: When not even one block fits.
    """
    import torch

    while True:
        optimizer.zero_grad(set_to_none=True)
        try:
            return _accumulate(model, blocks, micro_batch=micro_batch), micro_batch
        except torch.OutOfMemoryError as error:
            if micro_batch == 1:
                raise NodeError(
                    f"not enough memory to train on one block of {blocks.tokens.shape[1]} tokens",
                    hint="Close other programs that use the device, or set train.device to cpu.",
                ) from error
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        micro_batch = max(1, micro_batch // 2)
        log.warning("Memory ran out: going on with %d blocks at a time.", micro_batch)


def _accumulate(model: Any, blocks: Blocks, *, micro_batch: int) -> float:
    import torch

    device = next(model.parameters()).device
    tokens_NT = torch.from_numpy(blocks.tokens.astype(np.int64)).to(device)
    targets_NT = torch.from_numpy((blocks.flags & IS_TARGET).astype(np.bool_)).to(device)
    positions_NT = torch.from_numpy(blocks.positions().astype(np.int64)).to(device)
    total = torch.zeros((), device=device)
    for start in range(0, len(blocks), micro_batch):
        part = slice(start, start + micro_batch)
        with _precision(device):
            losses = token_losses(
                model, tokens_NT=tokens_NT[part], targets_NT=targets_NT[part], positions_NT=positions_NT[part]
            )
        loss = losses.sum() / blocks.num_targets
        loss.backward()
        total += loss.detach()
    return float(total.item())


def _precision(device: "torch.device") -> AbstractContextManager[Any]:
    """Bfloat16 products on CUDA; the adapter itself stays float32."""
    import torch

    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()

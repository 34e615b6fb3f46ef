"""The optimiser of a contribution: AdamW, told that its steps will be averaged with those of other nodes.

AdamW divides the mean of gradients g by the root of their mean square v = E[g]² + Var[g]. What a merge averages are
steps that every node has divided by the noise of its own small batch, so where noise is most of v, a swarm of N nodes
moves up to √N times less than one trainer of their joint batch would. This optimiser therefore takes the variance of
the mean of N gradients, E[g]² + Var[g] / N, with E[g] from a slow mean of the gradients
(protocol/decisions/0015 has what that gains). For N = 1 it is AdamW.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

MEAN_DECAY = 0.98
"""Decay of the slow mean: over some 50 steps, its own noise is a hundredth of the variance."""

EPSILON = 1e-8


class AveragedAdamW(torch.optim.Optimizer):
    """AdamW without weight decay, for steps of which `num_averaged` are averaged.

    State of a parameter: `step`, `exp_avg` and `exp_avg_sq` as AdamW's, and `mean_step` and `mean`, the slow mean and
    the steps that it has seen.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], num_averaged: int
    ) -> None:
        """Start without moments.

        Args:
            groups: Parameters, as `torch.optim.Optimizer` takes them.
            lr: Rate, unless a group has its own.
            betas: Decay of first and second moments.
            num_averaged: Nodes whose steps are averaged, at least 1.
        """
        super().__init__(groups, {"lr": lr, "betas": betas})
        self.num_averaged = num_averaged

    @torch.no_grad()
    def step(self, closure: "Callable[[], float] | None" = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, rate=group["lr"], betas=group["betas"])

    def _move(
        self, parameter: torch.Tensor, gradient: torch.Tensor, *, rate: float, betas: tuple[float, float]
    ) -> None:
        state = self.state[parameter]
        if not state:
            state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq", "mean")}
            state |= {"step": torch.zeros(()), "mean_step": torch.zeros(())}
        state["step"] += 1
        state["mean_step"] += 1
        first_decay, second_decay = betas
        state["exp_avg"].lerp_(gradient, 1 - first_decay)
        state["exp_avg_sq"].mul_(second_decay).addcmul_(gradient, gradient, value=1 - second_decay)
        state["mean"].lerp_(gradient, 1 - MEAN_DECAY)
        second = state["exp_avg_sq"] / _correction(second_decay, state["step"])
        squared_mean = (state["mean"] / _correction(MEAN_DECAY, state["mean_step"])).square_().clamp_(max=second)
        divisor = second.sub_(squared_mean).div_(self.num_averaged).add_(squared_mean).sqrt_().add_(EPSILON)
        parameter.addcdiv_(state["exp_avg"], divisor, value=-rate / _correction(first_decay, state["step"]))


def _correction(decay: float, steps: torch.Tensor) -> float:
    """Share of a mean that its gradients make up; the rest is the zero that it started from."""
    return cast("float", 1 - decay ** float(steps))

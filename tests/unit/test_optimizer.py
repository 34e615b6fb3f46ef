"""AdamW for steps that will be averaged: the same for one node, as far as their joint batch would go for many."""

import numpy as np
import torch

from fullrank_node.training.optimizer import AveragedAdamW

BETAS = (0.9, 0.999)
RATE = 1e-3
NUM_NODES = 8


def moved(optimizer_of: type[torch.optim.Optimizer], gradients: list[torch.Tensor], **options: object) -> torch.Tensor:
    """Where a parameter of zeros ends that is given these gradients one after the other."""
    parameter = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = optimizer_of([{"params": [parameter]}], lr=RATE, betas=BETAS, **options)  # type: ignore[call-arg]
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    return parameter.detach()


def gradients_of_nodes(*, signal: float, steps: int = 300, entries: int = 1000) -> torch.Tensor:
    """(NUM_NODES, steps, entries): a signal with noise of deviation 1 that is every node's own."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(NUM_NODES, steps, entries))
    return torch.from_numpy((noise + signal).astype(np.float32))


def distance(gradients: torch.Tensor, *, num_averaged: int) -> float:
    """How far the nodes go together in the direction of the signal, one step's length being the rate."""
    ends = [moved(AveragedAdamW, list(own), num_averaged=num_averaged) for own in gradients]
    return float(torch.stack(ends).mean()) / RATE


def distance_together(gradients: torch.Tensor) -> float:
    """How far AdamW goes on the mean of all nodes' gradients."""
    return float(moved(torch.optim.AdamW, list(gradients.mean(dim=0)), weight_decay=0.0).mean()) / RATE


def test_for_one_node_it_is_adamw() -> None:
    own = list(gradients_of_nodes(signal=0.3)[0])
    assert torch.allclose(
        moved(AveragedAdamW, own, num_averaged=1), moved(torch.optim.AdamW, own, weight_decay=0.0), rtol=1e-4, atol=1e-8
    )


def test_where_gradients_are_noise_the_mean_of_many_goes_as_far_as_their_joint_batch() -> None:
    """AdamW by itself goes 2.7 times less far with eight nodes."""
    gradients = gradients_of_nodes(signal=-0.1)
    together = distance_together(gradients)
    assert abs(distance(gradients, num_averaged=1)) < 0.4 * together
    assert 0.8 * together < abs(distance(gradients, num_averaged=NUM_NODES)) < 1.1 * together


def test_where_gradients_agree_it_is_adamw_however_many_nodes_there_are() -> None:
    gradients = gradients_of_nodes(signal=-30.0)
    together = distance_together(gradients)
    assert np.isclose(distance(gradients, num_averaged=NUM_NODES), together, rtol=0.02)
    assert np.isclose(distance(gradients, num_averaged=1), together, rtol=0.02)


def test_a_parameter_without_a_gradient_stays() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    AveragedAdamW([{"params": [parameter]}], lr=RATE, betas=BETAS, num_averaged=4).step()
    assert parameter.tolist() == [1, 1, 1]

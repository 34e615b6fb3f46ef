"""Held-out loss: mean negative log-likelihood of the tokens that are to be learned, in nats.

Shape legend: N blocks, T tokens in a block, V vocabulary.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

EVALUATION_BLOCKS = 8
"""Blocks in one forward pass: logits of 8 x 1024 x 128k float32 are 4 GB, the most a small machine takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutLoss:
    """Mean loss per target token.

    Attributes:
        loss: Nats per token.
        num_tokens: Tokens that were predicted.
    """

    loss: float
    num_tokens: int


def token_losses(
    model: Any,
    *,
    tokens_NT: "torch.Tensor",
    targets_NT: "torch.Tensor",
    positions_NT: "torch.Tensor",
) -> "torch.Tensor":
    """Negative log-likelihood of every target, float32 (N * (T - 1),) on the model's device; 0 elsewhere.

    Args:
        model: A causal language model.
        tokens_NT: Token ids, int64.
        targets_NT: Bool; true where the token is to be predicted from those before it.
        positions_NT: Position of each token in its document; documents do not see each other.
    """
    import torch

    logits_NTV = model(input_ids=tokens_NT, position_ids=positions_NT, use_cache=False).logits
    labels_NT = torch.where(targets_NT, tokens_NT, torch.full_like(tokens_NT, -100))
    return torch.nn.functional.cross_entropy(
        logits_NTV[:, :-1].float().flatten(0, 1), labels_NT[:, 1:].flatten(), ignore_index=-100, reduction="none"
    )


def held_out_loss(
    model: Any,
    *,
    tokens_NT: npt.NDArray[np.int32],
    targets_NT: npt.NDArray[np.bool_],
    positions_NT: npt.NDArray[np.int32],
    batch_size: int = EVALUATION_BLOCKS,
) -> HeldOutLoss:
    """Loss of a causal language model on token blocks, summed in float64.

    Raises:
        ValueError: When the blocks hold no target.
    """
    import torch

    device = next(model.parameters()).device
    num_tokens = int(targets_NT[:, 1:].sum())
    if not num_tokens:
        raise ValueError("no token to evaluate on")
    was_training = model.training
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(tokens_NT), batch_size):
            part = slice(start, start + batch_size)
            losses = token_losses(
                model,
                tokens_NT=torch.from_numpy(tokens_NT[part].astype(np.int64)).to(device),
                targets_NT=torch.from_numpy(targets_NT[part]).to(device),
                positions_NT=torch.from_numpy(positions_NT[part].astype(np.int64)).to(device),
            )
            total += losses.cpu().double().sum().item()
    model.train(was_training)
    return HeldOutLoss(loss=total / num_tokens, num_tokens=num_tokens)

"""Held-out loss counts the tokens that are to be learned, each in its own document, and nothing else."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullrank_node.model.base_load import load_base
from fullrank_node.model.evaluate import HeldOutLoss, held_out_loss
from fullrank_node.training.blocks import IS_TARGET, Blocks, Document, pack


def documents(*lengths: int) -> list[Document]:
    rng = np.random.default_rng(0)
    return [Document(tokens=rng.integers(3, 250, n).astype(np.int32), targets=np.ones(n, bool)) for n in lengths]


def evaluate(model: Any, blocks: Blocks, **options: Any) -> HeldOutLoss:
    return held_out_loss(
        model,
        tokens_NT=blocks.tokens,
        targets_NT=(blocks.flags & IS_TARGET).astype(bool),
        positions_NT=blocks.positions(),
        **options,
    )


def test_a_model_that_knows_nothing_loses_the_logarithm_of_its_vocabulary(tiny_base: Path) -> None:
    import torch

    model = load_base(tiny_base)
    with torch.no_grad():
        model.get_parameter("model.norm.weight").zero_()
    result = evaluate(model, pack(documents(8, 8), block_length=8, pad_token=0))
    assert result.num_tokens == 14
    assert result.loss == pytest.approx(math.log(model.config.vocab_size))


def test_sharing_a_block_does_not_change_the_loss(tiny_base: Path) -> None:
    model = load_base(tiny_base)
    parts = documents(9, 14, 7)
    together = pack(parts, block_length=32, pad_token=0)
    apart = pack(parts, block_length=14, pad_token=0)
    assert (len(together), len(apart)) == (1, 3)
    first, second = evaluate(model, together), evaluate(model, apart)
    assert first.num_tokens == second.num_tokens == 8 + 13 + 6
    assert first.loss == pytest.approx(second.loss, rel=1e-5)


def test_the_batch_size_does_not_change_the_loss(tiny_base: Path) -> None:
    model = load_base(tiny_base)
    blocks = pack(documents(16, 16, 16, 16, 16), block_length=16, pad_token=0)
    assert evaluate(model, blocks, batch_size=2).loss == pytest.approx(evaluate(model, blocks, batch_size=5).loss)


def test_nothing_to_evaluate_is_an_error(tiny_base: Path) -> None:
    model = load_base(tiny_base)
    with pytest.raises(ValueError, match="no token"):
        evaluate(model, Blocks(tokens=np.zeros((1, 4), np.int32), flags=np.zeros((1, 4), np.uint8)))

"""The demo's judge, a process of its own (`child.ChildProcess("fullrank_node.demo.judge")`).

It measures how fast this machine is, and says what a model directory is worth: loaded with transformers as anybody
would load it, its loss on held-out text, and how it continues a line. It also rolls the dice that ranks are compared
with. It knows nothing of swarms.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fullrank_node.child_side import Handler, Params, Progress, serve

MAX_SIMULATED_MODULES = 8
"""Random updates of all modules of a shape look alike: a few, evenly spread over the shapes, are enough."""

MEASURED_STEPS = 8
"""The fastest of so many counts: it says what a core can do, whatever else runs while the demo starts."""


def measure_step(params: Params, _progress: Progress) -> Mapping[str, Any]:
    """Seconds of one forward and backward pass on one core.

    {base_dir, batch_size, block_length} -> {step_s, cores}.
    """
    import torch

    from fullrank_node.model.base_load import load_base
    from fullrank_node.training.hardware import available_cores

    torch.set_num_threads(1)
    model = load_base(Path(params["base_dir"])).train()
    generator = torch.Generator().manual_seed(0)
    shape = (int(params["batch_size"]), int(params["block_length"]))
    tokens_NT = torch.randint(0, model.config.vocab_size, shape, generator=generator)
    durations = []
    for _ in range(MEASURED_STEPS):
        started_s = time.monotonic()
        model(input_ids=tokens_NT, labels=tokens_NT, use_cache=False).loss.backward()
        model.zero_grad()
        durations.append(time.monotonic() - started_s)
    return {"step_s": min(durations), "cores": available_cores()}


def judge(params: Params, _progress: Progress) -> Mapping[str, Any]:
    """What a model directory is worth.

    {model_dir, heldout, block_length, prompt, max_new_tokens} -> {loss, num_tokens, sample}: loss in nats per token
    over all rows of the JSON Lines file `heldout`; the sample does not repeat the prompt.

    Raises:
        NodeError: The directory holds no model that transformers loads, or the file no rows.
    """
    import numpy as np
    import torch

    from fullrank_node.model.base_load import load_base, load_tokenizer
    from fullrank_node.model.evaluate import held_out_loss
    from fullrank_node.training.blocks import IS_TARGET
    from fullrank_node.training.cache import make_blocks
    from fullrank_node.training.data import load_rows

    torch.set_num_threads(1)
    directory = Path(params["model_dir"])
    model, tokenizer = load_base(directory), load_tokenizer(directory)
    rows = load_rows(Path(params["heldout"])).train
    blocks, _ = make_blocks(rows, tokenizer, block_length=int(params["block_length"]))
    found = held_out_loss(
        model,
        tokens_NT=blocks.tokens,
        targets_NT=(blocks.flags & IS_TARGET).astype(np.bool_),
        positions_NT=blocks.positions(),
    )
    prompt = tokenizer(str(params["prompt"]), return_tensors="pt", split_special_tokens=True)
    with torch.inference_mode():
        output = model.generate(
            input_ids=prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            max_new_tokens=int(params["max_new_tokens"]),
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    sample = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return {"loss": found.loss, "num_tokens": found.num_tokens, "sample": sample}


def noise_control(params: Params, _progress: Progress) -> Mapping[str, Any]:
    """Effective rank after each round if every delta had been random (`model.rank.noise_control`).

    {shapes, ranks_per_round, norms_per_round, period_rounds} -> {effective: one number a round}.
    """
    from fullrank_node.model import rank

    effective = rank.noise_control(
        [(int(rows), int(columns)) for rows, columns in params["shapes"]],
        params["ranks_per_round"],
        norms_per_round=params["norms_per_round"],
        period_rounds=int(params["period_rounds"]),
        max_modules=MAX_SIMULATED_MODULES,
    )
    return {"effective": effective}


HANDLERS: dict[str, Handler] = {"judge": judge, "measure_step": measure_step, "noise_control": noise_control}


if __name__ == "__main__":
    serve(HANDLERS)

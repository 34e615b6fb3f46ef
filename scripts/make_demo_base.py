"""Makes the language model that the demo starts from, out of text that every Python installation has.

The text is the prose of the standard library: docstrings, comment blocks and the language reference behind
`help()`. Doctest lines and commented-out code are dropped, because the demo's volunteers train on the library's
code (`fullrank_node.demo.texts`) and the two kinds are kept apart. One file in twenty, chosen by a hash of its
name, is held out. The result is written to `node/fullrank_node/demo/base/` with a model card, and the figures to
`scripts/bench/results/demo_base.json`.

    OMP_NUM_THREADS=1 nice python scripts/make_demo_base.py

The seed is fixed, but the text follows the Python version and the last bits of the weights follow the processor:
what the repository holds is the reference, and this script is how it was made.
"""

import argparse
import ast
import hashlib
import importlib.machinery
import importlib.util
import inspect
import io
import json
import math
import platform
import re
import sys
import time
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fullrank_node.demo.texts import code_only, library_files, library_root, read_source

REPOSITORY = Path(__file__).resolve().parent.parent
OUT_DIR = REPOSITORY / "node" / "fullrank_node" / "demo" / "base"
RESULT = REPOSITORY / "scripts" / "bench" / "results" / "demo_base.json"

SEED = 20261122
VOCAB_SIZE = 2048
END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"
BLOCK_TOKENS = 256
BATCH_BLOCKS = 4
ADAMW_RATE = 0.015
MUON_RATE = 0.02
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.1
HELD_OUT_ONE_IN = 20
SHORTEST_PARAGRAPH = 60
"""Characters. Shorter docstrings and comments ("Return self.") say little and repeat often."""

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    # The file holds float16; "float32" makes every loader widen it, which is exact.
    "dtype": "float32",
    "eos_token_id": 0,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 352,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 1,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": VOCAB_SIZE,
}


# ---- text ----------------------------------------------------------------------------------------------------


def without_doctests(text: str) -> str:
    """Drops interactive examples: the `>>>` line and everything up to the next blank line."""
    kept, inside = [], False
    for line in text.splitlines():
        inside = line.lstrip().startswith(">>>") or (inside and bool(line.strip()))
        if not inside:
            kept.append(line.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def is_prose(text: str) -> bool:
    """Tells sentences from tables, rulers and commented-out code."""
    if len(text) < SHORTEST_PARAGRAPH or sum(c.isalpha() or c.isspace() for c in text) < 0.8 * len(text):
        return False
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return True
    return False


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields (line number, text) of each docstring, without doctests."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0].lineno, without_doctests(text)


def comment_blocks(source: str) -> Iterator[tuple[int, str]]:
    """Yields (line number, text) of each run of lines that hold nothing but a comment."""
    block: list[str] = []
    start = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip():
            continue
        line = token.start[0]
        if block and line != last + 1:
            yield start, "\n".join(block)
            block = []
        if not block:
            start = line
        block.append(re.sub(r"^#+:? ?", "", token.string).rstrip())
        last = line
    if block:
        yield start, "\n".join(block)


def extension_docstrings(name: str) -> list[str]:
    """Docstrings of one module written in C: its own, its functions', its classes' and their methods'."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin == "frozen" or spec.submodule_search_locations or name.startswith(("_test", "xx")):
        return []
    if spec.origin != "built-in" and not (spec.origin or "").endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES)):
        return []
    try:
        module = importlib.import_module(name)
    except ImportError:
        return []
    things = [module, *(thing for _, thing in sorted(vars(module).items()))]
    for kind in [thing for thing in things if isinstance(thing, type)]:
        things.extend(thing for _, thing in sorted(vars(kind).items()))
    texts = [getattr(thing, "__doc__", None) for thing in things]
    return [without_doctests(inspect.cleandoc(text)) for text in texts if isinstance(text, str)]


def distinct_prose(texts: Iterable[str], seen: set[str]) -> str:
    """Joins what is prose and was not seen before."""
    paragraphs = []
    for text in texts:
        if is_prose(text) and text not in seen:
            seen.add(text)
            paragraphs.append(text)
    return "\n\n".join(paragraphs) + "\n" if paragraphs else ""


def documents() -> Iterator[tuple[str, str]]:
    """Yields (name, prose) of each library file, C module and topic of `help()`, in a fixed order; may be empty."""
    from pydoc_data.topics import topics

    root = library_root()
    seen: set[str] = set()
    for path in library_files():
        source = read_source(path)
        if source is not None:
            found = sorted([*docstrings(ast.parse(source)), *comment_blocks(source)])
            yield path.relative_to(root).as_posix(), distinct_prose((text for _, text in found), seen)
    for name in sorted(sys.stdlib_module_names):
        yield f"import {name}", distinct_prose(extension_docstrings(name), seen)
    for name, text in sorted(topics.items()):
        yield f"help({name})", without_doctests(text) + "\n"


def is_held_out(name: str) -> bool:
    """Chooses one document in twenty by its name alone."""
    return hashlib.sha256(name.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


# ---- tokenizer -----------------------------------------------------------------------------------------------


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE as GPT-2's: any bytes can be written, nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """One int64 stream; every text is followed by the end-of-text token (id 0)."""
    return np.concatenate([np.array([*tokenizer.encode(text).ids, 0], dtype=np.int64) for text in texts])


# ---- figures -------------------------------------------------------------------------------------------------


def held_out_loss(model: transformers.PreTrainedModel, stream: np.ndarray) -> float:
    """Mean nats per token over consecutive blocks, the first token of each given."""
    total, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(stream) - 1, BLOCK_TOKENS):
            block = torch.from_numpy(stream[start : start + BLOCK_TOKENS + 1])[None]
            logits = model(input_ids=block[:, :-1]).logits[0].double()
            total += float(torch.nn.functional.cross_entropy(logits, block[0, 1:], reduction="sum"))
            count += block.shape[1] - 1
    model.train()
    return total / count


def unigram_loss(train: np.ndarray, held_out: np.ndarray) -> float:
    """Cross-entropy of held-out tokens under the training text's token frequencies, add-one smoothed."""
    counts = np.bincount(train, minlength=VOCAB_SIZE) + 1.0
    return float(-np.log(counts / counts.sum())[held_out[1:]].mean())


def bigram_loss(train: np.ndarray, held_out: np.ndarray, *, strength: float = 32.0) -> float:
    """The same with the previous token known; falls back on the unigram with the weight of `strength` tokens."""
    unigram = np.bincount(train, minlength=VOCAB_SIZE) + 1.0
    unigram /= unigram.sum()
    pairs = np.zeros((VOCAB_SIZE, VOCAB_SIZE))
    np.add.at(pairs, (train[:-1], train[1:]), 1.0)
    before, after = held_out[:-1], held_out[1:]
    probability = (pairs[before, after] + strength * unigram[after]) / (pairs.sum(axis=1)[before] + strength)
    return float(-np.log(probability).mean())


# ---- training ------------------------------------------------------------------------------------------------


def batches(stream: np.ndarray, *, seed: int) -> Iterator[torch.Tensor]:
    """Yields (blocks, tokens + 1) for ever; each pass starts at another offset and shuffles its blocks."""
    rng = np.random.default_rng(seed)
    while True:
        offset = int(rng.integers(BLOCK_TOKENS))
        starts = np.arange(offset, len(stream) - BLOCK_TOKENS - 1, BLOCK_TOKENS)
        rng.shuffle(starts)
        for i in range(0, len(starts) - BATCH_BLOCKS + 1, BATCH_BLOCKS):
            chosen = starts[i : i + BATCH_BLOCKS]
            yield torch.from_numpy(np.stack([stream[s : s + BLOCK_TOKENS + 1] for s in chosen]))


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by five Newton-Schulz steps (Jordan et al. 2024), in float32, for matrices.

    In as many steps as the quick version of this base had, it reached 4.28 nats where AdamW alone reached 4.69.
    """

    def __init__(self, params: list[torch.nn.Parameter]) -> None:
        super().__init__(params, {"lr": MUON_RATE})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Changes every parameter once."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 0.05)
                update = orthogonal(parameter.grad.lerp(momentum, 0.95))
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * WEIGHT_DECAY)
                parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Pushes all singular values of a matrix towards 1 (quintic iteration, coefficients of Jordan et al.)."""
    tall = matrix.shape[0] > matrix.shape[1]
    X: torch.Tensor = matrix.T if tall else matrix
    X = X / (torch.linalg.norm(X) + 1e-7)
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.T if tall else X


def rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to zero."""
    return min((step + 1) / WARMUP_STEPS, (steps - step) / max(1, steps - WARMUP_STEPS))


def pretrain(stream: np.ndarray, held_out: np.ndarray, *, steps: int) -> tuple[transformers.PreTrainedModel, list[Any]]:
    """Trains from scratch, matrices with Muon and the rest with AdamW.

    Returns:
        The model (float32), and its curve: [step, training loss since the last point, held-out loss].
    """
    torch.manual_seed(SEED)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    adamw = torch.optim.AdamW(others, lr=ADAMW_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    optimizers = (Muon(hidden), adamw)
    rates = (MUON_RATE, ADAMW_RATE)
    curve, recent, started = [], [], time.monotonic()
    source = batches(stream, seed=SEED)
    for step in range(steps):
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_factor(step, steps)
        block = next(source)
        logits = model(input_ids=block[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), block[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        recent.append(loss.item())
        if (step + 1) % max(1, steps // 20) == 0:
            point = [step + 1, round(float(np.mean(recent)), 4), round(held_out_loss(model, held_out[:20_000]), 4)]
            curve.append(point)
            recent = []
            print(
                f"step {point[0]}/{steps}  {time.monotonic() - started:.0f} s  train {point[1]}  held-out {point[2]}",
                flush=True,
            )
    return model, curve


def stored_tensors(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """The parameters as float16, tied ones once; fails if one overflows."""
    tensors = {name: p.detach().half().contiguous() for name, p in model.named_parameters()}
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values())
    return tensors


# ---- output --------------------------------------------------------------------------------------------------


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_base(out_dir: Path, tokenizer: Tokenizer, tensors: dict[str, torch.Tensor]) -> None:
    """Writes what `AutoModelForCausalLM` and `AutoTokenizer` load, in the form that older tools read too."""
    out_dir.mkdir(parents=True, exist_ok=True)
    write_json(out_dir / "config.json", CONFIG)
    write_json(out_dir / "generation_config.json", {k: CONFIG[k] for k in CONFIG if k.endswith("token_id")})
    tokenizer.save(str(out_dir / "tokenizer.json"))
    write_json(
        out_dir / "tokenizer_config.json",
        {
            "bos_token": END_OF_TEXT,
            "clean_up_tokenization_spaces": False,
            "eos_token": END_OF_TEXT,
            "model_max_length": CONFIG["max_position_embeddings"],
            "pad_token": PADDING,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    save_file(tensors, out_dir / "model.safetensors", metadata={"format": "pt"})
    (out_dir / "model.safetensors").chmod(0o644)


CARD = """---
license: psf-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# fullrank demo base

A Llama of {parameters:,} parameters (width 128, 4 layers, 4 heads, tied embeddings) with its own byte-level BPE
tokenizer of {vocab} tokens, so that the demo needs no download. It knows the prose of Python's standard library:
docstrings, comments and the language reference. Of code it has seen no more than the examples in these; code is what
the demo's volunteers teach it. It is of no use for anything else.

Made by `scripts/make_demo_base.py` with seed {seed} from Python {python}: {train_tokens:,} training tokens, {steps:,}
steps of {batch} blocks of {block} tokens ({passes:.1f} passes), Muon at {muon_rate} for matrices and AdamW at
{adamw_rate} for the rest with linear decay, {minutes:.0f} minutes on one thread. Weights are stored as float16 and
loaded as float32, which is exact.

| held-out loss, nats per token | prose (its own kind) | code (the demo's kind) |
|---|---|---|
| **this model** | **{loss:.3f}** | **{code_loss:.3f}** |
| bigram of the training text | {bigram:.3f} | {code_bigram:.3f} |
| unigram of the training text | {unigram:.3f} | {code_unigram:.3f} |
| uniform over {vocab} tokens | {uniform:.3f} | {uniform:.3f} |

Prose: {held_out_tokens:,} tokens of documents that took no part in training, {bits:.2f} bits per byte. A sample:

```text
{sample}
```

The training text is © Python Software Foundation, PSF License Agreement version 2.
"""


def sample(model: transformers.PreTrainedModel, tokenizer: Tokenizer, prompt: str) -> str:
    """Continues a prompt by 80 tokens with a fixed seed."""
    torch.manual_seed(SEED)
    prompt_ids = torch.tensor([tokenizer.encode(prompt).ids])
    out = model.generate(prompt_ids, max_new_tokens=80, do_sample=True, temperature=0.7, top_k=40)
    return tokenizer.decode(out[0].tolist())


def main() -> None:
    """Trains, writes and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--out", type=Path, default=OUT_DIR)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)

    corpus = [(name, text) for name, text in documents() if text]
    training = [text for name, text in corpus if not is_held_out(name)]
    held_out = [text for name, text in corpus if is_held_out(name)]
    code = [code_only(source) for p in library_files()[::50] if (source := read_source(p)) is not None]
    tokenizer = train_tokenizer(training)
    train_stream, held_out_stream, code_stream = (token_stream(tokenizer, t) for t in (training, held_out, code))
    code_stream = code_stream[:40_000]
    print(
        f"{len(training)} documents, {len(train_stream):,} tokens; held out {len(held_out)}, {len(held_out_stream):,}",
        flush=True,
    )

    cpu_started = time.process_time()
    model, curve = pretrain(train_stream, held_out_stream, steps=options.steps)
    cpu_seconds = time.process_time() - cpu_started
    tensors = stored_tensors(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name].float())
    model.eval()
    loss = held_out_loss(model, held_out_stream)
    held_out_bytes = sum(len(text.encode()) for text in held_out)
    result = {
        "seed": SEED,
        "python": platform.python_version(),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, tokenizers, np)},
        "machine": platform.machine(),
        "corpus_sha256": hashlib.sha256("\0".join(training).encode()).hexdigest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocab": VOCAB_SIZE,
        "documents": len(training),
        "train_tokens": len(train_stream),
        "bytes_per_token": round(held_out_bytes / len(held_out_stream), 3),
        "steps": options.steps,
        "batch": BATCH_BLOCKS,
        "block": BLOCK_TOKENS,
        "muon_rate": MUON_RATE,
        "adamw_rate": ADAMW_RATE,
        "passes": options.steps * BATCH_BLOCKS * BLOCK_TOKENS / len(train_stream),
        "minutes": cpu_seconds / 60,
        "held_out_tokens": len(held_out_stream),
        "loss": loss,
        "bits": loss / math.log(2) * len(held_out_stream) / held_out_bytes,
        "bigram": bigram_loss(train_stream, held_out_stream),
        "unigram": unigram_loss(train_stream, held_out_stream),
        "uniform": math.log(VOCAB_SIZE),
        "code_loss": held_out_loss(model, code_stream),
        "code_bigram": bigram_loss(train_stream, code_stream),
        "code_unigram": unigram_loss(train_stream, code_stream),
        "curve": curve,
    }
    text = sample(model, tokenizer, "Return a list of the")
    write_base(options.out, tokenizer, tensors)
    (options.out / "README.md").write_text(CARD.format(sample=text, **result))
    options.result.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.result, result)
    json.dump({k: v for k, v in result.items() if k != "curve"}, sys.stdout, indent=2, sort_keys=True)
    print(f"\n{text}")


if __name__ == "__main__":
    main()

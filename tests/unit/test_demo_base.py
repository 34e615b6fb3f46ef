"""The embedded base: small, whole, loadable by others, and a language model that beats counting words."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fullrank_node.demo.texts import write_texts
from fullrank_node.model.base import base_licence, resolve_base

BASE = resolve_base("embedded:demo")
FIGURES = json.loads((Path(__file__).parents[2] / "scripts/bench/results/demo_base.json").read_text())


def test_it_takes_at_most_four_megabytes() -> None:
    assert sum(path.stat().st_size for path in BASE.rglob("*")) <= 4_000_000


def test_it_loads_as_float32_with_exactly_the_stored_values() -> None:
    stored = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float16)
    loaded = AutoModelForCausalLM.from_pretrained(BASE)

    assert loaded.dtype == torch.float32
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    for (name, half), single in zip(stored.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(half.float(), single), name


def test_its_tokenizer_writes_any_text_and_gets_it_back() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    text = "def f(x):\n\treturn x ** 2  # naïve 漢字 🦦\n"

    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == 2048
    assert tokenizer.eos_token_id == 0
    assert tokenizer.pad_token_id == 1


def test_it_knows_prose_far_better_than_word_frequencies_do() -> None:
    assert FIGURES["loss"] < FIGURES["bigram"] < FIGURES["unigram"] < FIGURES["uniform"]
    assert FIGURES["loss"] < FIGURES["unigram"] - 2


def test_its_model_card_gives_the_figures_and_the_licence() -> None:
    card = (BASE / "README.md").read_text()

    assert f"**{FIGURES['loss']:.3f}**" in card
    assert f"{FIGURES['unigram']:.3f}" in card
    assert base_licence(BASE) == "psf-2.0"


def test_the_demo_texts_leave_it_something_to_learn_but_are_not_noise_to_it(tmp_path: Path) -> None:
    texts = write_texts(tmp_path, 1)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE)
    rows = [json.loads(line)["text"] for line in texts.heldout.read_text().splitlines()[:6]]
    losses = []
    with torch.no_grad():
        for row in rows:
            ids = tokenizer(row, return_tensors="pt")["input_ids"][:, :256]
            losses.append(model(input_ids=ids, labels=ids).loss.item())

    assert sum(losses) / len(losses) == pytest.approx(FIGURES["code_loss"], abs=0.7)
    assert sum(losses) / len(losses) > FIGURES["loss"]

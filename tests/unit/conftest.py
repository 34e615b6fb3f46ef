"""A language model of a few thousand parameters, made in seconds: what tests of training and loading use."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fullrank_protocol.genesis import Genesis, create_genesis, default_limits, default_rule, default_timing
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.wire import objects_pb2 as wire

os.environ.setdefault("OMP_NUM_THREADS", "1")

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "one",
    "red",
    "dog",
    "run",
    "far",
    "over",
    "blue",
    "hills",
]


def sentence(number: int) -> str:
    """Words in a fixed order that depends on the number: text that a model can learn."""
    start = number % len(WORDS)
    return " ".join(WORDS[(start + 3 * step) % len(WORDS)] for step in range(12)) + "."


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Byte-level BPE, trained here, with end-of-text and chat tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<end>", "<pad>", "<turn>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([sentence(number) for number in range(40)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<end>", pad_token="<pad>", extra_special_tokens=["<turn>"]
    )


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A Llama with width 32 and two layers as save_pretrained writes it, with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    path = tmp_path_factory.mktemp("bases") / "tiny"
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@dataclass(frozen=True, kw_only=True)
class Swarm:
    """A founder's key and the genesis over the tiny base."""

    key: SigningKey
    genesis: Genesis
    path: Path


@pytest.fixture
def make_swarm(tiny_base: Path, tmp_path: Path) -> Callable[..., Swarm]:
    """Make a genesis for the tiny base; keyword arguments are training hints, `embeddings` whether they are adapted."""
    from fullrank_node.model.base import base_files
    from fullrank_node.model.base_load import adaptable_modules, fingerprint, load_base
    from fullrank_protocol.blob import blob_ref

    def make(*, embeddings: bool = True, **hints: Any) -> Swarm:
        key = SigningKey.from_seed(bytes(31) + b"\x01")
        model = load_base(tiny_base)
        training = {
            "mode": wire.MODE_B, "rank": 4, "bits_b": 4, "bits_a": 4, "learning_rate_nano": 20_000_000,
            "warmup_steps": 1, "max_steps": 6, "batch_size": 2, "block_length": 32, "period_rounds": 2,
        }  # fmt: skip
        files = [
            wire.FileEntry(name=name, blob=blob_ref((tiny_base / name).read_bytes()).to_wire())
            for name in base_files(tiny_base)
        ]
        message = wire.Genesis(
            name="tiny",
            rule_version=1,
            created_at_ms=1_700_000_000_000,
            nonce=bytes(16),
            base=wire.BaseModel(tensors=fingerprint(model), files=files),
            modules=[one for one in adaptable_modules(model) if embeddings or "embed" not in one.name],
            max_rank=8,
            codecs=[1],
            timing=default_timing(),
            training=wire.Training(**(training | hints)),
            rule=default_rule(),
            limits=default_limits(),
            membership=wire.MembershipPolicy(
                policy=wire.INVITE, root_keys=[key.public_key], root_threshold=1, founders=[key.public_key]
            ),
        )
        genesis = create_genesis(key, message)
        path = tmp_path / "genesis.bin"
        path.write_bytes(genesis.envelope.encode())
        return Swarm(key=key, genesis=genesis, path=path)

    return make


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Two hundred sentences with a pattern that a model can learn."""
    return [" ".join(sentence(number + step) for step in range(3)) for number in range(200)]

"""What all trials of a process share: the base model, its texts, and one model in memory to load weights into."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fullrank_node.model.base_load import adaptable_modules, fingerprint, load_base, load_tokenizer
from fullrank_node.model.evaluate import held_out_loss
from fullrank_node.training.blocks import IS_TARGET, Blocks
from fullrank_protocol.genesis import (
    Genesis,
    Module,
    create_genesis,
    default_limits,
    default_rule,
    default_timing,
)
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.state import canonical_float32
from fullrank_protocol.wire import objects_pb2 as wire
from learning.arm import Float32Array, Weights
from learning.corpus import Corpus, Sources, read_corpus

MAX_RANK = 128
"""Highest rank of an arm: the width of the embedded base."""

TRAINING = wire.Training(
    mode=wire.MODE_B,
    rank=64,
    bits_b=2,
    bits_a=4,
    learning_rate_nano=2_000_000,
    warmup_steps=5,
    max_steps=200,
    batch_size=4,
    block_length=512,
    period_rounds=6,
)
"""Hints that no arm follows. Fixed, since every A is drawn from the id of the genesis that they stand in: with the
defaults of the day, a trial could not be run again."""

TOKEN_CAP, DUPLICATE_COSINE_MICRO = 1 << 20, 900_000
"""What stands in that genesis for the same reason, and is not in force: trials are weighed by today's defaults."""

FOUNDER = SigningKey.from_seed(hashlib.sha256(b"quality benchmark").digest())


class Bench:
    """A base and a corpus, ready for trials.

    Attributes:
        name: Of the base, with a digest of its tensors.
        model: On the CPU, float32, without gradients between two trainings.
        initial: The weights of the base, canonical.
        modules: What adapters adapt.
        linear: The names of those that are linear layers: all but the embeddings.
    """

    def __init__(self, base_dir: Path, corpus: Corpus, *, name: str) -> None:
        """Load the base.

        Raises:
            NodeError: It cannot be loaded.
        """
        self.model: Any = load_base(base_dir).requires_grad_(requires_grad=False)
        self.corpus = corpus
        self.initial: Weights = {
            parameter_name: canonical_float32(_copied(parameter))
            for parameter_name, parameter in self.model.named_parameters()
        }
        self._tensors = fingerprint(self.model)
        self._modules = adaptable_modules(self.model)
        digest = hashlib.sha256(b"".join(tensor.sha256 for tensor in self._tensors)).hexdigest()[:12]
        self.name = f"{name} ({digest})"
        self._geneses: dict[tuple[float, bool], Genesis] = {}
        embeddings = self.model.get_input_embeddings().weight
        self.linear = tuple(
            module.name for module in self._modules if self.model.get_parameter(module.name) is not embeddings
        )
        self.modules: tuple[Module, ...] = self.genesis().modules

    def genesis(self, *, outer_step: float = 1.0, embeddings: bool = True) -> Genesis:
        """Rules of a swarm over this base, as a founder gets them; the same id for the same choices."""
        chosen = (outer_step, embeddings)
        if chosen not in self._geneses:
            self._geneses[chosen] = self._make_genesis(*chosen)
        return self._geneses[chosen]

    def load(self, weights: Weights) -> None:
        """Bring the model to these weights."""
        import torch

        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(torch.from_numpy(weights[name]))

    def read(self, names: Iterable[str]) -> dict[str, Float32Array]:
        """Copies of some of the model's weights."""
        parameters = dict(self.model.named_parameters())
        return {name: _copied(parameters[name]) for name in names}

    def loss(self, weights: Weights, blocks: Blocks) -> float:
        """Mean loss of these weights on blocks, nats per token."""
        self.load(weights)
        found = held_out_loss(
            self.model,
            tokens_NT=blocks.tokens,
            targets_NT=(blocks.flags & IS_TARGET).astype(np.bool_),
            positions_NT=blocks.positions(),
        )
        return found.loss

    def _make_genesis(self, outer_step: float, embeddings: bool) -> Genesis:  # noqa: FBT001
        rule = default_rule()
        rule.outer_step.CopyFrom(Scaled.of(outer_step).to_wire())
        message = wire.Genesis(
            name="quality benchmark",
            rule_version=1,
            created_at_ms=1_700_000_000_000,
            nonce=bytes(16),
            base=wire.BaseModel(tensors=self._tensors),
            modules=[module for module in self._modules if embeddings or module.name in self.linear],
            max_rank=MAX_RANK,
            codecs=[1],
            timing=default_timing(),
            training=TRAINING,
            rule=rule,
            limits=default_limits(),
            membership=wire.MembershipPolicy(
                policy=wire.INVITE,
                root_keys=[FOUNDER.public_key],
                root_threshold=1,
                founders=[FOUNDER.public_key],
            ),
        )
        in_force = create_genesis(FOUNDER, message).rule
        message.rule.token_cap = TOKEN_CAP
        message.rule.duplicate_cosine_micro = DUPLICATE_COSINE_MICRO
        return replace(create_genesis(FOUNDER, message), rule=in_force)


def open_bench(base_dir: Path, sources: Sources, *, base_name: str) -> Bench:
    """Load base and texts, for one thread: trials run side by side in processes.

    Raises:
        NodeError: The base or a text cannot be read.
    """
    import torch

    torch.set_num_threads(1)
    return Bench(base_dir, read_corpus(sources, load_tokenizer(base_dir)), name=base_name)


def _copied(parameter: Any) -> Float32Array:
    copied: Float32Array = np.array(parameter.detach().numpy(), dtype=np.float32)
    return copied

"""Small swarms for tests: keys by name, a genesis of two modules, and every object that its members sign.

Keys come from names, so that every run makes the same bytes. Slots take 1000 ms and begin at 1 000 000.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fullrank_protocol.blob import blob_ref
from fullrank_protocol.checkpoint import (
    AcceptedContribution,
    Checkpoint,
    CheckpointKind,
    make_checkpoint,
    open_checkpoint,
)
from fullrank_protocol.contribution import Contribution, make_contribution, open_contribution
from fullrank_protocol.envelope import Envelope, open_envelope
from fullrank_protocol.genesis import Genesis, create_genesis, default_limits
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.vote import Vote, make_vote, open_vote
from fullrank_protocol.wire import objects_pb2 as wire

CREATED_AT_MS = 1_000_000
WINDOW_MS = 1_000


def seed_of(name: str) -> bytes:
    """The secret seed that belongs to a name."""
    return hashlib.sha256(f"test key {name}".encode()).digest()


def key_of(name: str) -> SigningKey:
    """The key that belongs to a name."""
    return SigningKey.from_seed(seed_of(name))


def id_of(name: str) -> bytes:
    """32 bytes that stand for the id of something that no test makes."""
    return hashlib.sha256(f"test id {name}".encode()).digest()


def genesis_message(
    *,
    founders: Sequence[str] = ("ada",),
    roots: Sequence[str] = ("ada",),
    root_threshold: int = 1,
    policy: int = wire.INVITE,
    stall_slots: int = 64,
) -> wire.Genesis:
    """A genesis with one linear module of shape (4, 3) and one dense one of 5 numbers."""
    return wire.Genesis(
        name="test swarm",
        rule_version=1,
        created_at_ms=CREATED_AT_MS,
        nonce=bytes(16),
        base=wire.BaseModel(
            reference="embedded:test",
            tensors=[
                wire.TensorHash(name="embed.weight", shape=[7, 3], sha256=id_of("embed")),
                wire.TensorHash(name="norm.weight", shape=[5], sha256=id_of("norm")),
                wire.TensorHash(name="up.weight", shape=[4, 3], sha256=id_of("up")),
            ],
            files=[wire.FileEntry(name="config.json", blob=blob_ref(b"{}").to_wire())],
            licence="MIT",
        ),
        modules=[
            wire.Module(name="norm.weight", kind=wire.DENSE, out_features=5, in_features=1),
            wire.Module(name="up.weight", kind=wire.LINEAR, out_features=4, in_features=3),
        ],
        max_rank=16,
        codecs=[1],
        timing=wire.Timing(slot_window_ms=WINDOW_MS, grace_ms=100, stall_slots=stall_slots),
        training=small_training(),
        rule=fixed_rule(),
        limits=default_limits(),
        membership=wire.MembershipPolicy(
            policy=wire.Policy.Name(policy),
            root_keys=sorted(key_of(name).public_key for name in roots),
            root_threshold=root_threshold,
            founders=sorted(key_of(name).public_key for name in founders),
        ),
    )


def small_training() -> wire.Training:
    """Hints that these small modules allow. Fixed, as whose turn it is in a slot follows from the genesis."""
    return wire.Training(
        mode=wire.MODE_B,
        rank=16,
        bits_b=4,
        bits_a=4,
        learning_rate_nano=2_000_000,
        warmup_steps=5,
        max_steps=200,
        batch_size=4,
        block_length=512,
        period_rounds=5,
    )


def fixed_rule() -> wire.AggregationRule:
    """How deltas are weighed. Fixed, for the same reason, and since vectors of hostile peers are made of it."""
    return wire.AggregationRule(
        max_contributions=64,
        token_cap=1 << 20,
        max_staleness_rounds=3,
        duplicate_cosine_micro=900_000,
        weiszfeld_steps=8,
        update_norm_cap_milli=1500,
        trailing_rounds=9,
        outer_step=Scaled.of(1.0).to_wire(),
        open_share_micro=200_000,
    )


@dataclass(frozen=True)
class Swarm:
    """A genesis, and objects of its members by name."""

    genesis: Genesis

    @property
    def id(self) -> bytes:
        return self.genesis.swarm

    def opened(self, envelope: Envelope) -> Envelope:
        """The same after a journey as bytes."""
        return open_envelope(envelope.encode(), swarm=self.id)

    def contribution(self, name: str, **fields: Any) -> Contribution:
        """A contribution on the genesis unless `fields` say otherwise."""
        given: dict[str, Any] = {
            "base_checkpoint": self.id,
            "base_slot": 0,
            "blob": blob_ref(b"delta of " + name.encode()),
            "codec": 1,
            "num_tokens": 2048,
            "num_steps": 4,
            "loss_first_micro": 3_000_000,
            "loss_last_micro": 2_500_000,
            "created_at_ms": CREATED_AT_MS + 500,
        }
        return open_contribution(
            self.opened(make_contribution(key_of(name), swarm=self.id, **(given | fields))), self.genesis
        )

    def vote(
        self,
        name: str,
        *,
        target: bytes,
        target_slot: int,
        source: bytes | None = None,
        source_slot: int = 0,
    ) -> Vote:
        """A vote from the genesis unless a source is given."""
        return open_vote(
            self.opened(
                make_vote(
                    key_of(name),
                    swarm=self.id,
                    source=self.id if source is None else source,
                    source_slot=source_slot,
                    target=target,
                    target_slot=target_slot,
                )
            )
        )

    def checkpoint_envelope(self, name: str = "ada", **fields: Any) -> Envelope:
        """A normal first checkpoint with one contribution of ada unless `fields` say otherwise."""
        given: dict[str, Any] = {
            "kind": CheckpointKind.NORMAL,
            "parent": self.id,
            "slot": 1,
            "round": 1,
            "model_digest": id_of("digest"),
            "update_norm": Scaled.of(0.5),
        }
        if fields.get("kind", CheckpointKind.NORMAL) == CheckpointKind.NORMAL:
            given["accepted"] = [AcceptedContribution(contribution=self.contribution("ada"), weight=Scaled.of(1.0))]
        else:
            given |= {"round": 0, "update_norm": Scaled.of(0.0)}
        return make_checkpoint(key_of(name), swarm=self.id, **(given | fields))

    def checkpoint(self, name: str = "ada", **fields: Any) -> Checkpoint:
        """The same, opened."""
        return open_checkpoint(self.opened(self.checkpoint_envelope(name, **fields)), self.genesis)


def swarm_of(
    *,
    founders: Sequence[str] = ("ada",),
    roots: Sequence[str] = ("ada",),
    root_threshold: int = 1,
    policy: int = wire.INVITE,
    stall_slots: int = 64,
) -> Swarm:
    """A swarm with these founders and root keys."""
    message = genesis_message(
        founders=founders, roots=roots, root_threshold=root_threshold, policy=policy, stall_slots=stall_slots
    )
    return Swarm(create_genesis(key_of(roots[0]), message))

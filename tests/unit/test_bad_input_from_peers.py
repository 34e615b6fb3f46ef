"""Whatever a peer sends: refused with a reason, nothing is lost, and what is sound after it is taken.

Ada and bob live in one loop; mallory offers objects to ada as any peer may. What ada says of an object stands in
her log; what became of a contribution, its author reads in `history`.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import BASE_DIGEST, key
from loop_swarm import SHAPES, LoopNode, LoopSwarm, loop_swarm, make_genesis, some_delta
from peers import until
from swarms import id_of, key_of

from fullrank_protocol.checkpoint import (
    AcceptedContribution,
    CheckpointKind,
    RefusedContribution,
    make_checkpoint,
)
from fullrank_protocol.codec import encode
from fullrank_protocol.contribution import open_contribution
from fullrank_protocol.delta import Delta
from fullrank_protocol.envelope import Envelope, open_envelope, seal
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import Genesis, create_genesis
from fullrank_protocol.parts import Dense, LowRank
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.vote import make_vote
from fullrank_protocol.wire import objects_pb2 as wire


@contextlib.asynccontextmanager
async def two(directory: Path, **limits: int) -> AsyncIterator[tuple[LoopSwarm, LoopNode, LoopNode]]:
    async with loop_swarm(directory, make_genesis("ada", "bob", **limits), "ada", "bob") as swarm:
        ada, bob = swarm.nodes
        yield swarm, ada, bob


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="fullrank_node")
    return caplog


async def takes_a_sound_one(swarm: LoopSwarm, ada: LoopNode, bob: LoopNode) -> None:
    """The node is up: a good contribution of bob's is merged by all in the next slot."""
    good = bob.contribute(some_delta(swarm.genesis, "good"))
    await swarm.everywhere(good)
    await swarm.next_slot()
    assert ada.verdict(good)[0] == bob.verdict(good)[0] == "accepted"


# ---- objects ---------------------------------------------------------------------------------------


def tampered(sound: Envelope) -> bytes:
    """The last bit of the signature is turned."""
    return replace(sound, signature=sound.signature[:-1] + bytes([sound.signature[-1] ^ 1])).encode()


def of_another_swarm(sound: Envelope) -> bytes:
    message = wire.Contribution.FromString(sound.payload)
    return seal(key_of("bob"), swarm=id_of("other swarm"), type=wire.CONTRIBUTION, message=message).encode()


def of_another_version(sound: Envelope) -> bytes:
    return replace(sound, version=2).encode()


def too_long(sound: Envelope) -> bytes:
    message = wire.Contribution.FromString(sound.payload)
    return wire.Envelope(
        version=1,
        swarm=sound.swarm,
        type=wire.CONTRIBUTION,
        payload=message.SerializeToString() + bytes(2000),
        public_key=sound.public_key,
        signature=sound.signature,
    ).SerializeToString()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (tampered, "signature"),
        (of_another_swarm, "belongs to swarm"),
        (of_another_version, "version 2"),
        (too_long, "bytes"),
        (lambda sound: sound.encode()[:-3], "does not parse"),
        (lambda _: b"", "version 0"),
    ],
    ids=["signature", "swarm", "version", "oversize", "truncated", "empty"],
)
async def test_an_object_that_is_not_what_it_says_is_refused_and_the_sound_one_after_it_taken(
    tmp_path: Path, log: pytest.LogCaptureFixture, spoil: Callable[[Envelope], bytes], words: str
) -> None:
    async with two(tmp_path) as (swarm, ada, bob):
        data = encode(some_delta(swarm.genesis, "bob"), swarm.genesis)
        bob.blobs.put_bytes(data)
        sound = bob.contribution(data)
        bad = spoil(sound)
        with pytest.raises(RejectError):
            open_envelope(bad, swarm=swarm.genesis.swarm)
        assert await ada.offered(bad) == 0
        (line,) = [record.getMessage() for record in log.records if "refused" in record.getMessage()]
        assert line.startswith(f"Object from {key('mallory').hex()[:8]} refused: ")
        assert words in line
        assert await ada.offered(bad, sound) == 1
        await until(lambda: ada.is_ready(sound))


async def test_a_checkpoint_with_a_wrong_parent_is_refused_by_its_place(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    async with two(tmp_path) as (swarm, ada, bob):
        await swarm.everywhere(bob.contribute(some_delta(swarm.genesis, "bob")))
        one = await swarm.next_slot()
        bob_again = bob.contribute(some_delta(swarm.genesis, "bob again"))
        await swarm.everywhere(bob_again)

        first, other = swarm.turns(2)

        def after(parent: bytes, slot: int, **fields: Any) -> Envelope:
            given = {"kind": CheckpointKind.EMPTY, "round": 1, "update_norm": Scaled.of(0.0)}
            given |= {"model_digest": one.model_digest, "swarm": swarm.genesis.swarm, "parent": parent, "slot": slot}
            return make_checkpoint(key_of(first.name), **given | fields)

        await other.offered(after(one.id, slot=1))
        assert "refused by rule SLOT: has slot 1, its parent has 1" in log.text
        late = open_contribution(bob.contribution(b"x", base=ada.runner.state.tree.root), swarm.genesis)
        refused = [RefusedContribution(contribution=late, rule=Rule.RANK, detail="")]
        await other.offered(after(one.id, slot=2, refused=refused))
        assert "refused by rule DUPLICATE" in log.text
        weighed = [
            AcceptedContribution(contribution=open_contribution(bob_again, swarm.genesis), weight=Scaled.of(9.0))
        ]
        wrong = after(one.id, slot=2, kind=CheckpointKind.NORMAL, round=2, accepted=weighed)
        await other.offered(wrong)
        await until(lambda: "refused: weighs" in log.text)
        await other.offered(after(wrong.id, slot=3, round=2))
        assert "refused by rule PARENT: follows " in log.text
        await other.offered(after(id_of("nowhere"), slot=2))
        assert other.head == one
        await swarm.next_slot()
        assert bob.verdict(bob_again)[0] == "accepted"


async def test_an_oversize_checkpoint_is_refused_by_the_swarms_own_limit(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    async with two(tmp_path, max_checkpoint_bytes=32 << 10) as (swarm, ada, bob):
        votes = []
        for number in range(200):
            mark = {"target": id_of(f"target {number}"), "target_slot": 1, "source_slot": 0}
            vote = make_vote(key_of("bob"), swarm=swarm.genesis.swarm, source=swarm.genesis.swarm, **mark)
            votes.append(vote.encode())
        message = wire.Checkpoint(
            kind=wire.EMPTY, parent=swarm.genesis.swarm, slot=2, model_digest=BASE_DIGEST, votes=sorted(votes)
        )
        await ada.offered(seal(key_of("bob"), swarm=swarm.genesis.swarm, type=wire.CHECKPOINT, message=message))
        assert "refused by rule SIZE" in log.text
        assert "at most 32768 allowed here" in log.text
        await takes_a_sound_one(swarm, ada, bob)


async def test_a_replayed_object_changes_nothing(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    async with two(tmp_path) as (swarm, ada, bob):
        mine = bob.contribute(some_delta(swarm.genesis, "bob"))
        await swarm.everywhere(mine)
        head = await swarm.next_slot()
        everything = [ada.store.get_object(each) for each, _, _ in ada.store.object_ids()]
        assert mine.encode() in everything
        replayed = [each for each in everything if each is not None] * 2
        assert await ada.offered(*replayed) == 0
        assert ada.head == head
        assert len(ada.store.object_ids()) == len(everything)
        assert ada.verdict(mine)[0] == "accepted"
        assert "refused" not in log.text
        await takes_a_sound_one(swarm, ada, bob)


async def test_an_object_that_nobody_keeps_and_a_stranger_cost_nothing(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    async with two(tmp_path) as (swarm, ada, bob):
        hint = seal(key_of("bob"), swarm=swarm.genesis.swarm, type=wire.ANNOUNCEMENT, message=wire.Announcement())
        message = wire.Contribution.FromString(bob.contribution(b"x").payload)
        strangers = seal(key_of("zoe"), swarm=swarm.genesis.swarm, type=wire.CONTRIBUTION, message=message)
        await ada.offered(hint, strangers)
        assert "announcement" in log.text
        assert strangers.id not in ada.runner.state.candidates
        assert not ada.store.has_object(strangers.id)
        await takes_a_sound_one(swarm, ada, bob)


# ---- deltas: the author reads the reason -----------------------------------------------------------


def low_rank(genesis: Genesis, **changes: Any) -> Delta:
    """A delta of one component for module a, with fields replaced."""
    rows, columns = SHAPES["a"]
    fields: dict[str, Any] = {
        "module": "a",
        "B_OR": np.full((rows, 1), 64, np.int8),
        "A_RI": np.full((1, columns), 64, np.int8),
        "scale_mantissa_R": (1,),
        "scale_exponent_R": (-20,),
    }
    del genesis
    return Delta.of([LowRank(**(fields | changes))])


def lenient(genesis: Genesis, **modules: tuple[int, int]) -> Genesis:
    """Another swarm's genesis, whose rules allow what this one's do not: what a broken node encodes with."""
    message = wire.Genesis.FromString(genesis.envelope.payload)
    message.max_rank = 1024
    message.limits.max_scale_exponent = 16
    for module in message.modules:
        if module.name in modules:
            module.out_features, module.in_features = modules[module.name]
            module.kind = wire.LINEAR if module.in_features > 1 else wire.DENSE
    for tensor in message.base.tensors:
        if tensor.name in modules:
            tensor.shape[:] = [size for size in modules[tensor.name] if size > 1]
    return create_genesis(key_of("ada"), message)


def wrong_shape(genesis: Genesis) -> bytes:
    """Factors of a matrix of 24 by 40, where the swarm has one of 48 by 40."""
    given = {"B_OR": np.full((24, 1), 64, np.int8), "A_RI": np.full((1, 40), 64, np.int8)}
    return encode(low_rank(genesis, **given), lenient(genesis, a=(24, 40)))


def wrong_kind(genesis: Genesis) -> bytes:
    """A vector for what is a matrix here."""
    dense = Delta.of([Dense(module="a", values_O=np.full(48, 64, np.int8), scale_mantissa=1, scale_exponent=-20)])
    return encode(dense, lenient(genesis, a=(48, 1)))


def huge_scale(genesis: Genesis) -> bytes:
    return encode(low_rank(genesis, scale_exponent_R=(9,)), lenient(genesis))


def high_rank(genesis: Genesis) -> bytes:
    rng = np.random.default_rng(0)
    b = rng.integers(-127, 128, size=(48, 20)).astype(np.int8)
    a = rng.integers(-127, 128, size=(20, 40)).astype(np.int8)
    b[0], a[:, 0] = 127, 127
    order = sorted(range(20), key=lambda k: (b[:, k].tobytes(), a[k].tobytes()))
    given = {"scale_mantissa_R": (1,) * 20, "scale_exponent_R": (-20,) * 20}
    return encode(low_rank(genesis, B_OR=b[:, order], A_RI=a[order], **given), lenient(genesis))


def cut_short(genesis: Genesis) -> bytes:
    return encode(some_delta(genesis, "bob"), genesis)[:-9]


@pytest.mark.parametrize(
    ("make", "rule", "words"),
    [
        (wrong_shape, Rule.CODEC, "required 25 for this swarm's shapes"),
        (wrong_kind, Rule.SHAPE, "a: found a dense part, required low-rank components"),
        (huge_scale, Rule.SCALE, "a: found scale exponent 9, required -40 to 0"),
        (high_rank, Rule.RANK, "found rank 20, required 1 to 16"),
        (cut_short, Rule.CODEC, "the delta's zstd frame is malformed"),
        (lambda _: b"no delta at all", Rule.CODEC, "found 1679847278 parts, required 1 to 3"),
    ],
    ids=["shape", "kind", "scale", "rank", "truncated", "garbage"],
)
async def test_a_delta_that_breaks_a_rule_is_refused_by_all_and_its_author_reads_why(
    tmp_path: Path, make: Callable[[Genesis], bytes], rule: Rule, words: str
) -> None:
    async with two(tmp_path) as (swarm, ada, bob):
        bad = bob.contribute(make(swarm.genesis))
        await swarm.everywhere(bad)
        for node in (ada, bob):
            verdict, name, detail = node.verdict(bad)
            assert (verdict, name) == ("refused", rule.name.lower())
            assert words in detail
            assert len(detail) > 10
        head = await swarm.next_slot()
        (entry,) = ada.runner.state.tree.nodes[head.id].checkpoint.refused  # type: ignore[union-attr]
        assert (entry.contribution.id, entry.rule) == (bad.id, rule)
        assert bob.verdict(bad) == ("refused", rule.name.lower(), entry.detail)
        await takes_a_sound_one(swarm, ada, bob)


async def test_a_second_delta_on_one_base_is_refused_and_its_author_reads_why(tmp_path: Path) -> None:
    async with two(tmp_path) as (swarm, ada, bob):
        first = bob.contribute(some_delta(swarm.genesis, "one"))
        second = bob.contribute(some_delta(swarm.genesis, "two"))
        assert bob.verdict(second)[:2] == ("refused", "duplicate")
        assert "is a second contribution of " in bob.verdict(second)[2]
        await swarm.everywhere(first)
        await swarm.next_slot()
        assert bob.verdict(first)[0] == "accepted"
        await takes_a_sound_one(swarm, ada, bob)


async def test_a_blob_that_does_not_hash_to_its_name_is_left_out_and_stays_eligible(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    async with two(tmp_path) as (swarm, ada, bob):
        bob.network.spoil = lambda data: data[:-1] + bytes([data[-1] ^ 1])
        held = bob.contribute(some_delta(swarm.genesis, "held"))
        await until(lambda: "is not to be had yet" in log.text)
        assert "chunk" in log.text
        assert not ada.blobs.has(wire_blob_id(held))
        assert ada.verdict(held)[0] == "pending"
        bob.network.spoil = lambda data: data
        swarm.clock.time_ms += 5_000
        await swarm.everywhere(held)
        await swarm.next_slot()
        assert bob.verdict(held)[0] == "accepted"


async def test_a_truncated_blob_is_left_out_and_stays_eligible(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    async with two(tmp_path) as (swarm, ada, bob):
        bob.network.spoil = lambda data: data[: len(data) // 2]
        held = bob.contribute(some_delta(swarm.genesis, "held"))
        await until(lambda: "is not to be had yet" in log.text)
        assert not ada.blobs.has(wire_blob_id(held))
        bob.network.spoil = lambda data: data
        swarm.clock.time_ms += 5_000
        await swarm.everywhere(held)
        await swarm.next_slot()
        assert bob.verdict(held)[0] == "accepted"


def wire_blob_id(contribution: Envelope) -> bytes:
    return bytes(wire.Contribution.FromString(contribution.payload).blob.id)

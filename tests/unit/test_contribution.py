"""A contribution's manifest stays within the swarm's bounds."""

from typing import Any

import pytest
from swarms import CREATED_AT_MS, id_of, key_of, swarm_of

from fullrank_protocol.blob import BlobRef, blob_ref
from fullrank_protocol.contribution import make_contribution, open_contribution
from fullrank_protocol.envelope import seal
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.limits import MAX_RECORD_BYTES, MAX_TOKENS
from fullrank_protocol.wire import objects_pb2 as wire

SWARM = swarm_of()


def test_a_contribution_reads_back() -> None:
    envelope = make_contribution(
        key_of("bob"),
        swarm=SWARM.id,
        base_checkpoint=id_of("base"),
        base_slot=7,
        blob=blob_ref(b"delta"),
        codec=1,
        num_tokens=4096,
        num_steps=8,
        loss_first_micro=3_000_000,
        loss_last_micro=2_900_000,
        created_at_ms=CREATED_AT_MS,
    )
    contribution = open_contribution(SWARM.opened(envelope), SWARM.genesis)
    assert contribution.id == envelope.id
    assert contribution.member == key_of("bob").public_key
    assert contribution.base_checkpoint == id_of("base")
    assert contribution.base_slot == 7
    assert contribution.blob == blob_ref(b"delta")
    assert (contribution.codec, contribution.num_tokens, contribution.num_steps) == (1, 4096, 8)
    assert (contribution.loss_first_micro, contribution.loss_last_micro) == (3_000_000, 2_900_000)
    assert contribution.created_at_ms == CREATED_AT_MS
    assert contribution.envelope.encode() == envelope.encode()


def test_a_contribution_fits_into_a_dht_record() -> None:
    contribution = SWARM.contribution(
        "bob",
        base_checkpoint=id_of("base"),
        base_slot=2**53,
        num_tokens=MAX_TOKENS,
        num_steps=1_000_000,
        loss_first_micro=2**32 - 1,
        loss_last_micro=2**32 - 1,
    )
    assert len(contribution.envelope.encode()) < MAX_RECORD_BYTES // 2


BAD: list[tuple[dict[str, Any], Rule, str]] = [
    ({"base_checkpoint": id_of("base")}, Rule.SLOT, "the base has slot 0"),
    ({"base_slot": 1}, Rule.SLOT, "the base has slot 1; the genesis has slot 0"),
    ({"base_checkpoint": b"short", "base_slot": 1}, Rule.SCHEMA, "base checkpoint has 5 bytes, 32 required"),
    ({"base_checkpoint": id_of("base"), "base_slot": 2**60}, Rule.SLOT, "base slot"),
    ({"codec": 0}, Rule.CODEC, r"codec 0 is not allowed here: \[1\]"),
    ({"codec": 2}, Rule.CODEC, "codec 2"),
    ({"num_tokens": 0}, Rule.TOKENS, "number of tokens is 0"),
    ({"num_tokens": MAX_TOKENS + 1}, Rule.TOKENS, "number of tokens is 1099511627777"),
    ({"num_steps": 0}, Rule.TOKENS, "number of steps is 0"),
    ({"created_at_ms": 0}, Rule.SCHEMA, "time of the contribution is 0"),
    ({"blob": BlobRef(id=bytes(32), num_bytes=0)}, Rule.SIZE, "delta's number of bytes is 0"),
    (
        {"blob": BlobRef(id=bytes(32), num_bytes=(256 << 20) + 1)},
        Rule.SIZE,
        "delta's number of bytes is 268435457, 1 to 268435456 required",
    ),
    ({"blob": BlobRef(id=bytes(31), num_bytes=1)}, Rule.SCHEMA, "id of the delta has 31 bytes"),
]


@pytest.mark.parametrize(("fields", "rule", "words"), BAD)
def test_a_field_out_of_bounds_is_refused_with_its_numbers(fields: dict[str, Any], rule: Rule, words: str) -> None:
    with pytest.raises(RejectError, match=words) as caught:
        SWARM.contribution("bob", **fields)
    assert caught.value.rule is rule


def test_a_contribution_without_a_blob_is_refused() -> None:
    envelope = seal(key_of("bob"), swarm=SWARM.id, type=wire.CONTRIBUTION, message=wire.Contribution(num_tokens=1))
    with pytest.raises(RejectError, match="has no blob"):
        open_contribution(envelope, SWARM.genesis)


def test_a_contribution_to_another_swarm_is_refused() -> None:
    other = swarm_of(founders=("ada", "bob"))
    with pytest.raises(RejectError, match=SWARM.id.hex()) as caught:
        open_contribution(SWARM.contribution("bob").envelope, other.genesis)
    assert caught.value.rule is Rule.SWARM

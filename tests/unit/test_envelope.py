"""Envelopes: one form, one id, one signature, and a reason for everything else."""

import hashlib
import struct
from typing import Any

import pytest
from swarms import id_of, key_of, swarm_of

from fullrank_protocol.envelope import (
    MAX_BYTES_OF_TYPE,
    MESSAGE_OF_TYPE,
    NO_SWARM,
    Envelope,
    canonical_bytes,
    decode_payload,
    open_envelope,
    pre_authentication_encoding,
    seal,
    type_name,
)
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.identity import GROUP_ORDER, verify
from fullrank_protocol.limits import MAX_ENVELOPE_BYTES, MAX_RECORD_BYTES
from fullrank_protocol.wire import objects_pb2 as wire

SWARM = id_of("swarm")
VOTE = wire.Vote(source=SWARM, source_slot=0, target=id_of("target"), target_slot=1)


def sealed() -> Envelope:
    return seal(key_of("ada"), swarm=SWARM, type=wire.VOTE, message=VOTE)


def resigned(**changes: Any) -> bytes:
    """A vote's envelope with changed fields, under a signature that fits them."""
    envelope = sealed()
    fields: dict[str, Any] = {
        "version": 1,
        "swarm": SWARM,
        "type": wire.VOTE,
        "payload": envelope.payload,
        "public_key": envelope.public_key,
    } | changes
    signature = key_of("ada").sign(pre_authentication_encoding(**fields))
    return canonical_bytes(wire.Envelope(**fields, signature=signature))


def refusal_of(data: bytes, *, swarm: bytes | None = SWARM) -> RejectError:
    with pytest.raises(RejectError) as caught:
        open_envelope(data, swarm=swarm)
    return caught.value


def test_what_is_signed_is_a_tag_and_every_field_behind_its_length() -> None:
    parts = [b"fullrank.v1.envelope", b"\1\0\0\0", SWARM, b"\4\0\0\0", b"payload", b"k" * 32]
    expected = b"".join(struct.pack("<Q", len(part)) + part for part in parts)
    assert (
        pre_authentication_encoding(version=1, swarm=SWARM, type=4, payload=b"payload", public_key=b"k" * 32)
        == expected
    )


def test_id_and_signature_cover_the_same_bytes() -> None:
    envelope = sealed()
    signed = pre_authentication_encoding(
        version=1, swarm=SWARM, type=wire.VOTE, payload=envelope.payload, public_key=key_of("ada").public_key
    )
    assert envelope.id == hashlib.sha256(signed).digest()
    assert verify(key_of("ada").public_key, signed, envelope.signature)


def test_an_envelope_survives_the_journey_as_bytes() -> None:
    envelope = sealed()
    arrived = open_envelope(envelope.encode(), swarm=SWARM)
    assert arrived == envelope
    assert arrived.encode() == envelope.encode()
    assert decode_payload(arrived, wire.Vote) == VOTE


def test_any_swarm_passes_when_none_is_asked_for() -> None:
    assert open_envelope(sealed().encode(), swarm=None).swarm == SWARM


def test_every_known_type_has_a_payload_and_a_size() -> None:
    known = set(wire.ObjectType.values()) - {wire.OBJECT_TYPE_UNSPECIFIED}
    assert set(MESSAGE_OF_TYPE) == known == set(MAX_BYTES_OF_TYPE)
    assert type_name(wire.TAKE_UP) == "take up"
    assert type_name(99) == "type 99"


def test_another_swarm_is_refused() -> None:
    error = refusal_of(sealed().encode(), swarm=id_of("other"))
    assert error.rule is Rule.SWARM
    assert SWARM.hex() in error.detail


def test_another_version_is_refused() -> None:
    error = refusal_of(resigned(version=2))
    assert error.rule is Rule.VERSION
    assert error.detail == "the envelope has protocol version 2, 1 required"


@pytest.mark.parametrize("type_", [0, 19, 2**31 - 1])
def test_an_unknown_type_is_refused(type_: int) -> None:
    error = refusal_of(resigned(type=type_))
    assert error.rule is Rule.SCHEMA
    assert f"unknown object type {type_}" in error.detail


def test_a_changed_field_breaks_the_signature() -> None:
    message = wire.Envelope()
    for field, value in [
        ("payload", canonical_bytes(wire.Vote(source=SWARM, target=id_of("target"), target_slot=2))),
        ("swarm", id_of("other")),
        ("type", wire.CONTRIBUTION),
        ("public_key", key_of("bob").public_key),
        ("signature", bytes(64)),
    ]:
        message.ParseFromString(sealed().encode())
        setattr(message, field, value)
        error = refusal_of(canonical_bytes(message), swarm=None)
        assert error.rule is Rule.SIGNATURE, field


def test_a_signature_with_another_scalar_for_the_same_point_is_refused() -> None:
    message = wire.Envelope.FromString(sealed().encode())
    scalar = int.from_bytes(message.signature[32:], "little") + GROUP_ORDER
    message.signature = message.signature[:32] + scalar.to_bytes(32, "little")
    assert refusal_of(canonical_bytes(message)).rule is Rule.SIGNATURE


def test_a_small_order_signer_is_refused_by_name() -> None:
    message = wire.Envelope.FromString(sealed().encode())
    message.public_key = (1).to_bytes(32, "little")
    error = refusal_of(canonical_bytes(message))
    assert error.rule is Rule.SIGNATURE
    assert "small order" in error.detail


@pytest.mark.parametrize(("field", "rule"), [("swarm", Rule.SCHEMA), ("signature", Rule.SCHEMA)])
@pytest.mark.parametrize("change", [b"", b"\0" * 31, b"\0" * 65])
def test_fields_of_another_length_are_refused(field: str, rule: Rule, change: bytes) -> None:
    message = wire.Envelope.FromString(sealed().encode())
    setattr(message, field, change)
    assert refusal_of(canonical_bytes(message), swarm=None).rule is rule


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\x08",
        b"not an envelope at all",
        sealed().encode()[:-1],
        sealed().encode() + b"\0",
        b"\x0b" * 200,  # groups inside groups
    ],
)
def test_bytes_that_do_not_parse_are_refused(data: bytes) -> None:
    assert refusal_of(data).rule in (Rule.SCHEMA, Rule.VERSION)


def test_trailing_unknown_reordered_repeated_and_padded_fields_are_refused() -> None:
    good = sealed().encode()
    version, rest = good[:2], good[2:]
    assert version == b"\x08\x01"
    for data in [
        good + b"\x38\x01",  # an unknown field 7
        rest + version,  # another order
        version + good,  # a field twice
        b"\x08\x81\x00" + rest,  # a longer varint for the same number
    ]:
        error = refusal_of(data)
        assert error.rule is Rule.SCHEMA
        assert "canonical form" in error.detail


def test_a_payload_must_be_canonical_too() -> None:
    good = canonical_bytes(VOTE)
    for payload in [good + b"\x28\x01", good + good, good + b"\x10\x00"]:
        envelope = open_envelope(resigned(payload=payload), swarm=SWARM)
        with pytest.raises(RejectError, match="canonical form") as caught:
            decode_payload(envelope, wire.Vote)
        assert caught.value.rule is Rule.SCHEMA


def test_a_payload_that_does_not_parse_is_refused() -> None:
    for payload in [b"\xff", b"\x0a\x05abc", b"\x1a\x03\xff\xfe\xfd"]:
        envelope = open_envelope(resigned(type=wire.ADMISSION, payload=payload), swarm=SWARM)
        with pytest.raises(RejectError, match="payload of the admission") as caught:
            decode_payload(envelope, wire.Admission)
        assert caught.value.rule is Rule.SCHEMA


def test_a_payload_is_read_as_its_own_type_only() -> None:
    with pytest.raises(RejectError, match="found a vote where a checkpoint is required"):
        decode_payload(sealed(), wire.Checkpoint)


def test_oversize_is_refused_before_parsing() -> None:
    error = refusal_of(b"\xff" * (MAX_ENVELOPE_BYTES + 1))
    assert error.rule is Rule.SIZE
    assert str(MAX_ENVELOPE_BYTES) in error.detail


def test_each_type_has_its_own_largest_size() -> None:
    error = refusal_of(resigned(payload=bytes(MAX_RECORD_BYTES)))
    assert error.rule is Rule.SIZE
    assert error.detail == "the vote has 1165 bytes, at most 1024 allowed"
    assert MAX_BYTES_OF_TYPE[wire.CHECKPOINT] == 4 << 20
    assert MAX_BYTES_OF_TYPE[wire.GENESIS] == 16 << 20


def test_our_own_mistakes_when_sealing_are_no_rejections() -> None:
    with pytest.raises(TypeError, match="a vote cannot hold Checkpoint"):
        seal(key_of("ada"), swarm=SWARM, type=wire.VOTE, message=wire.Checkpoint())
    with pytest.raises(ValueError, match="at most 1024 allowed"):
        seal(key_of("ada"), swarm=SWARM, type=wire.VOTE, message=wire.Vote(source=bytes(1024)))


def test_a_genesis_belongs_to_the_swarm_of_its_own_id() -> None:
    swarm = swarm_of()
    data = swarm.genesis.envelope.encode()
    assert open_envelope(data, swarm=swarm.id).swarm == NO_SWARM
    error = refusal_of(data, swarm=id_of("other"))
    assert error.rule is Rule.SWARM
    assert swarm.id.hex() in error.detail


def test_a_genesis_that_names_a_swarm_is_refused() -> None:
    message = wire.Genesis.FromString(swarm_of().genesis.envelope.payload)
    envelope = seal(key_of("ada"), swarm=SWARM, type=wire.GENESIS, message=message)
    assert refusal_of(envelope.encode()).rule is Rule.SWARM


def test_a_repeated_check_of_the_same_bytes_gives_the_same_answer() -> None:
    bad = wire.Envelope.FromString(sealed().encode())
    bad.signature = bytes(64)
    for _ in range(3):
        assert open_envelope(sealed().encode(), swarm=SWARM).id == sealed().id
        assert refusal_of(canonical_bytes(bad)).rule is Rule.SIGNATURE

"""What a DHT node stores and believes: a record of its author, under the place and with the life it was signed for."""

import math
import struct
from typing import Any

import pytest
from swarms import id_of, key_of

from fullrank_node.network.packed import MAX_NESTING, check_packed
from fullrank_node.network.records import (
    NUM_SHARDS,
    TYPES_OF_KIND,
    Audience,
    Kind,
    Place,
    encode_body,
    open_record,
    pack_binary,
    place_of,
    places_of,
    shard_of,
    sign_record,
    unpack_binary,
)
from fullrank_node.network.validator import LIFETIME_TOLERANCE_MS, RecordRules
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.hints import make_announcement, make_peer
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.limits import MAX_RECORD_BYTES
from fullrank_protocol.vote import make_vote
from fullrank_protocol.wire import objects_pb2 as wire

SWARM = id_of("swarm")
ADA = key_of("ada")
EVE = key_of("eve")
NOW_MS = 1_700_000_000_000
EXPIRES_S = NOW_MS / 1000 + 60


class StoppedClock:
    def now_ms(self) -> int:
        return NOW_MS


def vote(key: SigningKey = ADA, *, swarm: bytes = SWARM) -> Envelope:
    return make_vote(key, swarm=swarm, source=id_of("a"), source_slot=1, target=id_of("b"), target_slot=5)


def record(
    *,
    envelope: Envelope | None = None,
    place: Place | None = None,
    author: SigningKey = ADA,
    signer: SigningKey | None = None,
    swarm: bytes = SWARM,
    expiration_s: float = EXPIRES_S,
    body: bytes | None = None,
) -> dict[str, Any]:
    """A record as a DHT node is offered it; good unless told otherwise."""
    envelope = envelope or vote()
    place = place or place_of(Kind.VOTE, 5, Audience.MEMBERS, author.public_key)
    dht_id, subkey = place.dht_id(swarm), pack_binary(author.public_key)
    value = sign_record(
        signer or author,
        dht_id=dht_id,
        subkey=subkey,
        value=pack_binary(encode_body(place, envelope) if body is None else body),
        expiration_s=expiration_s,
    )
    return {"dht_id": dht_id, "subkey": subkey, "value": value, "expiration_s": expiration_s}


def rules(**settings: Any) -> RecordRules:
    return RecordRules(swarm=SWARM, clock=StoppedClock(), max_lifetime_ms=120_000, **settings)


def reason(offered: dict[str, Any], **settings: Any) -> str:
    """Why a record is refused."""
    checker = rules(**settings)
    with pytest.raises(RejectError) as caught:
        checker.check(**offered)
    assert not checker.accepts(**offered)
    assert checker.num_refused == 1
    return caught.value.detail


def test_an_authors_own_record_is_stored_and_read_back() -> None:
    offered = record()
    checker = rules()
    assert checker.accepts(**offered)
    assert checker.accepts(**offered)  # Known by now.
    opened = open_record(swarm=SWARM, **offered)
    assert opened.envelope == vote()
    assert opened.place == Place(kind=Kind.VOTE, audience=Audience.MEMBERS, slot=5, shard=shard_of(ADA.public_key))


def test_a_record_moved_under_another_key_is_refused() -> None:
    for elsewhere in (
        place_of(Kind.VOTE, 6, Audience.MEMBERS, ADA.public_key),
        place_of(Kind.VOTE, 5, Audience.OTHERS, ADA.public_key),
        place_of(Kind.RECORD, 5, Audience.MEMBERS, ADA.public_key),
    ):
        assert "not made for" in reason(record() | {"dht_id": elsewhere.dht_id(SWARM)})
    other_swarm = place_of(Kind.VOTE, 5, Audience.MEMBERS, ADA.public_key).dht_id(id_of("other"))
    assert "not made for" in reason(record() | {"dht_id": other_swarm})


def test_a_record_under_another_authors_subkey_is_refused() -> None:
    stolen = record() | {"subkey": pack_binary(EVE.public_key)}
    assert reason(stolen)
    # Eve signs the record itself, but the object in it is ada's.
    place = place_of(Kind.VOTE, 5, Audience.MEMBERS, EVE.public_key)
    assert "another author" in reason(record(envelope=vote(ADA), place=place, author=EVE))
    assert "not signed by the key" in reason(record(signer=EVE))


def test_a_record_without_an_owner_is_refused() -> None:
    for subkey in (b"\xc0", b"", pack_binary(b"short"), b"\xd9\x20" + ADA.public_key, ADA.public_key):
        assert "no subkey" in reason(record() | {"subkey": subkey})


def test_a_record_cannot_be_given_another_life() -> None:
    assert "not signed" in reason(record() | {"expiration_s": EXPIRES_S + 1})
    for expiry in (math.inf, -math.inf, math.nan):
        assert "a finite time required" in reason(record(expiration_s=expiry))
    longest_s = (NOW_MS + 120_000 + LIFETIME_TOLERANCE_MS) / 1000
    assert rules().accepts(**record(expiration_s=longest_s))
    assert "at most 120000 allowed" in reason(record(expiration_s=longest_s + 1))
    assert "at most 120000 allowed" in reason(record(expiration_s=NOW_MS / 1000 + 10 * 365 * 86_400))


def test_a_record_that_has_just_expired_does_not_spoil_its_dictionary() -> None:
    assert rules().accepts(**record(expiration_s=NOW_MS / 1000 - 1))


def test_an_object_of_the_wrong_kind_is_refused() -> None:
    for kind, types in TYPES_OF_KIND.items():
        slot = 0 if kind == Kind.PEER else 5
        place = place_of(kind, slot, Audience.MEMBERS, ADA.public_key)
        body = encode_body(place_of(Kind.VOTE, slot, Audience.MEMBERS, ADA.public_key), vote())
        body = body[:1] + bytes([kind]) + body[2:]
        offered = record(place=place, body=body)
        if wire.VOTE in types:
            assert rules().accepts(**offered)
        else:
            assert "found a vote among" in reason(offered)
    with pytest.raises(ValueError, match="does not belong"):
        encode_body(place_of(Kind.PEER, 0, Audience.MEMBERS, ADA.public_key), vote())


def test_an_object_of_another_swarm_or_with_a_broken_signature_is_refused() -> None:
    assert "swarm" in reason(record(envelope=vote(swarm=id_of("other"))))
    good = vote()
    forged = Envelope(
        version=good.version,
        swarm=good.swarm,
        type=good.type,
        payload=good.payload,
        public_key=good.public_key,
        signature=bytes(64),
    )
    assert "signature" in reason(record(envelope=forged))


def test_an_oversize_record_is_refused_before_it_is_looked_at() -> None:
    assert f"at most {3 + 11 + MAX_RECORD_BYTES + 64} allowed" in reason(record() | {"value": bytes(2000)})


def test_bytes_that_mean_nothing_are_refused() -> None:
    for value in (b"", bytes(64), pack_binary(b"x") + bytes(64), pack_binary(bytes(11)) + bytes(64)):
        assert reason(record() | {"value": value})
    good = record()["value"]
    assert reason(record() | {"value": good[:-1]})
    assert reason(record() | {"value": good + b"!"})
    assert reason(record() | {"value": b"\xc5" + good[1:]})
    longer_than_needed = b"\xc5\x00\x05hello"
    with pytest.raises(RejectError):
        unpack_binary(longer_than_needed)
    for data in (b"", b"five!", bytes(255), bytes(256), bytes(65_535)):
        assert unpack_binary(pack_binary(data)) == data


def test_slots_far_away_are_refused_once_the_time_is_known() -> None:
    assert rules(slot_now=lambda: 5).accepts(**record())
    assert rules(slot_now=lambda: 1).accepts(**record())
    assert "-256 to 4 required" in reason(record(), slot_now=lambda: 0)
    assert "6 to 266 required" in reason(record(), slot_now=lambda: 262)


def test_peer_records_belong_to_no_slot() -> None:
    peer = make_peer(
        ADA, swarm=SWARM, addresses=["/ip4/192.0.2.1/tcp/4001"], issued_at_ms=NOW_MS, software="fullrank 0.1.0"
    )
    place = place_of(Kind.PEER, 0, Audience.OTHERS, ADA.public_key)
    assert rules(slot_now=lambda: 10_000).accepts(**record(envelope=peer, place=place))
    place = place_of(Kind.PEER, 7, Audience.OTHERS, ADA.public_key)
    assert "0 required" in reason(record(envelope=peer, place=place))


def test_large_objects_are_announced() -> None:
    announcement = make_announcement(
        ADA, swarm=SWARM, object_id=id_of("checkpoint"), object_type=wire.CHECKPOINT, slot=5, num_bytes=70_000
    )
    place = place_of(Kind.CHECKPOINT, 5, Audience.MEMBERS, ADA.public_key)
    assert rules().accepts(**record(envelope=announcement, place=place))


def test_authors_are_spread_over_the_shards_and_every_shard_is_looked_up() -> None:
    assert [shard_of(bytes([first]) + bytes(31)) for first in (0, 63, 64, 127, 128, 191, 192, 255)] == [
        0, 0, 1, 1, 2, 2, 3, 3,
    ]  # fmt: skip
    places = places_of(Kind.VOTE, 5)
    assert len({place.dht_key(SWARM) for place in places}) == len(places) == 2 * NUM_SHARDS
    for audience in Audience:
        assert place_of(Kind.VOTE, 5, audience, ADA.public_key) in places


def test_where_a_record_lies_never_changes() -> None:
    place = Place(kind=Kind.VOTE, audience=Audience.MEMBERS, slot=5, shard=2)
    assert place.dht_key(bytes(32)).hex() == "ca879c796eea1edc4d3220f10c810fa782549bc83972df67209c40d40117a169"
    assert place.dht_id(bytes(32)).hex() == "fb961a0e77e928ffb58e304f16351636de42d178"


# ---- MessagePack, before it is unpacked ------------------------------------------------------------


def test_what_the_dht_really_sends_passes() -> None:
    for data in (
        b"\xc0",
        b"\xcb" + struct.pack(">d", 1.5),
        pack_binary(bytes(32)),
        b"\x93\x01\xa3abc\xc3",
        b"\x81\xa1k\x92\x00\xff",
        b"\xd6\x01abcd",
        b"\xdc\x00\x02\x01\x02",
    ):
        check_packed(data)
    entries = b"\x93" + pack_binary(bytes(32)) + pack_binary(bytes(1000)) + b"\xcb" + struct.pack(">d", 1e9)
    dictionary = b"\x93\xcb" + struct.pack(">d", math.inf) + b"\xcb" + struct.pack(">d", 1e9)
    dictionary += b"\xdc" + struct.pack(">H", 3000) + entries * 3000
    check_packed(b"\xc9" + struct.pack(">I", len(dictionary)) + b"\x50" + dictionary)


def test_deep_nesting_is_refused() -> None:
    check_packed(b"\x91" * MAX_NESTING + b"\xc0")
    for data in (
        b"\x91" * (MAX_NESTING + 1) + b"\xc0",
        b"\x91" * 100_000,
        b"\x81\xc0" * 5000 + b"\xc0",
    ):
        with pytest.raises(RejectError, match="nested"):
            check_packed(data)
    inside_out = b"\xc0"
    for _ in range(MAX_NESTING + 1):  # A tuple in a tuple in a tuple: each is packed bytes in the next.
        content = b"\x91" + inside_out
        inside_out = b"\xc9" + struct.pack(">I", len(content)) + b"\x40" + content
    with pytest.raises(RejectError, match="nested"):
        check_packed(inside_out)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xc4\x05abc",
        b"\xdd\xff\xff\xff\xff\xc0",
        b"\xdf\xff\xff\xff\xff\xc0",
        b"\x92\xc0",
        b"\xc0\xc0",
        b"\xc7\x05\x50\x91",
        b"\xcb\x00",
        b"\xc7",
        b"\xd4",
        b"\xc7\x00",
    ],
)
def test_broken_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(RejectError):
        check_packed(data)


def test_too_many_or_too_large_values_are_refused() -> None:
    with pytest.raises(RejectError) as caught:
        check_packed(bytes(5 << 20))
    assert caught.value.rule == Rule.SIZE
    with pytest.raises(RejectError):
        check_packed(b"\xdd" + struct.pack(">I", 100_000) + b"\xc0" * 100_000)

"""Hints fit into a DHT record and say nothing strange."""

import pytest
from swarms import id_of, key_of, swarm_of

from fullrank_protocol.envelope import Envelope, seal
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.hints import make_announcement, make_peer, open_announcement, open_peer
from fullrank_protocol.identity import peer_id
from fullrank_protocol.limits import MAX_RECORD_BYTES
from fullrank_protocol.wire import objects_pb2 as wire

SWARM = swarm_of()
ADDRESS = f"/ip4/192.0.2.1/tcp/4001/p2p/{peer_id(key_of('ada').public_key)}"


def peer(**fields: object) -> Envelope:
    message = wire.Peer(**({"addresses": [ADDRESS], "issued_at_ms": 7} | fields))  # type: ignore[arg-type]
    return seal(key_of("ada"), swarm=SWARM.id, type=wire.PEER, message=message)


def announcement(**fields: object) -> Envelope:
    given = {"object_id": id_of("big"), "object_type": wire.CHECKPOINT, "slot": 3, "num_bytes": 5000} | fields
    message = wire.Announcement(**given)  # type: ignore[arg-type]
    return seal(key_of("ada"), swarm=SWARM.id, type=wire.ANNOUNCEMENT, message=message)


def test_a_peer_record_reads_back() -> None:
    envelope = make_peer(
        key_of("ada"), swarm=SWARM.id, addresses=[ADDRESS], issued_at_ms=7, archive=True, software="fullrank 0.1.0"
    )
    record = open_peer(SWARM.opened(envelope))
    assert record.key == key_of("ada").public_key
    assert record.addresses == (ADDRESS,)
    assert record.issued_at_ms == 7
    assert record.archive
    assert record.software == "fullrank 0.1.0"
    assert record.envelope == envelope


def test_a_node_that_nobody_can_dial_names_no_address() -> None:
    assert open_peer(make_peer(key_of("ada"), swarm=SWARM.id, addresses=[], issued_at_ms=7)).addresses == ()


@pytest.mark.parametrize("length", [5, 79, 200])
def test_a_peer_record_takes_as_many_addresses_as_fit(length: int) -> None:
    addresses = [f"/{i:02}".ljust(length, "a") for i in range(12)]
    envelope = make_peer(key_of("ada"), swarm=SWARM.id, addresses=addresses, issued_at_ms=2**47, software="x" * 64)
    assert len(envelope.encode()) <= MAX_RECORD_BYTES
    found = open_peer(envelope).addresses
    assert found == tuple(addresses[: len(found)])
    assert len(found) == min(8, 600 // length)


@pytest.mark.parametrize(
    ("envelope", "words"),
    [
        (peer(addresses=["/a"] * 9), "number of addresses is 9"),
        (peer(addresses=["/" + "a" * 200]), "201 bytes, at most 200"),
        (peer(addresses=[""]), "not a multiaddress"),
        (peer(addresses=["ip4/192.0.2.1"]), "not a multiaddress"),
        (peer(addresses=["/ip4/192.0.2.1 /tcp"]), "not a multiaddress"),
        (peer(addresses=["/ip4/192.0.2.1\x1b[31m"]), "not a multiaddress"),
        (peer(issued_at_ms=0), "time of the peer record is 0"),
        (peer(software="x" * 65), "software's name has 65 bytes"),
        (peer(software="\x1b[31m"), r"invisible character U\+001B"),
        (announcement(), "found an announcement where a peer is required"),
    ],
)
def test_a_strange_peer_record_is_refused(envelope: Envelope, words: str) -> None:
    with pytest.raises(RejectError, match=words) as caught:
        open_peer(envelope)
    assert caught.value.rule is Rule.SCHEMA


def test_an_announcement_reads_back() -> None:
    envelope = make_announcement(
        key_of("ada"), swarm=SWARM.id, object_id=id_of("big"), object_type=wire.CHECKPOINT, slot=3, num_bytes=5000
    )
    found = open_announcement(SWARM.opened(envelope))
    assert found.key == key_of("ada").public_key
    assert found.object_id == id_of("big")
    assert found.object_type == wire.CHECKPOINT
    assert found.slot == 3
    assert found.num_bytes == 5000


@pytest.mark.parametrize(
    ("envelope", "rule", "words"),
    [
        (announcement(object_id=bytes(31)), Rule.SCHEMA, "announced id has 31 bytes"),
        (announcement(object_type=0), Rule.SCHEMA, "unknown type 0"),
        (announcement(object_type=99), Rule.SCHEMA, "unknown type 99"),
        (announcement(slot=2**60), Rule.SLOT, "announced slot"),
        (announcement(num_bytes=0), Rule.SIZE, "announced size is 0"),
        (announcement(num_bytes=1 << 30), Rule.SIZE, "announced size"),
    ],
)
def test_a_strange_announcement_is_refused(envelope: Envelope, rule: Rule, words: str) -> None:
    with pytest.raises(RejectError, match=words) as caught:
        open_announcement(envelope)
    assert caught.value.rule is rule

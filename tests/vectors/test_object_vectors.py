"""The bytes of signed objects, fixed by files in protocol/vectors.

Hashes and encodings are computed here a second time, from the protocol's text and not with its code.
"""

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fullrank_protocol.blob import blob_ref
from fullrank_protocol.checkpoint import open_checkpoint
from fullrank_protocol.contribution import open_contribution
from fullrank_protocol.envelope import MESSAGE_OF_TYPE, NO_SWARM, Envelope, decode_payload, open_envelope
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import Genesis, open_genesis
from fullrank_protocol.hints import open_announcement, open_peer
from fullrank_protocol.identity import (
    SigningKey,
    check_public_key,
    libp2p_identity_file,
    peer_id,
    public_key_of_peer_id,
    verify,
)
from fullrank_protocol.link import Link, parse_link
from fullrank_protocol.membership import grant_id, initial_members, make_admission
from fullrank_protocol.records import invitation_bytes
from fullrank_protocol.snapshot import check_end, decode_module, open_snapshot
from fullrank_protocol.vote import open_choice, open_evidence, open_refusal, open_vote
from fullrank_protocol.wire import objects_pb2 as wire

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "make_object_vectors.py"


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "protocol" / "vectors" / name).read_text(encoding="utf-8"))
    return content


def prefixed(*parts: bytes) -> bytes:
    """Every part behind its length as 8 bytes little-endian (protocol section 2)."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def genesis() -> Genesis:
    return open_genesis(bytes.fromhex(read("genesis.json")["genesis"]))


def unhex(case: dict[str, Any], *names: str) -> list[bytes]:
    return [bytes.fromhex(case[name]) for name in names]


@pytest.mark.parametrize("case", read("keys.json")["keys"], ids=lambda case: case["name"])
def test_keys(case: dict[str, Any]) -> None:
    seed, public_key, message, signature = unhex(case, "seed", "public_key", "message", "signature")
    assert Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw() == public_key
    assert SigningKey.from_seed(seed).public_key == public_key
    assert SigningKey.from_seed(seed).sign(message) == signature
    assert verify(public_key, message, signature)
    assert case["identity_file"] == "08011240" + case["seed"] + case["public_key"]
    assert libp2p_identity_file(seed, public_key).hex() == case["identity_file"]
    assert peer_id(public_key) == case["peer_id"]
    assert public_key_of_peer_id(case["peer_id"]) == public_key


@pytest.mark.parametrize("case", read("keys.json")["refused_keys"], ids=lambda case: case["public_key"])
def test_refused_keys(case: dict[str, Any]) -> None:
    with pytest.raises(RejectError):
        check_public_key(bytes.fromhex(case["public_key"]))


@pytest.mark.parametrize("case", read("envelopes.json")["envelopes"], ids=lambda case: case["object"])
def test_envelopes(case: dict[str, Any]) -> None:
    data, payload, swarm, public_key = unhex(case, "envelope", "payload", "swarm", "public_key")
    signed = prefixed(
        b"fullrank.v1.envelope",
        case["version"].to_bytes(4, "little"),
        swarm,
        case["type"].to_bytes(4, "little"),
        payload,
        public_key,
    )
    assert signed.hex() == case["signed_bytes"]
    assert hashlib.sha256(signed).hexdigest() == case["id"]
    Ed25519PublicKey.from_public_bytes(public_key).verify(bytes.fromhex(case["signature"]), signed)
    envelope = open_envelope(data, swarm=genesis().swarm)
    assert envelope.id.hex() == case["id"]
    assert envelope.encode() == data
    assert envelope.payload == payload
    open_object(envelope)


def open_object(envelope: Envelope) -> object:
    """Opens the object inside an envelope of the vectors' swarm."""
    swarm = genesis()
    openers: dict[int, Any] = {
        wire.GENESIS: lambda: open_genesis(envelope.encode(), expect=swarm.swarm),
        wire.CONTRIBUTION: lambda: open_contribution(envelope, swarm),
        wire.CHECKPOINT: lambda: open_checkpoint(envelope, swarm),
        wire.VOTE: lambda: open_vote(envelope),
        wire.REFUSAL: lambda: open_refusal(envelope),
        wire.EVIDENCE: lambda: open_evidence(envelope),
        wire.CHOICE: lambda: open_choice(envelope, swarm),
        wire.PEER: lambda: open_peer(envelope),
        wire.ANNOUNCEMENT: lambda: open_announcement(envelope),
        wire.SNAPSHOT: lambda: open_snapshot(envelope, swarm),
    }
    return openers.get(envelope.type, lambda: decode_payload(envelope, MESSAGE_OF_TYPE[envelope.type]))()


def test_there_is_an_envelope_of_every_type() -> None:
    assert {case["type"] for case in read("envelopes.json")["envelopes"]} == set(MESSAGE_OF_TYPE)


def test_the_membership_records_tell_a_story() -> None:
    by_type = {
        case["type"]: open_envelope(bytes.fromhex(case["envelope"]), swarm=None)
        for case in read("envelopes.json")["envelopes"]
    }
    swarm = genesis()
    members = initial_members(swarm)
    for slot, type_ in enumerate(
        [
            wire.GRANT,
            wire.ADMISSION,
            wire.TAKE_UP,
            wire.LEAVE,
            wire.REVOCATION,
            wire.READMISSION,
            wire.EJECTION,
            wire.CHOICE,
        ]
    ):
        members = members.apply(by_type[type_], slot=slot, genesis=swarm)
    (member,) = members.members.keys() - {by_type[wire.GRANT].public_key}
    assert members.members[member].roles == 1
    assert members.members[member].name == "quiet-otter"
    assert members.ejected == {member: 7}


def test_genesis() -> None:
    case = read("genesis.json")
    swarm = genesis()
    assert swarm.swarm.hex() == case["swarm"]
    assert swarm.envelope.swarm == NO_SWARM == bytes(32)
    for moment in case["slots"]:
        assert swarm.slot_at(moment["now_ms"]) == moment["slot"]


@pytest.mark.parametrize("case", read("blobs.json")["blobs"], ids=lambda case: str(case["num_bytes"]))
def test_blobs(case: dict[str, Any]) -> None:
    data = bytes([case["byte"]]) * case["num_bytes"]
    hashes = [hashlib.sha256(data[i : i + 2**20]).digest() for i in range(0, len(data), 2**20)]
    assert [digest.hex() for digest in hashes] == case["chunk_sha256s"]
    named = prefixed(b"fullrank.v1.blob", len(data).to_bytes(8, "little"), *hashes)
    assert hashlib.sha256(named).hexdigest() == case["id"]
    assert blob_ref(data).id.hex() == case["id"]


def test_invitations() -> None:
    case = read("membership.json")
    payload, grant, seed, member = unhex(case, "grant_payload", "grant_id", "invite_seed", "member")
    swarm = genesis().swarm
    action = prefixed(b"fullrank.v1.root-action", swarm, (6).to_bytes(4, "little"), payload)
    assert hashlib.sha256(action).digest() == grant
    envelopes = [open_envelope(bytes.fromhex(data), swarm=swarm) for data in case["grants"]]
    assert {grant_id(envelope) for envelope in envelopes} == {grant}
    assert len({envelope.id for envelope in envelopes}) == 2
    name = case["name"].encode()
    signed = prefixed(b"fullrank.v1.invitation", swarm, grant, member, case["roles"].to_bytes(4, "little"), name)
    assert signed.hex() == case["invitation"]
    assert (
        invitation_bytes(swarm=swarm, grant_id=grant, member=member, roles=case["roles"], name=case["name"]) == signed
    )
    assert Ed25519PrivateKey.from_private_bytes(seed).sign(signed).hex() == case["invite_signature"]
    admission = make_admission(
        SigningKey.from_seed(bytes.fromhex(read("keys.json")["keys"][2]["seed"])),
        swarm=swarm,
        invite_seed=seed,
        grant_id=grant,
        roles=case["roles"],
        name=case["name"],
    )
    assert decode_payload(admission, wire.Admission).invite_signature.hex() == case["invite_signature"]


def decode_snapshot(data: bytes) -> dict[str, str]:
    """The weights that come out, as bits, by module."""
    source, found = io.BytesIO(data), {}
    bases = {module["name"]: module["base"] for module in read("snapshot.json")["modules"]}
    for module in genesis().modules:
        base = np.frombuffer(bytes.fromhex(bases[module.name]), dtype="<f4")
        found[module.name] = b"".join(tile.tobytes() for tile in decode_module(source, module, base)).hex()
    check_end(source)
    return found


def test_a_snapshot_turns_the_base_into_the_checkpoint() -> None:
    content = read("snapshot.json")
    found = decode_snapshot(bytes.fromhex(content["blob"]))
    assert found == {module["name"]: module["checkpoint"] for module in content["modules"]}


@pytest.mark.parametrize("case", read("snapshot.json")["refused"], ids=lambda case: case["why"])
def test_what_is_no_snapshot_is_refused(case: dict[str, str]) -> None:
    with pytest.raises(RejectError) as caught:
        decode_snapshot(bytes.fromhex(case["blob"]))
    assert caught.value.rule is Rule.CODEC


def test_links() -> None:
    content = read("links.json")
    for case in content["links"]:
        link = Link(
            swarm=bytes.fromhex(case["swarm"]),
            peers=tuple(case["peers"]),
            invite=bytes.fromhex(case["invite"]) if case["invite"] else None,
            final=bytes.fromhex(case["final"]) if case["final"] else None,
        )
        assert str(link) == case["text"]
        assert parse_link(case["text"]) == link
    for text in content["also_read_as_the_second"]:
        assert str(parse_link(text)) == content["links"][1]["text"]
    for text in content["refused"]:
        with pytest.raises(RejectError):
            parse_link(text)


def test_the_good_envelope_beside_the_refused_ones_is_good() -> None:
    content = read("refused.json")
    open_vote(open_envelope(bytes.fromhex(content["good"]), swarm=bytes.fromhex(content["swarm"])))


@pytest.mark.parametrize("case", read("refused.json")["refused"], ids=lambda case: case["what"])
def test_refused_envelopes(case: dict[str, Any]) -> None:
    def envelope() -> Envelope:
        return open_envelope(bytes.fromhex(case["envelope"]), swarm=genesis().swarm)

    if case["in_payload"]:
        opened = envelope()
        with pytest.raises(RejectError) as caught:
            open_object(opened)
    else:
        with pytest.raises(RejectError) as caught:
            envelope()
    assert caught.value.rule == case["rule"], caught.value.detail


def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("make_object_vectors", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_script_makes_these_files() -> None:
    made = script()
    for name, make in made.FILES.items():
        text = (ROOT / "protocol" / "vectors" / name).read_text(encoding="utf-8")
        assert made.text_of(make()) == text, f"{name}: run scripts/make_object_vectors.py"


def test_another_implementation_of_protobuf_makes_the_same_files() -> None:
    """The canonical form must not be a habit of one library: protobuf's Python implementation agrees with upb."""
    program = (
        "import json, runpy, sys; from google.protobuf.internal import api_implementation as implementation; "
        "assert implementation.Type() == 'python', implementation.Type(); "
        "files = runpy.run_path(sys.argv[1])['FILES']; "
        "print(json.dumps({name: make() for name, make in files.items()}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(SCRIPT)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"},
    )
    made = json.loads(result.stdout)
    assert made == {name: read(name) for name in made}

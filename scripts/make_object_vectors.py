#!/usr/bin/env python3
"""Writes the vectors of signed objects.

They are protocol/vectors/{keys,envelopes,genesis,blobs,membership,links,refused,snapshot,malformed,lying}.json.

Every secret is the SHA-256 of a name, so the files never change unless the protocol does. Bytes are hexadecimal.
For what is refused, each case is one good envelope with one fault, and the rule that names it. The last two files
hold what hostile peers send; tests/hostile makes them.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fullrank_protocol.blob import blob_ref, chunk_hashes
from fullrank_protocol.canonical import canonical_bytes
from fullrank_protocol.checkpoint import (
    AcceptedContribution,
    CheckpointKind,
    RefusedContribution,
    make_checkpoint,
)
from fullrank_protocol.contribution import make_contribution, open_contribution
from fullrank_protocol.envelope import Envelope, pre_authentication_encoding, seal, type_name
from fullrank_protocol.errors import Rule
from fullrank_protocol.genesis import Genesis, create_genesis
from fullrank_protocol.hints import make_announcement, make_peer
from fullrank_protocol.identity import GROUP_ORDER, SigningKey, libp2p_identity_file, peer_id
from fullrank_protocol.limits import CHUNK_BYTES
from fullrank_protocol.link import Link
from fullrank_protocol.membership import (
    grant_id,
    make_admission,
    make_ejection,
    make_grant,
    make_leave,
    make_readmission,
    make_retirement,
    make_revocation,
    make_take_up,
)
from fullrank_protocol.records import invitation_bytes
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.snapshot import encode_module, make_snapshot
from fullrank_protocol.vote import make_choice, make_evidence, make_refusal, make_vote, open_evidence, open_vote
from fullrank_protocol.wire import objects_pb2 as wire

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from hostile.vectors import lying_vector, malformed_vector  # noqa: E402

VECTORS = ROOT / "protocol" / "vectors"
CREATED_AT_MS = 1_700_000_000_000
INVITE_END_MS = CREATED_AT_MS + 7 * 86_400_000


def secret(name: str) -> bytes:
    """The seed that belongs to a name."""
    return hashlib.sha256(f"fullrank vector seed {name}".encode()).digest()


def key(name: str) -> SigningKey:
    """The key that belongs to a name."""
    return SigningKey.from_seed(secret(name))


def stand_in(name: str) -> bytes:
    """32 bytes that stand for an id."""
    return hashlib.sha256(f"fullrank vector id {name}".encode()).digest()


def genesis() -> Genesis:
    """A swarm with a linear and a dense module, two root keys and one founder."""
    roots = [key("founder"), key("second root")]
    message = wire.Genesis(
        name="vector swarm",
        rule_version=1,
        created_at_ms=CREATED_AT_MS,
        nonce=stand_in("nonce")[:16],
        base=wire.BaseModel(
            reference="embedded:vectors",
            revision="",
            tensors=[
                wire.TensorHash(name="embed.weight", shape=[7, 3], sha256=stand_in("embed.weight")),
                wire.TensorHash(name="norm.weight", shape=[3], sha256=stand_in("norm.weight")),
                wire.TensorHash(name="up.weight", shape=[4, 3], sha256=stand_in("up.weight")),
            ],
            files=[wire.FileEntry(name="config.json", blob=blob_ref(b"{}").to_wire())],
            licence="MIT",
        ),
        modules=[
            wire.Module(name="norm.weight", kind=wire.DENSE, out_features=3, in_features=1),
            wire.Module(name="up.weight", kind=wire.LINEAR, out_features=4, in_features=3),
        ],
        max_rank=32,
        codecs=[1],
        timing=wire.Timing(slot_window_ms=2000, grace_ms=200, stall_slots=64),
        training=wire.Training(
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
            total_rounds=0,
        ),
        rule=wire.AggregationRule(
            max_contributions=64,
            token_cap=1 << 20,
            max_staleness_rounds=3,
            duplicate_cosine_micro=900_000,
            weiszfeld_steps=8,
            update_norm_cap_milli=1500,
            trailing_rounds=9,
            outer_step=wire.Scaled(mantissa=128, exponent=-7),
            open_share_micro=200_000,
        ),
        limits=wire.Limits(
            max_delta_bytes=256 << 20, min_scale_exponent=-40, max_scale_exponent=0, max_checkpoint_bytes=1 << 20
        ),
        membership=wire.MembershipPolicy(
            policy=wire.INVITE,
            root_keys=sorted(root.public_key for root in roots),
            root_threshold=1,
            founders=[key("founder").public_key],
            founder_names=["quiet-otter"],
        ),
    )
    return create_genesis(key("founder"), message)


def objects(swarm: Genesis) -> Iterator[Envelope]:
    """One envelope of every type."""
    founder, member, invite = key("founder"), key("member"), key("invite")
    yield swarm.envelope
    contribution = make_contribution(
        member,
        swarm=swarm.swarm,
        base_checkpoint=swarm.swarm,
        base_slot=0,
        blob=blob_ref(b"delta"),
        codec=1,
        num_tokens=40_960,
        num_steps=20,
        loss_first_micro=3_250_000,
        loss_last_micro=2_750_000,
        created_at_ms=CREATED_AT_MS + 1500,
    )
    yield contribution
    votes = [
        make_vote(founder, swarm=swarm.swarm, source=swarm.swarm, source_slot=0, target=stand_in(name), target_slot=3)
        for name in ("target", "another target")
    ]
    grant = make_grant(
        founder, swarm=swarm.swarm, invite_key=invite.public_key, roles=3, count=5, not_after_ms=INVITE_END_MS
    )
    evidence = make_evidence(member, swarm=swarm.swarm, one=open_vote(votes[0]), other=open_vote(votes[1]))
    opened = open_contribution(contribution, swarm)
    late = make_contribution(
        founder,
        swarm=swarm.swarm,
        base_checkpoint=stand_in("base"),
        base_slot=2,
        blob=blob_ref(b"another delta"),
        codec=1,
        num_tokens=1,
        num_steps=1,
        loss_first_micro=0,
        loss_last_micro=0,
        created_at_ms=CREATED_AT_MS,
    )
    yield make_checkpoint(
        founder,
        swarm=swarm.swarm,
        kind=CheckpointKind.NORMAL,
        parent=stand_in("parent"),
        slot=4,
        round=2,
        model_digest=stand_in("digest"),
        update_norm=Scaled.of(0.3125),
        accepted=[AcceptedContribution(contribution=opened, weight=Scaled.of(0.75))],
        refused=[
            RefusedContribution(
                contribution=open_contribution(late, swarm), rule=Rule.ZERO_NORM, detail="the delta changes nothing"
            )
        ],
        votes=[open_vote(votes[0])],
        records=[grant],
        evidence=[open_evidence(evidence)],
    )
    yield votes[0]
    yield make_refusal(
        founder, swarm=swarm.swarm, checkpoint=stand_in("target"), rule=Rule.DIGEST, detail="found 1, required 2"
    )
    yield grant
    yield make_admission(
        member, swarm=swarm.swarm, invite_seed=secret("invite"), grant_id=grant_id(grant), roles=3, name="quiet-otter"
    )
    yield make_take_up(member, swarm=swarm.swarm, issued_at_ms=CREATED_AT_MS + 1)
    yield make_leave(member, swarm=swarm.swarm, issued_at_ms=CREATED_AT_MS + 2, certifier_role_only=True)
    yield make_revocation(
        founder, swarm=swarm.swarm, subject=invite.public_key, issued_at_ms=CREATED_AT_MS + 3, whole_tree=True
    )
    yield make_readmission(
        founder, swarm=swarm.swarm, member=member.public_key, roles=1, issued_at_ms=CREATED_AT_MS + 4
    )
    yield make_retirement(founder, swarm=swarm.swarm, certifier=member.public_key, issued_at_ms=CREATED_AT_MS + 5)
    yield make_ejection(
        founder, swarm=swarm.swarm, member=member.public_key, since_round=7, issued_at_ms=CREATED_AT_MS + 6
    )
    yield evidence
    yield make_choice(founder, swarm=swarm.swarm, checkpoint=stand_in("target"), slot=3, issued_at_ms=CREATED_AT_MS + 7)
    yield make_peer(
        member,
        swarm=swarm.swarm,
        addresses=[f"/ip4/192.0.2.1/tcp/4001/p2p/{peer_id(member.public_key)}"],
        issued_at_ms=CREATED_AT_MS + 8,
        archive=True,
        software="fullrank 0.1.0",
    )
    yield make_announcement(
        member,
        swarm=swarm.swarm,
        object_id=stand_in("target"),
        object_type=wire.CHECKPOINT,
        slot=3,
        num_bytes=70_000,
    )
    yield make_snapshot(member, swarm=swarm.swarm, checkpoint=stand_in("target"), slot=3, blob=blob_ref(b"a snapshot"))


def keys_vector() -> dict[str, Any]:
    """Seeds, keys, peer ids, identity files, and keys that are refused."""
    cases = []
    for name in ("founder", "second root", "member", "invite"):
        own = key(name)
        cases.append(
            {
                "name": name,
                "seed": own.seed.hex(),
                "public_key": own.public_key.hex(),
                "peer_id": peer_id(own.public_key),
                "identity_file": libp2p_identity_file(own.seed, own.public_key).hex(),
                "message": b"one message".hex(),
                "signature": own.sign(b"one message").hex(),
            }
        )
    order_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
    prime = 2**255 - 19
    low = [0, 1, prime - 1, order_8, prime - order_8]
    refused = [(y | sign << 255, "small order") for y in low for sign in (0, 1)]
    refused += [(y | sign << 255, "not canonical") for y in (prime, prime + 1, prime + 18) for sign in (0, 1)]
    return {
        "keys": cases,
        "refused_keys": [{"public_key": y.to_bytes(32, "little").hex(), "why": why} for y, why in refused],
    }


def envelopes_vector() -> dict[str, Any]:
    """Every type: payload, what is signed, id, signature, and the bytes that travel."""
    return {
        "envelopes": [
            {
                "object": type_name(envelope.type),
                "version": envelope.version,
                "swarm": envelope.swarm.hex(),
                "type": envelope.type,
                "payload": envelope.payload.hex(),
                "public_key": envelope.public_key.hex(),
                "signed_bytes": envelope.signed_bytes().hex(),
                "signature": envelope.signature.hex(),
                "id": envelope.id.hex(),
                "envelope": envelope.encode().hex(),
            }
            for envelope in objects(genesis())
        ]
    }


def genesis_vector() -> dict[str, Any]:
    """A genesis, the swarm it names, and its slots."""
    swarm = genesis()
    times = [CREATED_AT_MS - 1, CREATED_AT_MS, CREATED_AT_MS + 1999, CREATED_AT_MS + 2000, CREATED_AT_MS + 86_400_000]
    return {
        "genesis": swarm.envelope.encode().hex(),
        "swarm": swarm.swarm.hex(),
        "slots": [{"now_ms": now_ms, "slot": swarm.slot_at(now_ms)} for now_ms in times],
    }


def blobs_vector() -> dict[str, Any]:
    """Contents as a byte and how often it is repeated, chunk hashes and ids."""
    cases = []
    for byte, count in [(0x61, 0), (0x61, 1), (0x62, CHUNK_BYTES), (0x63, CHUNK_BYTES + 1), (0x64, 2 * CHUNK_BYTES)]:
        data = bytes([byte]) * count
        cases.append(
            {
                "byte": byte,
                "num_bytes": count,
                "chunk_sha256s": [digest.hex() for digest in chunk_hashes(data)],
                "id": blob_ref(data).id.hex(),
            }
        )
    return {"blobs": cases}


def membership_vector() -> dict[str, Any]:
    """What an invite's key signs, and the id of a grant."""
    swarm = genesis()
    grants = [
        make_grant(
            key(root),
            swarm=swarm.swarm,
            invite_key=key("invite").public_key,
            roles=3,
            count=5,
            not_after_ms=INVITE_END_MS,
        )
        for root in ("founder", "second root")
    ]
    signed = invitation_bytes(
        swarm=swarm.swarm,
        grant_id=grant_id(grants[0]),
        member=key("member").public_key,
        roles=3,
        name="quiet-otter",
    )
    return {
        "grant_payload": grants[0].payload.hex(),
        "grants": [grant.encode().hex() for grant in grants],
        "grant_id": grant_id(grants[0]).hex(),
        "invite_seed": secret("invite").hex(),
        "member": key("member").public_key.hex(),
        "roles": 3,
        "name": "quiet-otter",
        "invitation": signed.hex(),
        "invite_signature": key("invite").sign(signed).hex(),
    }


def links_vector() -> dict[str, Any]:
    """Links and their parts, and texts that are no links."""
    swarm = genesis().swarm
    peers = tuple(f"/ip4/192.0.2.{i}/tcp/4001/p2p/{peer_id(key(name).public_key)}" for i, name in enumerate("ab"))
    links = [
        Link(swarm=swarm),
        Link(swarm=swarm, peers=peers[:1]),
        Link(swarm=swarm, peers=peers, invite=secret("invite"), final=stand_in("final")),
    ]
    good = str(links[1])
    return {
        "links": [
            {
                "text": str(link),
                "swarm": link.swarm.hex(),
                "peers": list(link.peers),
                "invite": link.invite.hex() if link.invite else None,
                "final": link.final.hex() if link.final else None,
            }
            for link in links
        ],
        "also_read_as_the_second": [f" {good}\n", good.replace("/", "%2F"), f"{good}&peer={peers[0]}"],
        "refused": [
            good.replace("fullrank:", "magnet:"),
            good.replace(swarm.hex(), swarm.hex()[:-1]),
            good[:-1],
            f"{good}&colour=red",
            f"{good}&invite=00",
            f"fullrank:{swarm.hex()}?peer=192.0.2.1:4001",
        ],
    }


def refused_vector() -> dict[str, Any]:
    """Good envelopes with one fault each."""
    swarm = genesis()
    vote = next(envelope for envelope in objects(swarm) if envelope.type == wire.VOTE)
    good = vote.encode()

    def edited(edit: Callable[[wire.Envelope], object], *, sign: bool = True) -> bytes:
        message = wire.Envelope.FromString(good)
        edit(message)
        if sign:
            message.signature = key("founder").sign(
                pre_authentication_encoding(
                    version=message.version,
                    swarm=message.swarm,
                    type=message.type,
                    payload=message.payload,
                    public_key=message.public_key,
                )
            )
        return canonical_bytes(message)

    def payload(edit: Callable[[wire.Vote], object]) -> bytes:
        message = wire.Vote.FromString(vote.payload)
        edit(message)
        return seal(key("founder"), swarm=swarm.swarm, type=wire.VOTE, message=message).encode()

    scalar = int.from_bytes(vote.signature[32:], "little") + GROUP_ORDER
    larger_scalar = vote.signature[:32] + scalar.to_bytes(32, "little")
    small_order = (1).to_bytes(32, "little")
    cases = [
        ("nothing at all", Rule.VERSION, b"", False),
        ("a byte that begins no field", Rule.SCHEMA, b"\xff", False),
        ("cut off", Rule.SCHEMA, good[:-1], False),
        ("a trailing byte", Rule.SCHEMA, good + b"\x00", False),
        ("an unknown field", Rule.SCHEMA, good + b"\x38\x01", False),
        ("fields in another order", Rule.SCHEMA, good[2:] + good[:2], False),
        ("a field twice", Rule.SCHEMA, good[:2] + good, False),
        ("a padded varint", Rule.SCHEMA, b"\x08\x81\x00" + good[2:], False),
        ("another version", Rule.VERSION, edited(lambda e: setattr(e, "version", 2)), False),
        ("an unknown type", Rule.SCHEMA, edited(lambda e: setattr(e, "type", 99)), False),
        ("too many bytes", Rule.SIZE, edited(lambda e: setattr(e, "payload", bytes(1024))), False),
        ("a short swarm id", Rule.SCHEMA, edited(lambda e: setattr(e, "swarm", bytes(31))), False),
        ("another swarm", Rule.SWARM, edited(lambda e: setattr(e, "swarm", stand_in("elsewhere"))), False),
        ("a short signature", Rule.SCHEMA, edited(lambda e: setattr(e, "signature", bytes(63)), sign=False), False),
        ("a wrong signature", Rule.SIGNATURE, edited(lambda e: setattr(e, "signature", bytes(64)), sign=False), False),
        (
            "S not below the group order",
            Rule.SIGNATURE,
            edited(lambda e: setattr(e, "signature", larger_scalar), sign=False),
            False,
        ),
        ("a key of small order", Rule.SIGNATURE, edited(lambda e: setattr(e, "public_key", small_order)), False),
        (
            "a key not in canonical form",
            Rule.SIGNATURE,
            edited(lambda e: setattr(e, "public_key", (2**255 - 18).to_bytes(32, "little"))),
            False,
        ),
        (
            "another's key",
            Rule.SIGNATURE,
            edited(lambda e: setattr(e, "public_key", key("member").public_key)),
            False,
        ),
        (
            "a changed payload",
            Rule.SIGNATURE,
            edited(lambda e: setattr(e, "payload", e.payload[:-1] + b"\x04"), sign=False),
            False,
        ),
        ("a payload that does not parse", Rule.SCHEMA, edited(lambda e: setattr(e, "payload", b"\xff")), True),
        (
            "an unknown field in the payload",
            Rule.SCHEMA,
            edited(lambda e: setattr(e, "payload", e.payload + b"\x28\x01")),
            True,
        ),
        (
            "an explicit default in the payload",
            Rule.SCHEMA,
            edited(lambda e: setattr(e, "payload", e.payload[:34] + b"\x10\x00" + e.payload[34:])),
            True,
        ),
        ("a short id in the payload", Rule.SCHEMA, payload(lambda v: setattr(v, "target", bytes(31))), True),
        ("a source that is no earlier", Rule.VOTE, payload(lambda v: _source(v, slot=3)), True),
        ("slot 0 for what is not the genesis", Rule.SLOT, payload(lambda v: _source(v, slot=0)), True),
    ]
    return {
        "swarm": swarm.swarm.hex(),
        "good": good.hex(),
        "refused": [
            {"what": what, "rule": int(rule), "in_payload": in_payload, "envelope": data.hex()}
            for what, rule, data, in_payload in cases
        ],
    }


def _source(vote: wire.Vote, *, slot: int) -> None:
    vote.source = stand_in("source")
    vote.source_slot = slot


def snapshot_vector() -> dict[str, Any]:
    """The weights of a base and of a checkpoint, bit by bit, the snapshot between them, and blobs that are none."""
    swarm = genesis()
    numbers: dict[str, tuple[list[float], list[float]]] = {
        "norm.weight": ([1.0, -0.0, 0.5], [1.0 + 2.0**-23, 0.0, 0.5]),
        "up.weight": ([k / 8 for k in range(12)], [k / 8 + (0.001 if k % 3 else -0.25) for k in range(12)]),
    }
    arrays = {name: tuple(np.array(side, dtype="<f4") for side in pair) for name, pair in numbers.items()}
    parts = [b"".join(encode_module(module, *arrays[module.name])) for module in swarm.modules]
    blob = b"".join(parts)
    first = parts[0]
    return {
        "modules": [
            {
                "name": module.name,
                "base": arrays[module.name][0].tobytes().hex(),
                "checkpoint": arrays[module.name][1].tobytes().hex(),
            }
            for module in swarm.modules
        ],
        "codec": 1,
        "blob": blob.hex(),
        "refused": [
            {"why": why, "blob": data.hex()}
            for why, data in (
                ("nothing at all", b""),
                ("a length cut off", first[:3]),
                ("a frame cut off", blob[:-1]),
                ("a module left out", first),
                ("a byte too many", blob + b"\x00"),
                ("a frame of no bytes", bytes(4) + blob),
                ("a frame longer than it can be", b"\xff\xff\xff\x7f" + blob[4:]),
                ("a frame for another number of weights", parts[1] + first),
                ("no zstd frame", first[:4] + bytes(len(first) - 4) + parts[1]),
            )
        ],
    }


FILES: dict[str, Callable[[], dict[str, Any]]] = {
    "keys.json": keys_vector,
    "envelopes.json": envelopes_vector,
    "genesis.json": genesis_vector,
    "blobs.json": blobs_vector,
    "membership.json": membership_vector,
    "links.json": links_vector,
    "refused.json": refused_vector,
    "snapshot.json": snapshot_vector,
    "malformed.json": malformed_vector,
    "lying.json": lying_vector,
}


def text_of(content: dict[str, Any]) -> str:
    """A file as it is written."""
    return json.dumps(content, indent=1) + "\n"


def main() -> None:
    """Writes all files."""
    for name, make in FILES.items():
        (VECTORS / name).write_text(text_of(make()), encoding="utf-8")
        print(f"wrote protocol/vectors/{name}")


if __name__ == "__main__":
    main()

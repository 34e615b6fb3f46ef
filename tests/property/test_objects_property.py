"""Whatever arrives, opening it gives a checked value or a ProtocolError; and opening gives back what was made."""

from collections.abc import Callable, Iterable
from typing import Any, Final

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from swarms import CREATED_AT_MS, WINDOW_MS, genesis_message, id_of, key_of, seed_of, swarm_of

from fullrank_protocol.blob import BlobRef, blob_ref, check_chunk, check_header, chunk_hashes
from fullrank_protocol.canonical import canonical_bytes, check_text, clip_text, length_prefixed
from fullrank_protocol.checkpoint import (
    AcceptedContribution,
    CheckpointKind,
    CorrectedContribution,
    make_checkpoint,
    open_checkpoint,
)
from fullrank_protocol.contribution import make_contribution, open_contribution
from fullrank_protocol.envelope import (
    MESSAGE_OF_TYPE,
    NO_SWARM,
    Envelope,
    decode_payload,
    open_envelope,
    pre_authentication_encoding,
    seal,
)
from fullrank_protocol.errors import ProtocolError, RejectError, Rule
from fullrank_protocol.genesis import create_genesis, open_genesis
from fullrank_protocol.hints import make_announcement, make_peer, open_announcement, open_peer
from fullrank_protocol.identity import peer_id, public_key_of_peer_id, verify
from fullrank_protocol.limits import MAX_SLOT, MAX_STEPS, MAX_TIME_MS, MAX_TOKENS
from fullrank_protocol.link import Link, parse_link
from fullrank_protocol.membership import (
    ALL_ROLES,
    RECORD_TYPES,
    Members,
    grant_id,
    initial_members,
    make_admission,
    make_grant,
    make_leave,
    make_readmission,
    make_retirement,
    make_revocation,
    make_take_up,
)
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.snapshot import make_snapshot, open_snapshot
from fullrank_protocol.vote import (
    is_offence,
    make_choice,
    make_evidence,
    make_refusal,
    make_vote,
    open_choice,
    open_evidence,
    open_refusal,
    open_vote,
)
from fullrank_protocol.wire import objects_pb2 as wire

SWARM = swarm_of(founders=("ada", "bob"))
GENESIS = SWARM.genesis
MEMBERS = initial_members(GENESIS)
ADA = key_of("ada")


def record(envelope: Envelope) -> Members:
    return MEMBERS.apply(envelope, slot=1, genesis=GENESIS)


OPENERS: Final[dict[int, Callable[[Envelope], object]]] = {
    **dict.fromkeys(RECORD_TYPES, record),
    wire.GENESIS: lambda envelope: open_genesis(envelope.encode()),
    wire.CONTRIBUTION: lambda envelope: open_contribution(envelope, GENESIS),
    wire.CHECKPOINT: lambda envelope: open_checkpoint(envelope, GENESIS),
    wire.VOTE: open_vote,
    wire.REFUSAL: open_refusal,
    wire.EVIDENCE: open_evidence,
    wire.CHOICE: lambda envelope: open_choice(envelope, GENESIS),
    wire.PEER: open_peer,
    wire.ANNOUNCEMENT: open_announcement,
    wire.SNAPSHOT: lambda envelope: open_snapshot(envelope, GENESIS),
}


def open_whatever(data: bytes) -> object:
    """Bytes, as a node handles them that knows nothing about their sender."""
    envelope = open_envelope(data, swarm=None)
    return OPENERS[envelope.type](envelope)


def only_protocol_errors(data: bytes) -> None:
    try:
        open_whatever(data)
    except ProtocolError as error:
        detail = error.detail
    else:
        return
    assert 0 < len(detail) < 2000


def samples() -> Iterable[Envelope]:
    """One good envelope of each type."""
    swarm = SWARM.id
    votes = [SWARM.vote("bob", target=id_of(target), target_slot=1) for target in ("one", "other")]
    evidence = open_evidence(make_evidence(ADA, swarm=swarm, one=votes[0], other=votes[1]))
    grant = make_grant(
        ADA, swarm=swarm, invite_key=key_of("invite").public_key, roles=3, count=3, not_after_ms=CREATED_AT_MS * 2
    )
    yield GENESIS.envelope
    yield SWARM.contribution("ada").envelope
    yield SWARM.checkpoint_envelope(slot=3, votes=votes[:1], records=[grant], evidence=[evidence])
    yield votes[0].envelope
    yield make_refusal(ADA, swarm=swarm, checkpoint=id_of("c"), rule=Rule.DIGEST, detail="found 1, required 2")
    yield grant
    yield make_admission(
        key_of("cyd"), swarm=swarm, invite_seed=seed_of("invite"), grant_id=grant_id(grant), roles=3, name="cyd"
    )
    yield make_take_up(ADA, swarm=swarm, issued_at_ms=1)
    yield make_leave(ADA, swarm=swarm, issued_at_ms=1)
    yield make_revocation(ADA, swarm=swarm, subject=key_of("bob").public_key, issued_at_ms=1)
    yield make_readmission(ADA, swarm=swarm, member=key_of("cyd").public_key, roles=1, issued_at_ms=1)
    yield make_retirement(ADA, swarm=swarm, certifier=key_of("bob").public_key, issued_at_ms=1)
    yield seal(ADA, swarm=swarm, type=wire.EJECTION, message=wire.Ejection(member=ADA.public_key, since_round=1))
    yield evidence.envelope
    yield make_choice(ADA, swarm=swarm, checkpoint=id_of("c"), slot=1, issued_at_ms=1)
    yield make_peer(ADA, swarm=swarm, addresses=["/ip4/192.0.2.1/tcp/4001"], issued_at_ms=1)
    yield make_announcement(ADA, swarm=swarm, object_id=id_of("c"), object_type=wire.CHECKPOINT, slot=1, num_bytes=9)
    yield make_snapshot(ADA, swarm=swarm, checkpoint=id_of("c"), slot=1, blob=blob_ref(b"snapshot"))


SAMPLES: Final = {envelope.type: envelope for envelope in samples()}
BIG: Final = settings(max_examples=300)

ids = st.binary(min_size=32, max_size=32)
slots = st.integers(1, MAX_SLOT)
times = st.integers(1, MAX_TIME_MS)
names = st.sampled_from(["ada", "bob", "cyd", "dan"])
scaled = st.floats(0, 1e30).map(Scaled.of)


def test_there_is_a_sample_of_every_type() -> None:
    assert set(SAMPLES) == set(MESSAGE_OF_TYPE) == set(OPENERS)


# ---- any bytes ----


@given(st.binary(max_size=300))
@BIG
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        open_whatever(data)


@given(type_=st.sampled_from(sorted(SAMPLES)), data=st.data())
@BIG
def test_good_envelopes_with_bytes_changed_removed_or_added(type_: int, data: st.DataObject) -> None:
    good = SAMPLES[type_].encode()
    at = data.draw(st.integers(0, len(good) - 1), label="at")
    length = data.draw(st.integers(0, 8), label="bytes removed")
    new = data.draw(st.binary(max_size=8), label="bytes added")
    bad = good[:at] + new + good[at + length :]
    assume(bad != good)
    with pytest.raises(ProtocolError):
        open_whatever(bad)


@given(type_=st.sampled_from(sorted(MESSAGE_OF_TYPE)), payload=st.binary(max_size=300))
@BIG
def test_any_payload_under_a_good_signature(type_: int, payload: bytes) -> None:
    only_protocol_errors(signed(type_, payload))


@given(type_=st.sampled_from(sorted(SAMPLES)), data=st.data())
@BIG
def test_good_payloads_with_bytes_changed_under_a_good_signature(type_: int, data: st.DataObject) -> None:
    good = SAMPLES[type_].payload
    at = data.draw(st.integers(0, len(good)), label="at")
    length = data.draw(st.integers(0, 8), label="bytes removed")
    new = data.draw(st.binary(max_size=8), label="bytes added")
    only_protocol_errors(signed(type_, good[:at] + new + good[at + length :]))


@given(type_=st.sampled_from(sorted(MESSAGE_OF_TYPE)), data=st.data())
@BIG
def test_any_field_values_under_a_good_signature(type_: int, data: st.DataObject) -> None:
    message = data.draw(messages(MESSAGE_OF_TYPE[type_]))
    only_protocol_errors(signed(type_, canonical_bytes(message)))


@given(type_=st.sampled_from(sorted(SAMPLES)), data=st.data())
@BIG
def test_good_messages_with_one_field_changed_under_a_good_signature(type_: int, data: st.DataObject) -> None:
    message = MESSAGE_OF_TYPE[type_].FromString(SAMPLES[type_].payload)
    field = data.draw(st.sampled_from(list(message.DESCRIPTOR.fields)), label="field")
    message.ClearField(field.name)
    replacement = data.draw(messages(type(message), only=field.name))
    message.MergeFrom(replacement)
    only_protocol_errors(signed(type_, canonical_bytes(message)))


def signed(type_: int, payload: bytes) -> bytes:
    """An envelope with any payload, rightly signed."""
    swarm = NO_SWARM if type_ == wire.GENESIS else SWARM.id
    fields: dict[str, Any] = {
        "version": 1,
        "swarm": swarm,
        "type": type_,
        "payload": payload,
        "public_key": ADA.public_key,
    }
    return canonical_bytes(wire.Envelope(**fields, signature=ADA.sign(pre_authentication_encoding(**fields))))


def messages(message_class: type[Message], *, only: str | None = None) -> st.SearchStrategy[Message]:
    """Messages with any field values, often plausible ones."""
    fields = [field for field in message_class.DESCRIPTOR.fields if only in (None, field.name)]
    return st.fixed_dictionaries({}, optional={field.name: values(field) for field in fields}).map(
        lambda given: message_class(**given)
    )


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """What may stand in a field."""
    numbers = {
        FieldDescriptor.CPPTYPE_UINT32: st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1)),
        FieldDescriptor.CPPTYPE_UINT64: st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1)),
        FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_ENUM: st.one_of(st.integers(0, 20), st.integers(-(2**31), 2**31 - 1)),
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    }
    one: st.SearchStrategy[Any]
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        one = messages(getattr(wire, field.message_type.name))
    elif field.type == FieldDescriptor.TYPE_BYTES:
        envelopes = [envelope.encode() for type_, envelope in SAMPLES.items() if type_ != wire.CHECKPOINT]
        one = st.one_of(
            ids, st.binary(max_size=80), st.sampled_from([ADA.public_key, SWARM.id]), st.sampled_from(envelopes)
        )
    elif field.type == FieldDescriptor.TYPE_STRING:
        one = st.one_of(st.text(max_size=80), st.sampled_from(["up.weight", "config.json", "/ip4/192.0.2.1"]))
    else:
        one = numbers[field.cpp_type]
    return st.lists(one, max_size=3) if field.is_repeated else one


# ---- what was made opens ----


@given(
    name=names,
    base=ids,
    base_slot=slots,
    num_bytes=st.integers(1, GENESIS.limits.max_delta_bytes),
    num_tokens=st.integers(1, MAX_TOKENS),
    num_steps=st.integers(1, MAX_STEPS),
    loss=st.integers(0, 2**32 - 1),
    created_at_ms=times,
)
def test_contributions(
    name: str,
    base: bytes,
    base_slot: int,
    num_bytes: int,
    num_tokens: int,
    num_steps: int,
    loss: int,
    created_at_ms: int,
) -> None:
    given_fields: dict[str, Any] = {
        "base_checkpoint": base,
        "base_slot": base_slot,
        "blob": BlobRef(id=id_of("blob"), num_bytes=num_bytes),
        "codec": 1,
        "num_tokens": num_tokens,
        "num_steps": num_steps,
        "loss_first_micro": loss,
        "loss_last_micro": loss // 2,
        "created_at_ms": created_at_ms,
    }
    envelope = make_contribution(key_of(name), swarm=SWARM.id, **given_fields)
    found = open_contribution(SWARM.opened(envelope), GENESIS)
    assert {field: getattr(found, field) for field in given_fields} == given_fields
    assert found.member == key_of(name).public_key


@given(source_slot=slots, step=st.integers(1, 1000), source=ids, target=ids)
def test_votes(source_slot: int, step: int, source: bytes, target: bytes) -> None:
    assume(source != target and source_slot + step <= MAX_SLOT)
    envelope = make_vote(
        ADA, swarm=SWARM.id, source=source, source_slot=source_slot, target=target, target_slot=source_slot + step
    )
    found = open_vote(SWARM.opened(envelope))
    assert (found.source, found.source_slot, found.target, found.target_slot) == (
        source,
        source_slot,
        target,
        source_slot + step,
    )


spans = st.tuples(st.integers(1, 12), st.integers(1, 6))


@given(one=spans, other=spans, targets=st.tuples(st.booleans(), st.booleans()))
@BIG
def test_evidence_opens_exactly_when_two_votes_are_an_offence(
    one: tuple[int, int], other: tuple[int, int], targets: tuple[bool, bool]
) -> None:
    votes = [
        SWARM.vote(
            "ada",
            source=id_of(f"slot {slot}"),
            source_slot=slot,
            target=id_of(f"slot {slot + length} {fork}"),
            target_slot=slot + length,
        )
        for (slot, length), fork in zip((one, other), targets, strict=True)
    ]
    first, second = sorted(votes, key=lambda vote: vote.id)
    assert is_offence(first, second) == is_offence(second, first)
    message = wire.Evidence(first=first.envelope.encode(), second=second.envelope.encode())
    envelope = seal(key_of("zoe"), swarm=SWARM.id, type=wire.EVIDENCE, message=message)
    if is_offence(first, second):
        assert open_evidence(SWARM.opened(envelope)).accused == ADA.public_key
    else:
        with pytest.raises(RejectError):
            open_evidence(SWARM.opened(envelope))


@given(
    slot=st.integers(20, MAX_SLOT),
    round_=st.integers(1, 20),
    weights=st.dictionaries(names, scaled, min_size=1),
    votes=st.sets(st.tuples(names, st.integers(1, 19)), max_size=5),
    digest=ids,
    norm=scaled,
)
@settings(max_examples=50)
def test_checkpoints(
    slot: int,
    round_: int,
    weights: dict[str, Scaled],
    votes: set[tuple[str, int]],
    digest: bytes,
    norm: Scaled,
) -> None:
    envelope = make_checkpoint(
        ADA,
        swarm=SWARM.id,
        kind=CheckpointKind.NORMAL,
        parent=id_of("parent"),
        slot=slot,
        round=round_,
        model_digest=digest,
        update_norm=norm,
        accepted=[
            AcceptedContribution(contribution=SWARM.contribution(name), weight=weight)
            for name, weight in weights.items()
        ],
        votes=[SWARM.vote(name, target=id_of("target"), target_slot=target) for name, target in votes],
    )
    found = open_checkpoint(SWARM.opened(envelope), GENESIS)
    assert (found.slot, found.round, found.model_digest, found.update_norm) == (slot, round_, digest, norm)
    assert {entry.contribution.member: entry.weight for entry in found.accepted} == {
        key_of(name).public_key: weight for name, weight in weights.items()
    }
    assert {(vote.voter, vote.target_slot) for vote in found.votes} == {
        (key_of(name).public_key, target) for name, target in votes
    }


@given(entries=st.dictionaries(ids, scaled, min_size=1, max_size=20))
@settings(max_examples=50)
def test_corrections(entries: dict[bytes, Scaled]) -> None:
    corrected = [CorrectedContribution(contribution_id=id_, weight=weight) for id_, weight in entries.items()]
    found = SWARM.checkpoint(kind=CheckpointKind.CORRECTION, corrected=corrected)
    assert {entry.contribution_id: entry.weight for entry in found.corrected} == entries


@given(
    addresses=st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=150), max_size=12),
    issued_at_ms=times,
    archive=st.booleans(),
)
def test_peer_records(addresses: list[str], issued_at_ms: int, *, archive: bool) -> None:
    addresses = ["/" + address for address in addresses]
    envelope = make_peer(ADA, swarm=SWARM.id, addresses=addresses, issued_at_ms=issued_at_ms, archive=archive)
    found = open_peer(SWARM.opened(envelope))
    assert set(found.addresses) <= set(addresses)
    assert found.addresses[:1] == tuple(addresses[:1])
    assert (found.issued_at_ms, found.archive) == (issued_at_ms, archive)


@given(rule=st.sampled_from(Rule), detail=st.text(max_size=1000))
def test_refusals_whatever_the_reason(rule: Rule, detail: str) -> None:
    envelope = make_refusal(ADA, swarm=SWARM.id, checkpoint=id_of("c"), rule=rule, detail=detail)
    assert open_refusal(SWARM.opened(envelope)).rule is rule


@given(window=st.integers(100, 10**6), nonce=st.binary(min_size=16, max_size=16), now=times)
@settings(max_examples=50)
def test_genesis(window: int, nonce: bytes, now: int) -> None:
    message = genesis_message()
    message.timing.slot_window_ms = window
    message.nonce = nonce
    genesis = create_genesis(ADA, message)
    assert decode_payload(genesis.envelope, wire.Genesis) == message
    slot = genesis.slot_at(now)
    if slot >= 0:
        assert genesis.slot_start_ms(slot) <= now < genesis.slot_end_ms(slot)
    else:
        assert now < CREATED_AT_MS


# ---- texts, keys, blobs ----


@given(st.text(max_size=300))
@BIG
def test_any_text_as_a_link(text: str) -> None:
    for candidate in (text, "fullrank:" + text, f"fullrank:{SWARM.id.hex()}?{text}"):
        try:
            link = parse_link(candidate)
        except ProtocolError:
            continue
        assert parse_link(str(link)) == link


@given(swarm=ids, invite=st.none() | ids, final=st.none() | ids, peers=st.sets(names))
def test_links(swarm: bytes, invite: bytes | None, final: bytes | None, peers: set[str]) -> None:
    addresses = tuple(f"/dns4/{name}.example/tcp/1/p2p/{peer_id(key_of(name).public_key)}" for name in sorted(peers))
    link = Link(swarm=swarm, peers=addresses, invite=invite, final=final)
    assert parse_link(str(link)) == link


@given(st.text(max_size=70))
@BIG
def test_any_text_as_a_peer_id(text: str) -> None:
    for candidate in (text, "12D3KooW" + text):
        try:
            assert peer_id(public_key_of_peer_id(candidate)) == candidate
        except ProtocolError:
            continue


@given(key=st.binary(max_size=40), data=st.binary(max_size=20), signature=st.binary(max_size=70))
def test_verifying_anything_says_no(key: bytes, data: bytes, signature: bytes) -> None:
    assert not verify(key, data, signature)


@given(text=st.text(max_size=300), most=st.integers(0, 300))
def test_cut_texts_pass(text: str, most: int) -> None:
    check_text(clip_text(text, most), most, what="text")


@given(one=st.lists(st.binary(max_size=10), max_size=4), other=st.lists(st.binary(max_size=10), max_size=4))
def test_length_prefixes_keep_lists_apart(one: list[bytes], other: list[bytes]) -> None:
    assert (length_prefixed(b"t", *one) == length_prefixed(b"t", *other)) == (one == other)


@given(data=st.binary(max_size=100), other=st.binary(max_size=100))
def test_blobs_are_told_apart(data: bytes, other: bytes) -> None:
    ref = blob_ref(data)
    check_header(ref, len(data), chunk_hashes(data))
    if data:
        check_chunk(ref, chunk_hashes(data), 0, data)
    if other != data:
        with pytest.raises(ProtocolError):
            check_header(ref, len(other), chunk_hashes(other))
        with pytest.raises(ProtocolError):
            check_chunk(ref, chunk_hashes(data), 0, other)


# ---- membership ----

people = st.sampled_from(["ada", "bob", "cyd", "dan", "eve", "fay"])
invites = st.sampled_from(["invite one", "invite two"])
moments = st.integers(1, 30)


def grant_of(invite: str) -> Envelope:
    return make_grant(
        ADA,
        swarm=SWARM.id,
        invite_key=key_of(invite).public_key,
        roles=ALL_ROLES,
        count=2,
        not_after_ms=CREATED_AT_MS + 20 * WINDOW_MS,
    )


def admission_of(who: str, invite: str, roles: int) -> Envelope:
    return make_admission(
        key_of(who),
        swarm=SWARM.id,
        invite_seed=seed_of(invite),
        grant_id=grant_id(grant_of(invite)),
        roles=roles,
        name=who,
    )


records = st.one_of(
    st.builds(grant_of, invites),
    st.builds(admission_of, people, invites, st.integers(1, 3)),
    st.builds(lambda who, at: make_take_up(key_of(who), swarm=SWARM.id, issued_at_ms=at), people, moments),
    st.builds(
        lambda who, at, only: make_leave(key_of(who), swarm=SWARM.id, issued_at_ms=at, certifier_role_only=only),
        people,
        moments,
        st.booleans(),
    ),
    st.builds(
        lambda who, at, tree: make_revocation(
            ADA, swarm=SWARM.id, subject=key_of(who).public_key, issued_at_ms=at, whole_tree=tree
        ),
        people | invites,
        moments,
        st.booleans(),
    ),
    st.builds(
        lambda who, at, roles: make_readmission(
            ADA, swarm=SWARM.id, member=key_of(who).public_key, roles=roles, issued_at_ms=at
        ),
        people,
        moments,
        st.integers(1, 3),
    ),
    st.builds(
        lambda who, at: make_retirement(ADA, swarm=SWARM.id, certifier=key_of(who).public_key, issued_at_ms=at),
        people,
        moments,
    ),
)


@given(st.lists(records | people, max_size=40))
@settings(max_examples=150)
def test_whatever_is_carried_the_membership_stays_sound(story: list[Envelope | str]) -> None:
    members = MEMBERS
    for slot, event in enumerate(story, start=1):
        before = members
        try:
            if isinstance(event, str):
                members = members.exclude(key_of(event).public_key, offence_slot=slot)
            else:
                members = members.apply(event, slot=slot, genesis=GENESIS)
        except RejectError:
            members = before
            continue
        assert members.certifiers, "somebody certifies"
        assert len(members.certifiers ^ before.certifiers) <= 1, "one record moves one certifier"
        assert not members.members.keys() & members.former.keys()
        assert not any(members.is_banned(key) for key in members.members)
        assert all(grant.used <= grant.count for grant in members.grants.values())
        assert all(members.find(key) is not None for key in members.certifiers)
        if isinstance(event, Envelope):
            assert members.has_record(event.id)
            with pytest.raises(RejectError):
                members.apply(event, slot=slot, genesis=GENESIS)

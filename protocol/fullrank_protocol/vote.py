"""Votes, signed refusals, evidence of an offence, and the root's choice (protocol section 8).

A vote is a certifier's signed (source, target): "I fetched, validated and recomputed the target". Two votes of one key
are an offence when they have the same target slot and differ, or when the slots of one surround those of the other
(Buterin and Griffith 2017, arXiv:1710.09437, section 2).
"""

from dataclasses import dataclass, field

from fullrank_protocol.canonical import check_id, check_range, check_text, check_time_ms, clip_text
from fullrank_protocol.contribution import check_checkpoint_mark, check_swarm
from fullrank_protocol.envelope import Envelope, decode_payload, open_envelope, seal
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.limits import MAX_DETAIL_BYTES, MAX_SLOT
from fullrank_protocol.wire import objects_pb2 as wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """A certifier's vote.

    Attributes:
        id: Envelope id.
        voter: Key of the certifier.
        source: The target's highest justified ancestor.
        source_slot: Its slot.
        target: What is voted for.
        target_slot: Its slot, above the source's.
        envelope: The signed object itself.
    """

    id: bytes
    voter: bytes
    source: bytes
    source_slot: int
    target: bytes
    target_slot: int
    envelope: Envelope = field(repr=False)

    def __hash__(self) -> int:
        return hash(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A certifier's signed reason for not voting.

    Attributes:
        id: Envelope id.
        certifier: Who refuses.
        checkpoint: What is refused.
        rule: The first rule found broken.
        detail: What was found and what was required.
        envelope: The signed object itself.
    """

    id: bytes
    certifier: bytes
    checkpoint: bytes
    rule: Rule
    detail: str
    envelope: Envelope = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Two votes of one key that together are an offence. Anybody may have signed the record.

    Attributes:
        id: Envelope id of the record.
        first: The vote with the lower id.
        second: The other.
        accused: The key that signed both.
        envelope: The signed object itself.
    """

    id: bytes
    first: Vote
    second: Vote
    accused: bytes
    envelope: Envelope = field(repr=False)

    @property
    def offence_slot(self) -> int:
        """The later of the two target slots: an offence up to a readmission is forgiven by it."""
        return max(self.first.target_slot, self.second.target_slot)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The root's choice between two conflicting final checkpoints.

    Attributes:
        id: Envelope id.
        root_key: Which root key signed.
        checkpoint: What the swarm keeps.
        slot: Its slot.
        issued_at_ms: When.
        envelope: The signed object itself.
    """

    id: bytes
    root_key: bytes
    checkpoint: bytes
    slot: int
    issued_at_ms: int
    envelope: Envelope = field(repr=False)


def make_vote(
    key: SigningKey, *, swarm: bytes, source: bytes, source_slot: int, target: bytes, target_slot: int
) -> Envelope:
    """Signs a vote. The caller has recorded it durably before the signature leaves the machine."""
    message = wire.Vote(source=source, source_slot=source_slot, target=target, target_slot=target_slot)
    return seal(key, swarm=swarm, type=wire.VOTE, message=message)


def open_vote(envelope: Envelope) -> Vote:
    """Checks form and slots; whether the voter may vote and the source is right, the chain says.

    Raises:
        RejectError: SCHEMA, SLOT or VOTE.
    """
    message = decode_payload(envelope, wire.Vote)
    check_checkpoint_mark(message.source, message.source_slot, swarm=envelope.swarm, what="source")
    check_checkpoint_mark(message.target, message.target_slot, swarm=envelope.swarm, what="target")
    if message.source_slot >= message.target_slot:
        raise RejectError(
            Rule.VOTE, f"the vote's source has slot {message.source_slot}, its target {message.target_slot}: not later"
        )
    if message.source == message.target:
        raise RejectError(Rule.VOTE, f"the vote's source and target are both {message.target.hex()[:12]}, two required")
    return Vote(
        id=envelope.id,
        voter=envelope.public_key,
        source=message.source,
        source_slot=message.source_slot,
        target=message.target,
        target_slot=message.target_slot,
        envelope=envelope,
    )


def is_offence(one: Vote, other: Vote) -> bool:
    """Whether two votes together break a rule that no honest certifier breaks."""
    if one.voter != other.voter or one.id == other.id or one.envelope.swarm != other.envelope.swarm:
        return False
    if one.target_slot == other.target_slot:
        return True
    outer, inner = (one, other) if one.target_slot > other.target_slot else (other, one)
    return outer.source_slot < inner.source_slot


def make_evidence(key: SigningKey, *, swarm: bytes, one: Vote, other: Vote) -> Envelope:
    """Signs a record of an offence; the votes may come in either order.

    Raises:
        ValueError: They are no offence.
    """
    if not is_offence(one, other):
        raise ValueError("these two votes are no offence")
    first, second = sorted((one, other), key=lambda vote: vote.id)
    message = wire.Evidence(first=first.envelope.encode(), second=second.envelope.encode())
    return seal(key, swarm=swarm, type=wire.EVIDENCE, message=message)


def open_evidence(envelope: Envelope) -> Evidence:
    """Checks that both votes are signed by one key and really are an offence.

    Raises:
        RejectError: EVIDENCE, or what is wrong with one of the votes.
    """
    message = decode_payload(envelope, wire.Evidence)
    first = open_vote(open_envelope(message.first, swarm=envelope.swarm))
    second = open_vote(open_envelope(message.second, swarm=envelope.swarm))
    if first.voter != second.voter:
        raise RejectError(
            Rule.EVIDENCE, f"the votes are of two keys: {first.voter.hex()[:16]} and {second.voter.hex()[:16]}"
        )
    if first.id >= second.id:
        raise RejectError(
            Rule.EVIDENCE, f"the votes {first.id.hex()[:12]} and {second.id.hex()[:12]} are not two with ascending ids"
        )
    if not is_offence(first, second):
        raise RejectError(
            Rule.EVIDENCE,
            f"votes from slot {first.source_slot} to {first.target_slot} and "
            f"from {second.source_slot} to {second.target_slot} are no offence",
        )
    return Evidence(id=envelope.id, first=first, second=second, accused=first.voter, envelope=envelope)


def make_refusal(key: SigningKey, *, swarm: bytes, checkpoint: bytes, rule: Rule, detail: str) -> Envelope:
    """Signs a reason for not voting; a long `detail` is cut."""
    message = wire.Refusal(checkpoint=checkpoint, rule=rule, detail=clip_text(detail, MAX_DETAIL_BYTES))
    return seal(key, swarm=swarm, type=wire.REFUSAL, message=message)


def open_refusal(envelope: Envelope) -> Refusal:
    """Checks the form of a refusal.

    Raises:
        RejectError: SCHEMA.
    """
    message = decode_payload(envelope, wire.Refusal)
    return Refusal(
        id=envelope.id,
        certifier=envelope.public_key,
        checkpoint=check_id(message.checkpoint, what="the refused checkpoint"),
        rule=check_rule(message.rule),
        detail=check_text(message.detail, MAX_DETAIL_BYTES, what="the reason of the refusal"),
        envelope=envelope,
    )


def check_rule(number: int) -> Rule:
    """The rule with that number.

    Raises:
        RejectError: SCHEMA, when there is none.
    """
    try:
        return Rule(number)
    except ValueError as error:
        raise RejectError(Rule.SCHEMA, f"there is no rule number {number}") from error


def make_choice(key: SigningKey, *, swarm: bytes, checkpoint: bytes, slot: int, issued_at_ms: int) -> Envelope:
    """Signs the root's choice of `checkpoint`."""
    message = wire.Choice(checkpoint=checkpoint, slot=slot, issued_at_ms=issued_at_ms)
    return seal(key, swarm=swarm, type=wire.CHOICE, message=message)


def open_choice(envelope: Envelope, genesis: Genesis) -> Choice:
    """Checks a choice and that a root key signed it; whether enough root keys did, the caller counts.

    Raises:
        RejectError: SWARM, SCHEMA, SLOT or MEMBERSHIP.
    """
    message = decode_payload(envelope, wire.Choice)
    check_swarm(envelope, genesis)
    if envelope.public_key not in genesis.membership.root_keys:
        raise RejectError(Rule.MEMBERSHIP, f"the choice is signed by {envelope.public_key.hex()}, which is no root key")
    return Choice(
        id=envelope.id,
        root_key=envelope.public_key,
        checkpoint=check_id(message.checkpoint, what="the chosen checkpoint"),
        slot=check_range(message.slot, 1, MAX_SLOT, what="the slot of the chosen checkpoint", rule=Rule.SLOT),
        issued_at_ms=check_time_ms(message.issued_at_ms, what="the time of the choice"),
        envelope=envelope,
    )

"""A state of the shared model as a certifier proposes it (protocol section 5, steps 4 to 6).

`open_checkpoint` checks form, order, size, and every object inside with its signature. Whether it follows from its
parent is the chain's question, whether weights and digest are right is the recomputation's.
"""

import enum
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fullrank_protocol import limits
from fullrank_protocol.canonical import check_ascending, check_id, check_range, check_text, require_present
from fullrank_protocol.contribution import Contribution, check_swarm, open_contribution
from fullrank_protocol.envelope import Envelope, decode_payload, open_envelope, seal, type_name
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.records import RECORD_TYPES
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.vote import Evidence, Vote, check_rule, open_evidence, open_vote
from fullrank_protocol.wire import objects_pb2 as wire


class CheckpointKind(enum.IntEnum):
    """What a checkpoint does to the weights: adds contributions, nothing, takes contributions back."""

    NORMAL = 1
    EMPTY = 2
    CORRECTION = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedContribution:
    """A contribution in the sum, and its weight with outer step and caps folded in."""

    contribution: Contribution
    weight: Scaled


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedContribution:
    """A contribution left out for good, with the rule it broke and the numbers."""

    contribution: Contribution
    rule: Rule
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectedContribution:
    """An earlier contribution taken back, and the weight that it was given."""

    contribution_id: bytes
    weight: Scaled


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checked checkpoint; everything inside is opened.

    Attributes:
        id: Envelope id.
        kind: Which of the fields below may be filled.
        parent: Id of the checkpoint that it follows; the swarm id for the genesis.
        slot: At least 1.
        round: Normal checkpoints on the chain up to and including this one.
        accepted: Ascending by contribution id.
        refused: Ascending by contribution id.
        votes: Ascending by id; for ancestors of this checkpoint.
        records: Membership records in the order in which they take effect.
        evidence: Ascending by id.
        corrected: Ascending by contribution id.
        model_digest: Digest of all adapted tensors after it, 32 bytes.
        update_norm: Frobenius norm of the applied update, rounded to 8 bits.
        proposer: Key of the certifier that signed it.
        envelope: The signed object itself.
    """

    id: bytes
    kind: CheckpointKind
    parent: bytes
    slot: int
    round: int
    accepted: tuple[AcceptedContribution, ...]
    refused: tuple[RefusedContribution, ...]
    votes: tuple[Vote, ...]
    records: tuple[Envelope, ...]
    evidence: tuple[Evidence, ...]
    corrected: tuple[CorrectedContribution, ...]
    model_digest: bytes
    update_norm: Scaled
    proposer: bytes
    envelope: Envelope = field(repr=False)

    def __hash__(self) -> int:
        return hash(self.id)


def make_checkpoint(
    key: SigningKey,
    *,
    swarm: bytes,
    kind: CheckpointKind,
    parent: bytes,
    slot: int,
    round: int,  # noqa: A002 - the protocol's word
    model_digest: bytes,
    update_norm: Scaled,
    accepted: Iterable[AcceptedContribution] = (),
    refused: Iterable[RefusedContribution] = (),
    votes: Iterable[Vote] = (),
    records: Sequence[Envelope] = (),
    evidence: Iterable[Evidence] = (),
    corrected: Iterable[CorrectedContribution] = (),
) -> Envelope:
    """Signs a checkpoint. Sorts everything whose order is by id; records keep the order given."""
    message = wire.Checkpoint(
        kind=wire.CheckpointKind.Name(kind),
        parent=parent,
        slot=slot,
        round=round,
        accepted=[
            wire.Accepted(contribution=entry.contribution.envelope.encode(), weight=entry.weight.to_wire())
            for entry in sorted(accepted, key=lambda entry: entry.contribution.id)
        ],
        refused=[
            wire.Refused(contribution=entry.contribution.envelope.encode(), rule=entry.rule, detail=entry.detail)
            for entry in sorted(refused, key=lambda entry: entry.contribution.id)
        ],
        votes=[vote.envelope.encode() for vote in sorted(votes, key=lambda vote: vote.id)],
        records=[record.encode() for record in records],
        evidence=[item.envelope.encode() for item in sorted(evidence, key=lambda item: item.id)],
        corrected=[
            wire.Corrected(contribution_id=entry.contribution_id, weight=entry.weight.to_wire())
            for entry in sorted(corrected, key=lambda entry: entry.contribution_id)
        ],
        model_digest=model_digest,
        update_norm=update_norm.to_wire(),
    )
    return seal(key, swarm=swarm, type=wire.CHECKPOINT, message=message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a checkpoint says that it belongs, read before anything inside it is opened."""

    parent: bytes
    slot: int


def contributions(checkpoint: Checkpoint) -> list[Contribution]:
    """What a checkpoint decides on: accepted, then refused."""
    return [a.contribution for a in checkpoint.accepted] + [r.contribution for r in checkpoint.refused]


def open_place(envelope: Envelope, genesis: Genesis) -> Place:
    """Checks a checkpoint's own fields and counts; the objects inside, which take long, stay closed.

    Raises:
        RejectError: Naming the first rule broken.
    """
    message = _read(envelope, genesis)
    return Place(parent=message.parent, slot=message.slot)


def open_checkpoint(envelope: Envelope, genesis: Genesis) -> Checkpoint:
    """Checks form, sizes, order and every object inside.

    Raises:
        RejectError: Naming the first rule broken, also by an object inside.
    """
    message = _read(envelope, genesis)
    accepted = tuple(_accepted(entry, genesis=genesis) for entry in message.accepted)
    refused = tuple(_refused(entry, genesis=genesis) for entry in message.refused)
    checkpoint = Checkpoint(
        id=envelope.id,
        kind=CheckpointKind(message.kind),
        parent=message.parent,
        slot=message.slot,
        round=message.round,
        accepted=accepted,
        refused=refused,
        votes=tuple(open_vote(open_envelope(data, swarm=genesis.swarm)) for data in message.votes),
        records=tuple(_record(data, genesis=genesis) for data in message.records),
        evidence=tuple(open_evidence(open_envelope(data, swarm=genesis.swarm)) for data in message.evidence),
        corrected=tuple(_corrected(entry) for entry in message.corrected),
        model_digest=message.model_digest,
        update_norm=Scaled.from_wire(message.update_norm),
        proposer=envelope.public_key,
        envelope=envelope,
    )
    _check_order(checkpoint)
    _check_kind(checkpoint)
    return checkpoint


def _read(envelope: Envelope, genesis: Genesis) -> wire.Checkpoint:
    size = len(envelope.encode())
    if size > genesis.limits.max_checkpoint_bytes:
        raise RejectError(
            Rule.SIZE, f"the checkpoint has {size} bytes, at most {genesis.limits.max_checkpoint_bytes} allowed here"
        )
    message = decode_payload(envelope, wire.Checkpoint)
    check_swarm(envelope, genesis)
    _check_known_kind(message)
    require_present(message, ["update_norm"], what="the checkpoint")
    check_id(message.parent, what="the parent")
    check_id(message.model_digest, what="the model digest")
    check_range(message.slot, 1, limits.MAX_SLOT, what="the slot", rule=Rule.SLOT)
    check_range(message.round, 0, message.slot, what="the round", rule=Rule.ROUND)
    _check_counts(message, max_accepted=genesis.rule.max_contributions)
    return message


def _check_known_kind(message: wire.Checkpoint) -> None:
    try:
        CheckpointKind(message.kind)
    except ValueError as error:
        raise RejectError(Rule.SCHEMA, f"the checkpoint kind {message.kind} is not known") from error


def _check_counts(message: wire.Checkpoint, *, max_accepted: int) -> None:
    for name, found, most in (
        ("accepted contributions", len(message.accepted), max_accepted),
        ("refused contributions", len(message.refused), limits.MAX_CARRIED_REFUSED),
        ("votes", len(message.votes), limits.MAX_CARRIED_VOTES),
        ("records", len(message.records), limits.MAX_CARRIED_RECORDS),
        ("evidence", len(message.evidence), limits.MAX_CARRIED_EVIDENCE),
        ("corrected contributions", len(message.corrected), limits.MAX_CORRECTED),
    ):
        check_range(found, 0, most, what=f"the number of {name}", rule=Rule.SIZE)


def _accepted(entry: wire.Accepted, *, genesis: Genesis) -> AcceptedContribution:
    require_present(entry, ["weight"], what="an accepted contribution")
    return AcceptedContribution(
        contribution=open_contribution(open_envelope(entry.contribution, swarm=genesis.swarm), genesis),
        weight=Scaled.from_wire(entry.weight),
    )


def _refused(entry: wire.Refused, *, genesis: Genesis) -> RefusedContribution:
    return RefusedContribution(
        contribution=open_contribution(open_envelope(entry.contribution, swarm=genesis.swarm), genesis),
        rule=check_rule(entry.rule),
        detail=check_text(entry.detail, limits.MAX_DETAIL_BYTES, what="the reason of a refusal"),
    )


def _corrected(entry: wire.Corrected) -> CorrectedContribution:
    require_present(entry, ["weight"], what="a corrected contribution")
    return CorrectedContribution(
        contribution_id=check_id(entry.contribution_id, what="a corrected contribution's id"),
        weight=Scaled.from_wire(entry.weight),
    )


def _record(data: bytes, *, genesis: Genesis) -> Envelope:
    envelope = open_envelope(data, swarm=genesis.swarm)
    if envelope.type not in RECORD_TYPES:
        raise RejectError(Rule.RECORD, f"a {type_name(envelope.type)} is carried as a record")
    return envelope


def _check_order(checkpoint: Checkpoint) -> None:
    contributions = [entry.contribution for entry in checkpoint.accepted]
    contributions += [entry.contribution for entry in checkpoint.refused]
    check_ascending([entry.contribution.id for entry in checkpoint.accepted], what="accepted contributions")
    check_ascending([entry.contribution.id for entry in checkpoint.refused], what="refused contributions")
    check_ascending([vote.id for vote in checkpoint.votes], what="votes")
    check_ascending([item.id for item in checkpoint.evidence], what="evidence")
    check_ascending([entry.contribution_id for entry in checkpoint.corrected], what="corrected contributions")
    for record, times in Counter(record.id for record in checkpoint.records).most_common(1):
        if times > 1:
            raise RejectError(Rule.DUPLICATE, f"record {record.hex()[:12]} is carried {times} times, 1 allowed")
    pairs = Counter((entry.member, entry.base_checkpoint) for entry in contributions)
    for (member, base), times in pairs.most_common(1):
        if times > 1:
            raise RejectError(
                Rule.DUPLICATE, f"{times} contributions of {member.hex()[:12]} on base {base.hex()[:12]}, 1 allowed"
            )
    late = next((vote for vote in checkpoint.votes if vote.target_slot >= checkpoint.slot), None)
    if late is not None:
        raise RejectError(
            Rule.VOTE, f"a vote for slot {late.target_slot} is carried in slot {checkpoint.slot}: no ancestor's slot"
        )


def _check_kind(checkpoint: Checkpoint) -> None:
    is_normal = checkpoint.kind == CheckpointKind.NORMAL
    is_correction = checkpoint.kind == CheckpointKind.CORRECTION
    name = checkpoint.kind.name.lower()
    if is_normal != bool(checkpoint.accepted):
        raise RejectError(Rule.SCHEMA, f"the checkpoint is {name} and accepts {len(checkpoint.accepted)} contributions")
    if checkpoint.refused and is_correction:
        raise RejectError(Rule.SCHEMA, f"the checkpoint is {name} and refuses {len(checkpoint.refused)} contributions")
    if is_correction != bool(checkpoint.corrected):
        raise RejectError(
            Rule.SCHEMA, f"the checkpoint is {name} and takes back {len(checkpoint.corrected)} contributions"
        )
    if checkpoint.kind == CheckpointKind.EMPTY and checkpoint.update_norm.mantissa:
        raise RejectError(Rule.SCHEMA, f"the checkpoint is empty and has norm {checkpoint.update_norm.value()}")
    if is_normal and checkpoint.round < 1:
        raise RejectError(Rule.ROUND, "the checkpoint is normal and has round 0, at least 1 required")

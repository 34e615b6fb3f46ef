"""One member's signed claim to have trained on one checkpoint (protocol section 5, step 3)."""

from dataclasses import dataclass, field

from fullrank_protocol.blob import BlobRef
from fullrank_protocol.canonical import check_id, check_range, check_time_ms, require_present
from fullrank_protocol.envelope import Envelope, decode_payload, seal
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.limits import MAX_SLOT, MAX_STEPS, MAX_TOKENS
from fullrank_protocol.wire import objects_pb2 as wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """The manifest of one delta.

    Attributes:
        id: Envelope id.
        member: Key of its author.
        base_checkpoint: The checkpoint that the training started from; the swarm id for the genesis.
        base_slot: Slot of that checkpoint; 0 for the genesis.
        blob: The encoded delta.
        codec: How it is encoded.
        num_tokens: Training tokens consumed, at least 1; capped before it weighs anything.
        num_steps: Optimiser steps, at least 1.
        loss_first_micro: Training loss of the first step in micro-nats; for people.
        loss_last_micro: The same of the last step.
        created_at_ms: The author's clock; for people.
        envelope: The signed object itself.
    """

    id: bytes
    member: bytes
    base_checkpoint: bytes
    base_slot: int
    blob: BlobRef
    codec: int
    num_tokens: int
    num_steps: int
    loss_first_micro: int
    loss_last_micro: int
    created_at_ms: int
    envelope: Envelope = field(repr=False)

    def __hash__(self) -> int:
        return hash(self.id)


def make_contribution(
    key: SigningKey,
    *,
    swarm: bytes,
    base_checkpoint: bytes,
    base_slot: int,
    blob: BlobRef,
    codec: int,
    num_tokens: int,
    num_steps: int,
    loss_first_micro: int,
    loss_last_micro: int,
    created_at_ms: int,
) -> Envelope:
    """Signs a contribution."""
    message = wire.Contribution(
        base_checkpoint=base_checkpoint,
        base_slot=base_slot,
        blob=blob.to_wire(),
        codec=codec,
        num_tokens=num_tokens,
        num_steps=num_steps,
        loss_first_micro=loss_first_micro,
        loss_last_micro=loss_last_micro,
        created_at_ms=created_at_ms,
    )
    return seal(key, swarm=swarm, type=wire.CONTRIBUTION, message=message)


def open_contribution(envelope: Envelope, genesis: Genesis) -> Contribution:
    """Checks form and bounds; membership, base and delta are checked elsewhere.

    Raises:
        RejectError: SWARM, SCHEMA, SLOT, SIZE, CODEC or TOKENS.
    """
    message = decode_payload(envelope, wire.Contribution)
    check_swarm(envelope, genesis)
    require_present(message, ["blob"], what="the contribution")
    check_checkpoint_mark(message.base_checkpoint, message.base_slot, swarm=genesis.swarm, what="base")
    blob = BlobRef.from_wire(message.blob, what="delta")
    check_range(blob.num_bytes, 1, genesis.limits.max_delta_bytes, what="the delta's number of bytes", rule=Rule.SIZE)
    if message.codec not in genesis.codecs:
        raise RejectError(Rule.CODEC, f"codec {message.codec} is not allowed here: {list(genesis.codecs)}")
    check_range(message.num_tokens, 1, MAX_TOKENS, what="the number of tokens", rule=Rule.TOKENS)
    check_range(message.num_steps, 1, MAX_STEPS, what="the number of steps", rule=Rule.TOKENS)
    check_time_ms(message.created_at_ms, what="the time of the contribution")
    return Contribution(
        id=envelope.id,
        member=envelope.public_key,
        base_checkpoint=message.base_checkpoint,
        base_slot=message.base_slot,
        blob=blob,
        codec=message.codec,
        num_tokens=message.num_tokens,
        num_steps=message.num_steps,
        loss_first_micro=message.loss_first_micro,
        loss_last_micro=message.loss_last_micro,
        created_at_ms=message.created_at_ms,
        envelope=envelope,
    )


def check_swarm(envelope: Envelope, genesis: Genesis) -> None:
    """Refuses an envelope of another swarm."""
    if envelope.swarm != genesis.swarm:
        raise RejectError(Rule.SWARM, f"belongs to swarm {envelope.swarm.hex()}, {genesis.swarm.hex()} required")


def check_checkpoint_mark(checkpoint: bytes, slot: int, *, swarm: bytes, what: str) -> None:
    """Refuses a named checkpoint whose slot cannot be: the genesis has slot 0 and nothing else has."""
    check_id(checkpoint, what=f"the {what} checkpoint")
    check_range(slot, 0, MAX_SLOT, what=f"the {what} slot", rule=Rule.SLOT)
    if (checkpoint == swarm) != (slot == 0):
        raise RejectError(Rule.SLOT, f"the {what} has slot {slot}; the genesis has slot 0 and every other a later one")

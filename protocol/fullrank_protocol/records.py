"""Membership records: making them, and checking what they say on their own (protocol section 4).

What a record does to the membership, and whether it is valid at its place in the chain, `membership` decides.
"""

from collections.abc import Callable
from typing import Final

from google.protobuf.message import Message

from fullrank_protocol import limits
from fullrank_protocol.canonical import (
    check_id,
    check_length,
    check_range,
    check_text,
    check_time_ms,
    length_prefixed,
    tagged_sha256,
    uint32,
)
from fullrank_protocol.envelope import Envelope, seal
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.identity import SigningKey, check_public_key, verify
from fullrank_protocol.wire import objects_pb2 as wire

ROLE_CONTRIBUTE: Final = 1
"""May contribute deltas."""

ROLE_CERTIFY: Final = 2
"""May take up the certifier role."""

ALL_ROLES: Final = ROLE_CONTRIBUTE | ROLE_CERTIFY

ROOT_TYPES: Final = frozenset(
    {wire.GRANT, wire.REVOCATION, wire.READMISSION, wire.RETIREMENT, wire.EJECTION, wire.CHOICE}
)
"""Records that need the root: the same payload signed by as many distinct root keys as the genesis says."""

RECORD_TYPES: Final = ROOT_TYPES | {wire.ADMISSION, wire.TAKE_UP, wire.LEAVE}
"""What a checkpoint may carry among its records."""

_INVITATION_TAG: Final = b"fullrank.v1.invitation"
_ROOT_ACTION_TAG: Final = b"fullrank.v1.root-action"


def root_action_id(*, swarm: bytes, type: int, payload: bytes) -> bytes:  # noqa: A002 - the protocol's word
    """Id of what a root record says, whichever root key signed it: SHA-256 over (tag, swarm, type, payload)."""
    return tagged_sha256(_ROOT_ACTION_TAG, swarm, uint32(type), payload)


def grant_id(envelope: Envelope) -> bytes:
    """Id of a grant: the same for every root key's signature under it."""
    return root_action_id(swarm=envelope.swarm, type=envelope.type, payload=envelope.payload)


def invitation_bytes(*, swarm: bytes, grant_id: bytes, member: bytes, roles: int, name: str) -> bytes:
    """What an invite's key signs to admit one member."""
    return length_prefixed(_INVITATION_TAG, swarm, grant_id, member, uint32(roles), name.encode())


def make_grant(
    key: SigningKey, *, swarm: bytes, invite_key: bytes, roles: int, count: int, not_after_ms: int
) -> Envelope:
    """Root: the bearer of the secret behind `invite_key` may admit up to `count` members."""
    message = wire.Grant(invite_key=invite_key, roles=roles, count=count, not_after_ms=not_after_ms)
    return seal(key, swarm=swarm, type=wire.GRANT, message=message)


def make_admission(
    key: SigningKey, *, swarm: bytes, invite_seed: bytes, grant_id: bytes, roles: int, name: str
) -> Envelope:
    """Member: joins by an invite, whose secret signs the member's key."""
    signed = invitation_bytes(swarm=swarm, grant_id=grant_id, member=key.public_key, roles=roles, name=name)
    message = wire.Admission(
        grant_id=grant_id,
        roles=roles,
        name=name,
        invite_signature=SigningKey.from_seed(invite_seed).sign(signed),
    )
    return seal(key, swarm=swarm, type=wire.ADMISSION, message=message)


def make_take_up(key: SigningKey, *, swarm: bytes, issued_at_ms: int) -> Envelope:
    """Member: becomes a certifier."""
    return seal(key, swarm=swarm, type=wire.TAKE_UP, message=wire.TakeUp(issued_at_ms=issued_at_ms))


def make_leave(key: SigningKey, *, swarm: bytes, issued_at_ms: int, certifier_role_only: bool = False) -> Envelope:
    """Member: goes, or only stops certifying."""
    message = wire.Leave(issued_at_ms=issued_at_ms, certifier_role_only=certifier_role_only)
    return seal(key, swarm=swarm, type=wire.LEAVE, message=message)


def make_revocation(
    key: SigningKey, *, swarm: bytes, subject: bytes, issued_at_ms: int, whole_tree: bool = False
) -> Envelope:
    """Root: takes the rights of a member or an invite away; with `whole_tree`, of all whom the invite admitted."""
    message = wire.Revocation(subject=subject, whole_tree=whole_tree, issued_at_ms=issued_at_ms)
    return seal(key, swarm=swarm, type=wire.REVOCATION, message=message)


def make_readmission(key: SigningKey, *, swarm: bytes, member: bytes, roles: int, issued_at_ms: int) -> Envelope:
    """Root: lets a revoked, excluded or departed key back in."""
    message = wire.Readmission(member=member, roles=roles, issued_at_ms=issued_at_ms)
    return seal(key, swarm=swarm, type=wire.READMISSION, message=message)


def make_retirement(key: SigningKey, *, swarm: bytes, certifier: bytes, issued_at_ms: int) -> Envelope:
    """Root: a vanished certifier no longer counts."""
    message = wire.Retirement(certifier=certifier, issued_at_ms=issued_at_ms)
    return seal(key, swarm=swarm, type=wire.RETIREMENT, message=message)


def make_ejection(key: SigningKey, *, swarm: bytes, member: bytes, since_round: int, issued_at_ms: int) -> Envelope:
    """Root: a member's contributions since a round are to be taken back."""
    message = wire.Ejection(member=member, since_round=since_round, issued_at_ms=issued_at_ms)
    return seal(key, swarm=swarm, type=wire.EJECTION, message=message)


def check_invitation(envelope: Envelope, message: wire.Admission, *, invite_key: bytes) -> None:
    """Refuses an admission that the invite's key did not sign for this member, roles and name."""
    signed = invitation_bytes(
        swarm=envelope.swarm,
        grant_id=message.grant_id,
        member=envelope.public_key,
        roles=message.roles,
        name=message.name,
    )
    if not verify(invite_key, signed, message.invite_signature):
        raise RejectError(
            Rule.RECORD, f"the admission of {envelope.public_key.hex()[:16]} is not signed by its invite's key"
        )


def check_record_fields(message: Message) -> None:
    """Checks the fields of any record's payload.

    Raises:
        RejectError: SCHEMA, SIGNATURE or RECORD.
    """
    _CHECK_OF[type(message)](message)


def _check_grant(message: wire.Grant) -> None:
    check_public_key(message.invite_key, what="the invite's key")
    _check_roles(message.roles)
    check_range(message.count, 1, limits.MAX_GRANT_COUNT, what="the invite's count", rule=Rule.RECORD)
    check_time_ms(message.not_after_ms, what="the invite's end")


def _check_admission(message: wire.Admission) -> None:
    check_id(message.grant_id, what="the grant id")
    _check_roles(message.roles)
    check_text(message.name, limits.MAX_NAME_BYTES, what="the member's name")
    check_length(message.invite_signature, limits.SIGNATURE_BYTES, what="the invite's signature")


def _check_request(message: wire.TakeUp | wire.Leave) -> None:
    check_time_ms(message.issued_at_ms, what="the time of the request")


def _check_revocation(message: wire.Revocation) -> None:
    check_public_key(message.subject, what="the revoked key")
    check_time_ms(message.issued_at_ms, what="the time of the revocation")


def _check_readmission(message: wire.Readmission) -> None:
    check_public_key(message.member, what="the member's key")
    _check_roles(message.roles)
    check_time_ms(message.issued_at_ms, what="the time of the readmission")


def _check_retirement(message: wire.Retirement) -> None:
    check_public_key(message.certifier, what="the certifier's key")
    check_time_ms(message.issued_at_ms, what="the time of the retirement")


def _check_ejection(message: wire.Ejection) -> None:
    check_public_key(message.member, what="the member's key")
    check_range(message.since_round, 1, limits.MAX_SLOT, what="the first round", rule=Rule.ROUND)
    check_time_ms(message.issued_at_ms, what="the time of the ejection")


def _check_choice(message: wire.Choice) -> None:
    check_id(message.checkpoint, what="the chosen checkpoint")
    check_range(message.slot, 1, limits.MAX_SLOT, what="the slot of the chosen checkpoint", rule=Rule.SLOT)
    check_time_ms(message.issued_at_ms, what="the time of the choice")


def _check_roles(roles: int) -> None:
    check_range(roles, 1, ALL_ROLES, what="the roles", rule=Rule.RECORD)


_CHECK_OF: Final[dict[type[Message], Callable[..., None]]] = {
    wire.Grant: _check_grant,
    wire.Admission: _check_admission,
    wire.TakeUp: _check_request,
    wire.Leave: _check_request,
    wire.Revocation: _check_revocation,
    wire.Readmission: _check_readmission,
    wire.Retirement: _check_retirement,
    wire.Ejection: _check_ejection,
    wire.Choice: _check_choice,
}

"""Who may do what after a checkpoint, and whether the invites of those whom it admits hold.

A part of the checker's books, written from protocol sections 2 to 4: it shares no rule with `membership` and `records`.
Of records it knows what the simulator makes: one root key, no tree of an invite revoked, nobody ejected.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fullrank_protocol.chain import Mark
from fullrank_protocol.checkpoint import Checkpoint
from fullrank_protocol.envelope import MESSAGE_OF_TYPE, Envelope
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.identity import verify
from fullrank_protocol.membership import ROLE_CERTIFY
from fullrank_protocol.wire import objects_pb2 as wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """A grant that was carried.

    Attributes:
        key: Public half of the secret that admits.
        roles: The most that it gives.
        left: Members whom it admits still.
        not_after_ms: Slots of admissions end by then.
        is_revoked: It admits nobody any more.
    """

    key: bytes
    roles: int
    left: int
    not_after_ms: int
    is_revoked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Who may do what after a checkpoint.

    Attributes:
        roles: Of every member.
        shut_out: Keys revoked or excluded.
        certifiers: Who votes.
        changed: The newest checkpoint that changed the certifiers, or the genesis.
        invites: By the grant's id.
        by_root: Certifiers that the root's records in this very checkpoint removed.
        intruders: What is wrong with each whom this very checkpoint admits although no invite holds for it.
    """

    roles: Mapping[bytes, int]
    shut_out: frozenset[bytes]
    certifiers: frozenset[bytes]
    changed: Mark
    invites: Mapping[bytes, Invite]
    by_root: frozenset[bytes] = frozenset()
    intruders: tuple[str, ...] = ()


def enact(standing: Standing, checkpoint: Checkpoint, genesis: Genesis) -> Standing:  # noqa: C901 - one flat table
    """What the records and the evidence of a checkpoint change. Whoever is admitted is a member, rightly or not."""
    if not checkpoint.records and not checkpoint.evidence:
        return replace(standing, by_root=frozenset(), intruders=())
    roles, shut_out, certifiers = dict(standing.roles), set(standing.shut_out), set(standing.certifiers)
    invites = dict(standing.invites)
    by_root: set[bytes] = set()
    intruders: list[str] = []
    end_ms = genesis.created_at_ms + (checkpoint.slot + 1) * genesis.timing.slot_window_ms
    for record in checkpoint.records:
        author = record.public_key
        match MESSAGE_OF_TYPE[record.type].FromString(record.payload):
            case wire.Grant() as grant:
                _grant(invites, record, grant, root_keys=genesis.membership.root_keys)
            case wire.Admission() as admission:
                why = _why_not(invites.get(admission.grant_id), admission, record, end_ms=end_ms)
                if author in shut_out:
                    why = "was shut out"
                if why:
                    intruders.append(why)
                else:
                    invite = invites[admission.grant_id]
                    invites[admission.grant_id] = replace(invite, left=invite.left - 1)
                roles[author] = roles.get(author, 0) | admission.roles
            case wire.TakeUp() if roles.get(author, 0) & ROLE_CERTIFY:
                certifiers.add(author)
            case wire.Leave() as leave:
                certifiers.discard(author)
                if not leave.certifier_role_only:
                    roles.pop(author, None)
            case wire.Revocation(subject=subject) if subject in {invite.key for invite in invites.values()}:
                for grant_id, invite in invites.items():
                    if invite.key == subject:
                        invites[grant_id] = replace(invite, is_revoked=True)
            case wire.Revocation() as revocation:
                by_root |= certifiers & {revocation.subject}
                certifiers.discard(revocation.subject)
                roles.pop(revocation.subject, None)
                shut_out.add(revocation.subject)
            case wire.Retirement() as retirement:
                by_root |= certifiers & {retirement.certifier}
                certifiers.discard(retirement.certifier)
            case wire.Readmission() as readmission:
                roles[readmission.member] = readmission.roles
                shut_out.discard(readmission.member)
    for piece in checkpoint.evidence:
        roles.pop(piece.accused, None)
        certifiers.discard(piece.accused)
        shut_out.add(piece.accused)
    is_changed = certifiers != standing.certifiers
    return Standing(
        roles=roles,
        shut_out=frozenset(shut_out),
        certifiers=frozenset(certifiers),
        changed=Mark(slot=checkpoint.slot, checkpoint=checkpoint.id) if is_changed else standing.changed,
        invites=invites,
        by_root=frozenset(by_root),
        intruders=tuple(intruders),
    )


def _grant(invites: dict[bytes, Invite], record: Envelope, grant: wire.Grant, *, root_keys: tuple[bytes, ...]) -> None:
    """One of the root, and the first for its key, is an invite; what refers to any other refers to nothing."""
    if record.public_key not in root_keys or grant.invite_key in {invite.key for invite in invites.values()}:
        return
    action = _lined_up(b"fullrank.v1.root-action", record.swarm, struct.pack("<I", record.type), record.payload)
    invites[hashlib.sha256(action).digest()] = Invite(
        key=grant.invite_key, roles=grant.roles, left=grant.count, not_after_ms=grant.not_after_ms
    )


def _why_not(invite: Invite | None, admission: wire.Admission, record: Envelope, *, end_ms: int) -> str:
    """What is wrong with an admission's invite in a slot with that end; empty when it holds."""
    if invite is None:
        return "has no invite"
    invitation = _lined_up(
        b"fullrank.v1.invitation",
        record.swarm,
        admission.grant_id,
        record.public_key,
        struct.pack("<I", admission.roles),
        admission.name.encode(),
    )
    faults = (
        (invite.is_revoked, "has an invite that was revoked"),
        (invite.left < 1, "has an invite that is used up"),
        (end_ms > invite.not_after_ms, "has an invite that is over"),
        (bool(admission.roles & ~invite.roles), "has more roles than the invite gives"),
        (not verify(invite.key, invitation, admission.invite_signature), "does not have the invite's secret"),
    )
    return next((why for is_so, why in faults if is_so), "")


def _lined_up(*fields: bytes) -> bytes:
    """Fields, each behind its length as u64: L(…) ‖ L(…) ‖ …"""
    return b"".join(struct.pack("<Q", len(field)) + field for field in fields)

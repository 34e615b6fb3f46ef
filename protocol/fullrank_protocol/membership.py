"""Who belongs to a swarm at a checkpoint, and what a record changes about it (protocol section 4).

`Members` is a pure function of the genesis and the records carried since, in order. A record is carried at most once.
Root records need the genesis' number of distinct root keys under the same payload: until then the state only counts
the approvals. Requests of one member, and root records about one key, must grow in time, so that an older paper that
was never carried cannot come back after a newer one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from google.protobuf.message import Message

from fullrank_protocol import limits
from fullrank_protocol.envelope import MESSAGE_OF_TYPE, Envelope, decode_payload, type_name
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.records import (
    ALL_ROLES,
    RECORD_TYPES,
    ROLE_CERTIFY,
    ROLE_CONTRIBUTE,
    ROOT_TYPES,
    check_invitation,
    check_record_fields,
    grant_id,
    make_admission,
    make_ejection,
    make_grant,
    make_leave,
    make_readmission,
    make_retirement,
    make_revocation,
    make_take_up,
    root_action_id,
)
from fullrank_protocol.wire import objects_pb2 as wire

__all__ = [
    "ALL_ROLES",
    "RECORD_TYPES",
    "ROLE_CERTIFY",
    "ROLE_CONTRIBUTE",
    "ROOT_TYPES",
    "Grant",
    "Member",
    "Members",
    "certifier_change",
    "grant_id",
    "initial_members",
    "make_admission",
    "make_ejection",
    "make_grant",
    "make_leave",
    "make_readmission",
    "make_retirement",
    "make_revocation",
    "make_take_up",
    "root_action_id",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One admitted key.

    Attributes:
        key: Its public key.
        roles: ROLE_CONTRIBUTE and ROLE_CERTIFY, or'ed.
        name: As the member calls itself; may be empty.
        grant_id: The grant, or readmission, that it came by; empty for a founder.
        admitted_slot: Slot of the checkpoint that carried its admission; 0 for a founder.
        last_request_ms: Time of its newest take-up or leave, or of its retirement; the next request must be later.
    """

    key: bytes
    roles: int
    name: str
    grant_id: bytes
    admitted_slot: int
    last_request_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """An invite in force.

    Attributes:
        id: The same whichever root key signed.
        invite_key: Public half of the invite's secret.
        roles: Most that it can give.
        count: Members that it may admit in all.
        not_after_ms: The slot of an admission must end by then.
        used: Members admitted so far.
        revoked: No more admissions.
    """

    id: bytes
    invite_key: bytes
    roles: int
    count: int
    not_after_ms: int
    used: int = 0
    revoked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """The membership after a checkpoint. Never changed in place.

    Attributes:
        members: Members with their rights, by key.
        former: Those who left, were revoked or excluded, by key: still known by name.
        certifiers: Who votes. A certifier whose whole invite tree was revoked stays in until retired one by one.
        grants: Invites by grant id.
        revoked: Keys that the root shut out; only the root lets them back.
        excluded: Keys shut out by evidence of an offence; only the root lets them back.
        pardoned: Slot of the readmission by key: offences up to it no longer count.
        ejected: By key, the first round from which a member's contributions are to be taken back.
        approvals: Root keys that signed a root action so far, by action id; until it takes effect.
        enacted: Root actions that took effect.
        root_times: Time of the newest root record in force about a key.
        seen: Ids of all records carried.
    """

    members: Mapping[bytes, Member]
    former: Mapping[bytes, Member]
    certifiers: frozenset[bytes]
    grants: Mapping[bytes, Grant]
    revoked: frozenset[bytes]
    excluded: frozenset[bytes]
    pardoned: Mapping[bytes, int]
    ejected: Mapping[bytes, int]
    approvals: Mapping[bytes, frozenset[bytes]]
    enacted: frozenset[bytes]
    root_times: Mapping[bytes, int]
    seen: frozenset[bytes]

    def is_member(self, key: bytes) -> bool:
        """Whether `key` has any rights now."""
        return key in self.members

    def may(self, key: bytes, role: int) -> bool:
        """Whether `key` is a member with `role`."""
        member = self.members.get(key)
        return member is not None and bool(member.roles & role)

    def is_banned(self, key: bytes) -> bool:
        """Whether `key` was revoked or excluded; in an open swarm, strangers may do what the banned may not."""
        return key in self.revoked or key in self.excluded

    def why_shut_out(self, key: bytes) -> str:
        """What became of a key that has no rights (any more), as the end of a sentence about it."""
        if key in self.revoked:
            return "was revoked"
        if key in self.excluded:
            return "was excluded for breaking a voting rule"
        return "has left" if key in self.former else "is not a contributing member"

    def has_record(self, record_id: bytes) -> bool:
        """Whether a record was carried already."""
        return record_id in self.seen

    def find(self, key: bytes) -> Member | None:
        """A present or former member."""
        return self.members.get(key) or self.former.get(key)

    def grant_of_invite(self, invite_key: bytes) -> Grant | None:
        """The invite with that public key."""
        return next((grant for grant in self.grants.values() if grant.invite_key == invite_key), None)

    def apply(self, envelope: Envelope, *, slot: int, genesis: Genesis) -> "Members":
        """The membership after a checkpoint of `slot` carried this record.

        Raises:
            RejectError: MEMBERSHIP when something that it builds on is not (yet) so, else RECORD, DUPLICATE or
                CERTIFIERS, or what is wrong with the record itself.
        """
        message = open_record(envelope, genesis)
        if envelope.id in self.seen:
            raise RejectError(Rule.DUPLICATE, f"the {type_name(envelope.type)} {envelope.id.hex()} was carried before")
        now = replace(self, seen=self.seen | {envelope.id})
        if envelope.type in ROOT_TYPES:
            return _approve(now, envelope, message, slot=slot, genesis=genesis)
        return _MEMBER_EFFECTS[envelope.type](now, envelope, message, slot, genesis)

    def exclude(self, key: bytes, *, offence_slot: int | None = None) -> "Members":
        """The membership after a checkpoint carried evidence against `key`.

        Args:
            key: The accused.
            offence_slot: The later target slot of the two votes; offences before a readmission are forgiven.

        Raises:
            RejectError: EVIDENCE when the key is unknown or forgiven, DUPLICATE when it is excluded already,
                CERTIFIERS when nobody would be left.
        """
        if key in self.excluded:
            raise RejectError(Rule.DUPLICATE, f"{_short(key)} is excluded already")
        if self.find(key) is None and key not in self.certifiers:
            raise RejectError(Rule.EVIDENCE, f"{_short(key)} was never a member")
        pardon = self.pardoned.get(key, -1)
        if offence_slot is not None and offence_slot <= pardon:
            raise RejectError(
                Rule.EVIDENCE,
                f"the offence of slot {offence_slot} is forgiven: {_short(key)} was readmitted in {pardon}",
            )
        return replace(_without(self, key), excluded=self.excluded | {key})


def open_record(envelope: Envelope, genesis: Genesis) -> Message:
    """Checks what is so of a record whatever the chain: form, fields, and that the root's are by a root key.

    Raises:
        RejectError: RECORD, SWARM, or what is wrong with the fields.
    """
    name = type_name(envelope.type)
    if envelope.type not in RECORD_TYPES:
        raise RejectError(Rule.RECORD, f"a {name} is no record")
    if envelope.swarm != genesis.swarm:
        raise RejectError(Rule.SWARM, f"belongs to swarm {envelope.swarm.hex()}, {genesis.swarm.hex()} required")
    message = decode_payload(envelope, MESSAGE_OF_TYPE[envelope.type])
    check_record_fields(message)
    if envelope.type in ROOT_TYPES and envelope.public_key not in genesis.membership.root_keys:
        raise RejectError(Rule.RECORD, f"the {name} is signed by {_short(envelope.public_key)}, which is no root key")
    return message


def initial_members(genesis: Genesis) -> Members:
    """The founders, with both roles and certifiers from the start."""
    membership = genesis.membership
    names = membership.founder_names or ("",) * len(membership.founders)
    founders = {
        key: Member(key=key, roles=ALL_ROLES, name=name, grant_id=b"", admitted_slot=0)
        for key, name in zip(membership.founders, names, strict=True)
    }
    return Members(
        members=founders,
        former={},
        certifiers=frozenset(founders),
        grants={},
        revoked=frozenset(),
        excluded=frozenset(),
        pardoned={},
        ejected={},
        approvals={},
        enacted=frozenset(),
        root_times={},
        seen=frozenset(),
    )


def certifier_change(before: Members, after: Members) -> tuple[frozenset[bytes], frozenset[bytes]]:
    """Keys (added to, removed from) the certifiers; the chain allows one of them at a time (section 8)."""
    return after.certifiers - before.certifiers, before.certifiers - after.certifiers


def _without(state: Members, key: bytes) -> Members:
    """Takes every right from `key`."""
    _check_not_last(state, key)
    member = state.members.get(key)
    if member is not None:
        remaining = {other: entry for other, entry in state.members.items() if other != key}
        state = replace(state, members=remaining, former={**state.former, key: member})
    return replace(state, certifiers=state.certifiers - {key})


def _check_not_last(state: Members, key: bytes) -> None:
    if state.certifiers == {key}:
        raise RejectError(Rule.CERTIFIERS, f"{_short(key)} is the last certifier: without it nothing can go on")


def _short(key: bytes) -> str:
    return key.hex()[:16]


# ---- records of the root ----


def _approve(state: Members, envelope: Envelope, message: Message, *, slot: int, genesis: Genesis) -> Members:
    """Counts one root key's signature, and enacts the record with the last one needed."""
    policy = genesis.membership
    name = type_name(envelope.type)
    action = root_action_id(swarm=envelope.swarm, type=envelope.type, payload=envelope.payload)
    if action in state.enacted:
        raise RejectError(Rule.DUPLICATE, f"the {name} {_short(action)} is in force already")
    signers = state.approvals.get(action, frozenset()) | {envelope.public_key}
    if len(signers) < policy.root_threshold:
        return replace(state, approvals={**state.approvals, action: signers})
    others = {other: keys for other, keys in state.approvals.items() if other != action}
    state = replace(state, approvals=others, enacted=state.enacted | {action})
    return _ROOT_EFFECTS[envelope.type](state, message, action, slot, genesis)


def _newer(state: Members, key: bytes, issued_at_ms: int) -> Members:
    """Notes a root record about `key`, which must be newer than the last one in force."""
    last = state.root_times.get(key, 0)
    if issued_at_ms <= last:
        raise RejectError(
            Rule.RECORD, f"the root's record is of {issued_at_ms}, its newest about {_short(key)} of {last}: not later"
        )
    return replace(state, root_times={**state.root_times, key: issued_at_ms})


def _grant(state: Members, message: wire.Grant, action: bytes, slot: int, genesis: Genesis) -> Members:
    end = genesis.slot_end_ms(slot)
    if end > message.not_after_ms:
        raise RejectError(Rule.RECORD, f"invite expired at {message.not_after_ms}, the slot ends at {end}")
    if state.grant_of_invite(message.invite_key) is not None:
        raise RejectError(Rule.RECORD, f"the invite key {_short(message.invite_key)} has a grant already")
    grant = Grant(
        id=action,
        invite_key=message.invite_key,
        roles=message.roles,
        count=message.count,
        not_after_ms=message.not_after_ms,
    )
    return replace(state, grants={**state.grants, action: grant})


def _revoke(state: Members, message: wire.Revocation, _action: bytes, _slot: int, _genesis: Genesis) -> Members:
    """Shuts out a member at once, or an invite; a whole tree keeps its certifiers until each is retired.

    The certifier set changes by one at a time, so a tree with two certifiers could not be cut off at a stroke.
    """
    subject = message.subject
    state = _newer(state, subject, message.issued_at_ms)
    grant = state.grant_of_invite(subject)
    if grant is None:
        if message.whole_tree:
            raise RejectError(Rule.MEMBERSHIP, f"{_short(subject)} is no invite key: it has no tree")
        return replace(_without(state, subject), revoked=state.revoked | {subject})
    state = replace(state, grants={**state.grants, grant.id: replace(grant, revoked=True)})
    if not message.whole_tree:
        return state
    tree = {key: member for key, member in state.members.items() if member.grant_id == grant.id}
    gone = frozenset([*tree, *_former_of(state, grant)])
    times = {key: max(message.issued_at_ms, state.root_times.get(key, 0)) for key in gone}
    return replace(
        state,
        members={key: member for key, member in state.members.items() if key not in tree},
        former={**state.former, **tree},
        revoked=state.revoked | gone,
        root_times={**state.root_times, **times},
    )


def _former_of(state: Members, grant: Grant) -> list[bytes]:
    """Those who came by the invite and left: they must not come back by another one."""
    return [key for key, member in state.former.items() if member.grant_id == grant.id]


def _readmit(state: Members, message: wire.Readmission, action: bytes, slot: int, _genesis: Genesis) -> Members:
    key = message.member
    if key in state.members:
        raise RejectError(Rule.RECORD, f"{_short(key)} is a member: nothing to readmit")
    state = _newer(state, key, message.issued_at_ms)
    former = state.former.get(key)
    member = Member(
        key=key,
        roles=message.roles,
        name=former.name if former else "",
        grant_id=action,
        admitted_slot=slot,
        last_request_ms=former.last_request_ms if former else 0,
    )
    return replace(
        state,
        members={**state.members, key: member},
        former={other: entry for other, entry in state.former.items() if other != key},
        revoked=state.revoked - {key},
        excluded=state.excluded - {key},
        pardoned={**state.pardoned, key: slot},
    )


def _retire(state: Members, message: wire.Retirement, _action: bytes, _slot: int, _genesis: Genesis) -> Members:
    if message.certifier not in state.certifiers:
        raise RejectError(Rule.MEMBERSHIP, f"{_short(message.certifier)} is no certifier")
    _check_not_last(state, message.certifier)
    state = _newer(state, message.certifier, message.issued_at_ms)
    member = state.members.get(message.certifier)
    if member is not None:  # A take-up from before the retirement must not undo it.
        member = replace(member, last_request_ms=max(member.last_request_ms, message.issued_at_ms))
        state = replace(state, members={**state.members, member.key: member})
    return replace(state, certifiers=state.certifiers - {message.certifier})


def _eject(state: Members, message: wire.Ejection, _action: bytes, _slot: int, _genesis: Genesis) -> Members:
    since = min(message.since_round, state.ejected.get(message.member, message.since_round))
    return replace(state, ejected={**state.ejected, message.member: since})


def _choose(state: Members, _message: wire.Choice, _action: bytes, _slot: int, _genesis: Genesis) -> Members:
    """Carried so that everybody can read it; which branch a node follows is its owner's affair."""
    return state


# ---- records of members ----


def _admit(state: Members, envelope: Envelope, message: wire.Admission, slot: int, genesis: Genesis) -> Members:
    key = envelope.public_key
    grant = state.grants.get(message.grant_id)
    if grant is None:
        raise RejectError(Rule.MEMBERSHIP, f"the grant {_short(message.grant_id)} is not known here")
    if state.is_banned(key):
        raise RejectError(Rule.RECORD, f"{_short(key)} was shut out; only the root can let it back in")
    if grant.revoked:
        raise RejectError(Rule.RECORD, f"invite {_short(grant.invite_key)} was revoked")
    if grant.used >= grant.count:
        raise RejectError(Rule.RECORD, f"invite exhausted: {grant.used} of {grant.count} used")
    end = genesis.slot_end_ms(slot)
    if end > grant.not_after_ms:
        raise RejectError(Rule.RECORD, f"invite expired at {grant.not_after_ms}, the slot ends at {end}")
    if message.roles & ~grant.roles:
        raise RejectError(Rule.RECORD, f"asks for roles {message.roles}, the invite gives {grant.roles}")
    check_invitation(envelope, message, invite_key=grant.invite_key)
    known = state.members.get(key)
    if known is not None and not message.roles & ~known.roles:
        raise RejectError(Rule.RECORD, f"{_short(key)} is a member with roles {known.roles} already")
    previous = known or state.former.get(key)
    member = Member(
        key=key,
        roles=message.roles | (known.roles if known else 0),
        name=message.name,
        grant_id=grant.id,
        admitted_slot=slot,
        last_request_ms=previous.last_request_ms if previous else 0,
    )
    return replace(
        state,
        members={**state.members, key: member},
        former={other: entry for other, entry in state.former.items() if other != key},
        grants={**state.grants, grant.id: replace(grant, used=grant.used + 1)},
    )


def _request(state: Members, key: bytes, issued_at_ms: int) -> tuple[Members, Member]:
    """Notes a member's own request, which must be newer than its last."""
    member = state.members.get(key)
    if member is None:
        raise RejectError(Rule.MEMBERSHIP, f"{_short(key)} is no member")
    if issued_at_ms <= member.last_request_ms:
        raise RejectError(
            Rule.RECORD, f"the request is of {issued_at_ms}, the member's last of {member.last_request_ms}: not later"
        )
    member = replace(member, last_request_ms=issued_at_ms)
    return replace(state, members={**state.members, key: member}), member


def _take_up(state: Members, envelope: Envelope, message: wire.TakeUp, _slot: int, _genesis: Genesis) -> Members:
    state, member = _request(state, envelope.public_key, message.issued_at_ms)
    if not member.roles & ROLE_CERTIFY:
        raise RejectError(Rule.MEMBERSHIP, f"{_short(member.key)} has roles {member.roles}, certify is not among them")
    if member.key in state.certifiers:
        raise RejectError(Rule.RECORD, f"{_short(member.key)} is a certifier already")
    if len(state.certifiers) >= limits.MAX_CERTIFIERS:
        raise RejectError(
            Rule.CERTIFIERS, f"the swarm has {len(state.certifiers)} certifiers, at most {limits.MAX_CERTIFIERS}"
        )
    return replace(state, certifiers=state.certifiers | {member.key})


def _leave(state: Members, envelope: Envelope, message: wire.Leave, _slot: int, _genesis: Genesis) -> Members:
    state, member = _request(state, envelope.public_key, message.issued_at_ms)
    if not message.certifier_role_only:
        return _without(state, member.key)
    if member.key not in state.certifiers:
        raise RejectError(Rule.MEMBERSHIP, f"{_short(member.key)} is no certifier")
    _check_not_last(state, member.key)
    return replace(state, certifiers=state.certifiers - {member.key})


_ROOT_EFFECTS: Final[dict[int, Callable[..., Members]]] = {
    wire.GRANT: _grant,
    wire.REVOCATION: _revoke,
    wire.READMISSION: _readmit,
    wire.RETIREMENT: _retire,
    wire.EJECTION: _eject,
    wire.CHOICE: _choose,
}

_MEMBER_EFFECTS: Final[dict[int, Callable[..., Members]]] = {
    wire.ADMISSION: _admit,
    wire.TAKE_UP: _take_up,
    wire.LEAVE: _leave,
}

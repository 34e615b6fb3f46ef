"""Who belongs to a swarm, record by record."""

from typing import Any

import pytest
from swarms import CREATED_AT_MS, WINDOW_MS, Swarm, genesis_message, id_of, key_of, seed_of, swarm_of

from fullrank_protocol import limits
from fullrank_protocol.envelope import Envelope, seal
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import create_genesis
from fullrank_protocol.membership import (
    ALL_ROLES,
    RECORD_TYPES,
    ROLE_CERTIFY,
    ROLE_CONTRIBUTE,
    Members,
    certifier_change,
    grant_id,
    initial_members,
    make_admission,
    make_ejection,
    make_grant,
    make_leave,
    make_readmission,
    make_retirement,
    make_revocation,
    make_take_up,
)
from fullrank_protocol.vote import make_choice
from fullrank_protocol.wire import objects_pb2 as wire

SWARM = swarm_of(founders=("ada", "bob"))


def key(name: str) -> bytes:
    return key_of(name).public_key


class Story:
    """A membership that records change one after another."""

    def __init__(self, swarm: Swarm = SWARM) -> None:
        self.swarm = swarm
        self.members = initial_members(swarm.genesis)
        self.slot = 1

    def carry(self, *records: Envelope) -> "Story":
        for record in records:
            self.members = self.members.apply(self.swarm.opened(record), slot=self.slot, genesis=self.swarm.genesis)
        return self

    def refuses(self, record: Envelope, rule: Rule, words: str) -> None:
        before = self.members
        with pytest.raises(RejectError, match=words) as caught:
            self.carry(record)
        assert caught.value.rule is rule
        assert self.members is before

    def grant(self, invite: str = "invite", *, by: str = "ada", **fields: Any) -> Envelope:
        given: dict[str, Any] = {"roles": ALL_ROLES, "count": 3, "not_after_ms": CREATED_AT_MS + 100 * WINDOW_MS}
        return make_grant(key_of(by), swarm=self.swarm.id, invite_key=key(invite), **(given | fields))

    def admission(self, who: str, invite: str = "invite", *, roles: int = ALL_ROLES, **fields: Any) -> Envelope:
        given: dict[str, Any] = {
            "invite_seed": seed_of(invite),
            "grant_id": grant_id(self.grant(invite)),
            "name": who,
        }
        return make_admission(key_of(who), swarm=self.swarm.id, roles=roles, **(given | fields))

    def take_up(self, name: str, at: int = 10) -> Envelope:
        return make_take_up(key_of(name), swarm=self.swarm.id, issued_at_ms=at)

    def leave(self, name: str, at: int = 20, *, only: bool = False) -> Envelope:
        return make_leave(key_of(name), swarm=self.swarm.id, issued_at_ms=at, certifier_role_only=only)

    def revocation(self, subject: str, at: int = 30, *, tree: bool = False, by: str = "ada") -> Envelope:
        return make_revocation(key_of(by), swarm=self.swarm.id, subject=key(subject), issued_at_ms=at, whole_tree=tree)

    def readmission(self, member: str, at: int = 40, roles: int = ALL_ROLES) -> Envelope:
        return make_readmission(key_of("ada"), swarm=self.swarm.id, member=key(member), roles=roles, issued_at_ms=at)

    def retirement(self, certifier: str, at: int = 30) -> Envelope:
        return make_retirement(key_of("ada"), swarm=self.swarm.id, certifier=key(certifier), issued_at_ms=at)


def names(keys: frozenset[bytes]) -> set[str]:
    """Keys as the names that they were made from."""
    known = {key(name): name for name in ("ada", "bob", "cyd", "dan", "eve", "fay", "zoe")}
    return {known[each] for each in keys}


# ---- the beginning ----


def test_founders_bear_the_names_that_the_genesis_gives_them() -> None:
    message = genesis_message(founders=("ada",))
    message.membership.founder_names.append("quiet-otter")
    named = create_genesis(key_of("ada"), message)
    assert initial_members(named).members[key_of("ada").public_key].name == "quiet-otter"
    assert initial_members(SWARM.genesis).members[key_of("ada").public_key].name == ""


def test_founders_contribute_and_certify_from_the_start() -> None:
    members = initial_members(SWARM.genesis)
    assert members.certifiers == {key("ada"), key("bob")}
    for name in ("ada", "bob"):
        assert members.is_member(key(name))
        assert members.may(key(name), ROLE_CONTRIBUTE)
        assert members.may(key(name), ROLE_CERTIFY)
    assert not members.is_member(key("cyd"))
    assert not members.may(key("cyd"), ROLE_CONTRIBUTE)
    assert not members.is_banned(key("cyd"))


def test_applying_changes_nothing_in_place() -> None:
    before = initial_members(SWARM.genesis)
    story = Story().carry(Story().grant())
    story.carry(story.admission("cyd"), story.take_up("cyd"), story.leave("bob"), story.revocation("cyd"))
    assert before == initial_members(SWARM.genesis)


# ---- invites ----


def test_the_bearer_of_an_invite_becomes_a_member() -> None:
    story = Story()
    story.carry(story.grant(), story.admission("cyd"))
    member = story.members.members[key("cyd")]
    assert (member.name, member.roles, member.admitted_slot) == ("cyd", ALL_ROLES, 1)
    assert member.grant_id == grant_id(story.grant())
    assert story.members.grants[grant_id(story.grant())].used == 1
    assert story.members.may(key("cyd"), ROLE_CONTRIBUTE)
    assert key("cyd") not in story.members.certifiers, "certifying is taken up on request"


def test_an_invite_admits_as_many_as_it_says() -> None:
    story = Story()
    story.carry(story.grant(count=2))
    by = grant_id(story.grant(count=2))
    story.carry(story.admission("cyd", grant_id=by), story.admission("dan", grant_id=by))
    story.refuses(story.admission("eve", grant_id=by), Rule.RECORD, "invite exhausted: 2 of 2 used")


def test_an_invite_ends_with_the_last_slot_that_ends_by_its_time() -> None:
    story = Story()
    end = CREATED_AT_MS + 11 * WINDOW_MS  # Slot 10 ends here.
    story.carry(story.grant(not_after_ms=end))
    by = grant_id(story.grant(not_after_ms=end))
    story.slot = 10
    story.carry(story.admission("cyd", grant_id=by))
    story.slot = 11
    story.refuses(story.admission("dan", grant_id=by), Rule.RECORD, f"invite expired at {end}, the slot ends at")
    story.refuses(story.grant("late", not_after_ms=end), Rule.RECORD, f"invite expired at {end}")


def test_an_admission_before_its_grant_may_come_again_later() -> None:
    story = Story()
    story.refuses(story.admission("cyd"), Rule.MEMBERSHIP, "grant .* is not known here")
    story.carry(story.grant(), story.admission("cyd"))
    assert story.members.is_member(key("cyd"))


def test_nobody_gets_more_roles_than_the_invite_gives() -> None:
    story = Story()
    story.carry(story.grant(roles=ROLE_CONTRIBUTE))
    by = grant_id(story.grant(roles=ROLE_CONTRIBUTE))
    story.refuses(story.admission("cyd", grant_id=by), Rule.RECORD, "asks for roles 3, the invite gives 1")
    story.carry(story.admission("cyd", grant_id=by, roles=ROLE_CONTRIBUTE))
    story.refuses(story.take_up("cyd"), Rule.MEMBERSHIP, "has roles 1, certify is not among them")


def test_only_the_secret_of_the_invite_admits() -> None:
    story = Story()
    story.carry(story.grant())
    story.refuses(
        story.admission("cyd", invite_seed=seed_of("another")), Rule.RECORD, "is not signed by its invite's key"
    )


@pytest.mark.parametrize("field", ["roles", "name", "key"])
def test_an_invites_signature_fits_one_member_with_one_name_and_these_roles(field: str) -> None:
    story = Story()
    story.carry(story.grant())
    honest = wire.Admission.FromString(story.admission("cyd").payload)
    if field == "roles":
        honest.roles = ROLE_CONTRIBUTE
    if field == "name":
        honest.name = "ada"
    signer = key_of("eve") if field == "key" else key_of("cyd")
    stolen = seal(signer, swarm=SWARM.id, type=wire.ADMISSION, message=honest)
    story.refuses(stolen, Rule.RECORD, "is not signed by its invite's key")


def test_a_member_is_admitted_again_only_for_another_role() -> None:
    story = Story()
    story.carry(story.grant(), story.grant("second"), story.admission("cyd", roles=ROLE_CONTRIBUTE))
    again = story.admission("cyd", "second", roles=ROLE_CONTRIBUTE)
    story.refuses(again, Rule.RECORD, "is a member with roles 1 already")
    story.carry(story.admission("cyd", "second", roles=ROLE_CERTIFY))
    assert story.members.members[key("cyd")].roles == ALL_ROLES


def test_one_invite_key_has_one_grant() -> None:
    story = Story()
    story.carry(story.grant(count=3))
    story.refuses(story.grant(count=4), Rule.RECORD, "has a grant already")


@pytest.mark.parametrize(
    ("fields", "rule", "words"),
    [
        ({"roles": 0}, Rule.RECORD, "roles is 0, 1 to 3 required"),
        ({"roles": 4}, Rule.RECORD, "roles is 4"),
        ({"count": 0}, Rule.RECORD, "invite's count is 0"),
        ({"count": limits.MAX_GRANT_COUNT + 1}, Rule.RECORD, "invite's count is 1000001"),
        ({"not_after_ms": 0}, Rule.SCHEMA, "invite's end is 0"),
    ],
)
def test_a_grant_out_of_bounds_is_refused(fields: dict[str, Any], rule: Rule, words: str) -> None:
    story = Story()
    story.refuses(story.grant(**fields), rule, words)


def test_an_invite_key_must_be_a_real_key() -> None:
    bad = make_grant(
        key_of("ada"), swarm=SWARM.id, invite_key=bytes(32), roles=1, count=1, not_after_ms=CREATED_AT_MS * 2
    )
    Story().refuses(bad, Rule.SIGNATURE, "invite's key .* small order")


def test_a_name_must_be_readable() -> None:
    story = Story()
    story.carry(story.grant())
    story.refuses(story.admission("cyd", name="\x1b[2J"), Rule.SCHEMA, "invisible character")
    story.refuses(story.admission("cyd", name="x" * 65), Rule.SCHEMA, "65 bytes, at most 64")
    story.refuses(story.admission("cyd", roles=4), Rule.RECORD, "roles is 4")
    story.carry(story.admission("cyd", name=""))


# ---- the root ----


def test_only_root_keys_sign_root_records() -> None:
    story = Story()
    for record in [story.grant(by="bob"), story.revocation("ada", by="eve")]:
        story.refuses(record, Rule.RECORD, "which is no root key")


def test_a_root_record_takes_effect_with_the_last_signature_needed() -> None:
    story = Story(swarm_of(founders=("ada",), roots=("ada", "bob", "cyd"), root_threshold=2))
    story.carry(story.grant(by="bob"))
    assert story.members.grants == {}
    assert list(story.members.approvals.values()) == [frozenset({key("bob")})]
    story.refuses(story.grant(by="bob"), Rule.DUPLICATE, "was carried before")
    story.refuses(story.admission("dan"), Rule.MEMBERSHIP, "is not known here")
    story.carry(story.grant(by="cyd"))
    assert set(story.members.grants) == {grant_id(story.grant(by="ada"))}, "whoever signed, it is one grant"
    assert story.members.approvals == {}
    story.refuses(story.grant(by="ada"), Rule.DUPLICATE, "is in force already")
    story.carry(story.admission("dan"))
    assert story.members.is_member(key("dan"))


def test_root_signatures_under_different_words_do_not_add_up() -> None:
    story = Story(swarm_of(founders=("ada",), roots=("ada", "bob"), root_threshold=2))
    story.carry(story.grant(by="ada", count=3), story.grant(by="bob", count=4))
    assert story.members.grants == {}
    assert len(story.members.approvals) == 2


def test_an_older_root_record_does_not_come_back_after_a_newer_one() -> None:
    story = Story()
    story.carry(story.grant(), story.admission("cyd"))
    story.carry(story.revocation("cyd", 30), story.readmission("cyd", 40))
    story.refuses(story.revocation("cyd", 35), Rule.RECORD, "is of 35, its newest about .* of 40: not later")
    story.carry(story.revocation("cyd", 41))
    assert story.members.is_banned(key("cyd"))


# ---- certifiers ----


def test_a_member_takes_up_the_certifier_role_on_request() -> None:
    story = Story()
    before = story.members
    story.carry(story.grant(), story.admission("cyd"), story.take_up("cyd"))
    assert certifier_change(before, story.members) == ({key("cyd")}, frozenset())
    story.refuses(story.take_up("cyd", 11), Rule.RECORD, "is a certifier already")


def test_a_stranger_takes_up_nothing() -> None:
    story = Story()
    story.refuses(story.take_up("eve"), Rule.MEMBERSHIP, "is no member")
    story.refuses(story.leave("eve"), Rule.MEMBERSHIP, "is no member")


def test_a_record_is_carried_once() -> None:
    story = Story()
    story.carry(story.grant(), story.admission("cyd"), story.take_up("cyd"), story.leave("cyd"))
    for record in [story.grant(), story.admission("cyd"), story.take_up("cyd"), story.leave("cyd")]:
        story.refuses(record, Rule.DUPLICATE, "was carried before")
        assert story.members.has_record(record.id)


def test_a_certifier_may_stop_certifying_and_take_it_up_again() -> None:
    story = Story()
    story.carry(story.leave("bob", 20, only=True))
    assert names(story.members.certifiers) == {"ada"}
    assert story.members.may(key("bob"), ROLE_CONTRIBUTE)
    story.refuses(story.leave("bob", 21, only=True), Rule.MEMBERSHIP, "is no certifier")
    story.refuses(story.take_up("bob", 20), Rule.RECORD, "request is of 20, the member's last of 20: not later")
    story.carry(story.take_up("bob", 22))
    assert names(story.members.certifiers) == {"ada", "bob"}


def test_who_leaves_is_gone_but_known_and_may_come_back_by_an_invite() -> None:
    story = Story()
    story.carry(story.leave("bob"))
    assert names(story.members.certifiers) == {"ada"}
    assert not story.members.is_member(key("bob"))
    assert not story.members.is_banned(key("bob"))
    found = story.members.find(key("bob"))
    assert found is not None
    assert found.key == key("bob")
    story.carry(story.grant(), story.admission("bob"))
    assert story.members.may(key("bob"), ROLE_CONTRIBUTE)
    assert key("bob") not in story.members.former
    story.refuses(story.take_up("bob", 19), Rule.RECORD, "the member's last of 20")


def test_the_last_certifier_stays() -> None:
    story = Story(swarm_of())
    story.refuses(story.leave("ada"), Rule.CERTIFIERS, "is the last certifier")
    story.refuses(story.leave("ada", only=True), Rule.CERTIFIERS, "is the last certifier")
    story.refuses(story.retirement("ada"), Rule.CERTIFIERS, "is the last certifier")
    story.refuses(story.revocation("ada"), Rule.CERTIFIERS, "is the last certifier")
    with pytest.raises(RejectError, match="is the last certifier"):
        story.members.exclude(key("ada"))


def test_the_root_retires_a_vanished_certifier_who_may_return() -> None:
    story = Story()
    story.carry(story.retirement("bob", 30))
    assert names(story.members.certifiers) == {"ada"}
    assert story.members.may(key("bob"), ROLE_CONTRIBUTE)
    story.refuses(story.retirement("bob", 31), Rule.MEMBERSHIP, "is no certifier")
    story.refuses(story.take_up("bob", 29), Rule.RECORD, "the member's last of 30")
    story.carry(story.take_up("bob", 31))
    assert names(story.members.certifiers) == {"ada", "bob"}


def test_there_is_a_largest_number_of_certifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CERTIFIERS", 2)
    story = Story()
    story.carry(story.grant(), story.admission("cyd"))
    story.refuses(story.take_up("cyd"), Rule.CERTIFIERS, "has 2 certifiers, at most 2")


# ---- revocation ----


def test_a_revoked_member_loses_everything() -> None:
    story = Story()
    story.carry(story.revocation("bob"))
    assert names(story.members.certifiers) == {"ada"}
    assert not story.members.is_member(key("bob"))
    assert story.members.is_banned(key("bob"))
    story.carry(story.grant())
    story.refuses(story.admission("bob"), Rule.RECORD, "only the root can let it back in")


def test_a_stranger_can_be_revoked_ahead() -> None:
    story = Story()
    story.carry(story.revocation("eve"), story.grant())
    assert story.members.is_banned(key("eve"))
    story.refuses(story.admission("eve"), Rule.RECORD, "only the root can let it back in")


def test_a_revoked_invite_admits_nobody_else_and_its_members_stay() -> None:
    story = Story()
    story.carry(story.grant(), story.admission("cyd"), story.revocation("invite"))
    story.refuses(story.admission("dan"), Rule.RECORD, "invite .* was revoked")
    assert story.members.is_member(key("cyd"))


def test_a_whole_tree_falls_but_the_certifier_set_changes_one_by_one() -> None:
    story = Story()
    story.carry(story.grant(), story.grant("other"))
    story.carry(story.admission("cyd"), story.admission("dan"), story.admission("eve"))
    story.carry(story.admission("fay", "other"))
    story.carry(story.take_up("cyd"), story.take_up("dan"), story.leave("eve"))
    before = story.members
    story.carry(story.revocation("invite", tree=True))
    assert certifier_change(before, story.members) == (frozenset(), frozenset())
    for name in ("cyd", "dan", "eve"):
        assert not story.members.is_member(key(name))
        assert story.members.is_banned(key(name))
    assert story.members.is_member(key("fay"))
    story.carry(story.retirement("cyd", 31))
    assert names(story.members.certifiers) == {"ada", "bob", "dan"}
    story.carry(story.retirement("dan", 31))
    assert names(story.members.certifiers) == {"ada", "bob"}


def test_an_older_readmission_does_not_come_back_after_the_tree_fell() -> None:
    story = Story()
    story.carry(story.grant(), story.admission("cyd"), story.revocation("invite", 30, tree=True))
    story.refuses(story.readmission("cyd", 29), Rule.RECORD, "is of 29, its newest about .* of 30: not later")
    story.carry(story.readmission("cyd", 31))
    assert story.members.is_member(key("cyd"))


def test_only_an_invite_has_a_tree() -> None:
    story = Story()
    story.refuses(story.revocation("bob", tree=True), Rule.MEMBERSHIP, "is no invite key: it has no tree")


def test_the_root_lets_a_revoked_member_back_without_the_certifier_role() -> None:
    story = Story()
    story.carry(story.revocation("bob", 30), story.readmission("bob", 40))
    assert story.members.may(key("bob"), ROLE_CERTIFY)
    assert not story.members.is_banned(key("bob"))
    assert names(story.members.certifiers) == {"ada"}
    story.carry(story.take_up("bob", 50))
    assert names(story.members.certifiers) == {"ada", "bob"}
    story.refuses(story.readmission("bob", 60), Rule.RECORD, "nothing to readmit")


# ---- evidence ----


def test_an_offender_is_excluded_until_the_root_readmits_it() -> None:
    story = Story()
    story.members = story.members.exclude(key("bob"), offence_slot=5)
    assert names(story.members.certifiers) == {"ada"}
    assert story.members.is_banned(key("bob"))
    with pytest.raises(RejectError, match="is excluded already") as caught:
        story.members.exclude(key("bob"), offence_slot=7)
    assert caught.value.rule is Rule.DUPLICATE
    story.slot = 9
    story.carry(story.readmission("bob"))
    assert story.members.may(key("bob"), ROLE_CONTRIBUTE)
    with pytest.raises(RejectError, match=r"offence of slot 9 is forgiven: .* was readmitted in 9") as caught:
        story.members.exclude(key("bob"), offence_slot=9)
    assert caught.value.rule is Rule.EVIDENCE
    assert story.members.exclude(key("bob"), offence_slot=10).is_banned(key("bob"))


def test_evidence_against_a_stranger_is_refused_and_against_a_former_member_not() -> None:
    story = Story()
    with pytest.raises(RejectError, match="was never a member"):
        story.members.exclude(key("eve"))
    story.carry(story.leave("bob"))
    assert story.members.exclude(key("bob")).is_banned(key("bob"))


# ---- the rest ----


def test_an_ejection_is_remembered_with_its_earliest_round() -> None:
    story = Story()
    for since, at in [(7, 10), (5, 11), (6, 12)]:
        story.carry(make_ejection(key_of("ada"), swarm=SWARM.id, member=key("bob"), since_round=since, issued_at_ms=at))
    assert story.members.ejected == {key("bob"): 5}
    assert story.members.is_member(key("bob")), "shutting out is another record"
    bad = make_ejection(key_of("ada"), swarm=SWARM.id, member=key("bob"), since_round=0, issued_at_ms=13)
    story.refuses(bad, Rule.ROUND, "first round is 0")


def test_a_choice_is_carried_for_everybody_to_read() -> None:
    story = Story()
    choice = make_choice(key_of("ada"), swarm=SWARM.id, checkpoint=id_of("c"), slot=3, issued_at_ms=1)
    story.carry(choice)
    assert story.members.has_record(choice.id)
    assert len(story.members.enacted) == 1
    by_bob = make_choice(key_of("bob"), swarm=SWARM.id, checkpoint=id_of("c"), slot=3, issued_at_ms=1)
    story.refuses(by_bob, Rule.RECORD, "no root key")


def test_only_records_are_carried() -> None:
    vote = SWARM.vote("ada", target=id_of("t"), target_slot=1)
    Story().refuses(vote.envelope, Rule.RECORD, "a vote is no record")
    assert wire.EVIDENCE not in RECORD_TYPES


def test_a_record_of_another_swarm_is_refused() -> None:
    other = swarm_of()
    with pytest.raises(RejectError) as caught:
        initial_members(SWARM.genesis).apply(Story(other).grant(), slot=1, genesis=SWARM.genesis)
    assert caught.value.rule is Rule.SWARM


@pytest.mark.parametrize(
    "record",
    [
        make_take_up(key_of("ada"), swarm=SWARM.id, issued_at_ms=0),
        make_leave(key_of("ada"), swarm=SWARM.id, issued_at_ms=0),
        make_revocation(key_of("ada"), swarm=SWARM.id, subject=key("bob"), issued_at_ms=0),
        make_readmission(key_of("ada"), swarm=SWARM.id, member=key("bob"), roles=1, issued_at_ms=0),
        make_retirement(key_of("ada"), swarm=SWARM.id, certifier=key("bob"), issued_at_ms=0),
        make_ejection(key_of("ada"), swarm=SWARM.id, member=key("bob"), since_round=1, issued_at_ms=0),
        make_choice(key_of("ada"), swarm=SWARM.id, checkpoint=id_of("c"), slot=3, issued_at_ms=0),
    ],
    ids=lambda record: wire.ObjectType.Name(record.type).lower(),
)
def test_every_record_names_its_time(record: Envelope) -> None:
    Story().refuses(record, Rule.SCHEMA, "the time of the .* is 0, 1 to")


@pytest.mark.parametrize(
    "record",
    [
        make_revocation(key_of("ada"), swarm=SWARM.id, subject=bytes(32), issued_at_ms=1),
        make_readmission(key_of("ada"), swarm=SWARM.id, member=b"short", roles=1, issued_at_ms=1),
        make_retirement(key_of("ada"), swarm=SWARM.id, certifier=b"\xff" * 32, issued_at_ms=1),
        make_ejection(key_of("ada"), swarm=SWARM.id, member=b"", since_round=1, issued_at_ms=1),
    ],
    ids=lambda record: wire.ObjectType.Name(record.type).lower(),
)
def test_every_record_names_real_keys(record: Envelope) -> None:
    Story().refuses(record, Rule.SIGNATURE, "key")


def test_records_fit_into_a_dht_record() -> None:
    story = Story()
    for record in [story.grant(), story.admission("cyd", name="x" * 64), story.revocation("cyd", tree=True)]:
        assert len(record.encode()) < limits.MAX_RECORD_BYTES // 2


def test_the_state_is_the_same_however_it_was_reached() -> None:
    def run() -> Members:
        story = Story()
        story.carry(story.grant(), story.admission("cyd"), story.take_up("cyd"), story.leave("bob"))
        return story.members

    assert run() == run()

"""What people see of a chain without finality, and what they do about it: retire, revoke a tree (section 8)."""

import pytest
from chains import Story, key, swarm_with
from machines import some
from owner_view import Owner
from swarms import key_of, seed_of

from fullrank_node.api import control_pb2 as wire
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.names import name_of
from fullrank_protocol.chain import ChainState
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.membership import ALL_ROLES, grant_id, make_admission, make_retirement, make_revocation
from fullrank_protocol.round_io import SignCheckpoint
from fullrank_protocol.wire import objects_pb2

FIVE = ("ada", "bob", "cyd", "dan", "eve")
ALL = " ".join(FIVE)
STALL = 6


class Swarm:
    """Five certifiers; slot 1 is final, and from slot 4 on only some are there. Slots 4 and 5 merge a delta each."""

    def __init__(
        self, *, present: str = "ada bob cyd", roots: tuple[str, ...] = ("ada",), stall_slots: int = STALL
    ) -> None:
        timing = {"stall_slots": stall_slots}
        self.tale = tale = Story(swarm_with(*FIVE, timing=timing, roots=roots, root_threshold=len(roots)))
        self.present = present
        self.chain = tale.line(tale.genesis, [1, 2, 3], ALL)
        self.rest = tale.votes(ALL, self.chain[-1])
        self.extend(4, votes=ALL)
        self.extend(5)

    def extend(self, *slots: int, votes: str = "") -> ChainState:
        """Rounds of these slots, each with a delta of ada, carrying the votes of whoever is there."""
        for slot in slots:
            parent = self.chain[-1]
            self.chain.append(
                self.tale.round_of(parent, slot=slot, votes=self.tale.votes(votes or self.present, parent))
            )
        return self.chain[-1]

    def owner(self, name: str = "ada", *, slot: int, connected: tuple[str, ...] = ("bob", "cyd")) -> Owner:
        """The node of somebody who knows the chain, at a time in that slot."""
        owner = Owner(self.tale, name, connected=connected)
        owner.at(slot)
        owner.receive(*self.chain)
        owner.receive(*self.tale.votes(self.present, self.chain[-1]))
        return owner


def retire(*subjects: str, preview: bool = False) -> wire.RetireRequest:
    return wire.RetireRequest(subjects=subjects, preview=preview)


async def failure(owner: Owner, request: wire.RetireRequest) -> NodeError:
    with pytest.raises(NodeError) as caught:
        await owner.retire(request)
    return caught.value


def names(lines: object) -> list[str]:
    return [line.handle for line in lines]  # type: ignore[attr-defined]


def called(name: str) -> str:
    """What founders without a name are called in commands."""
    return name_of(key(name))


def retirements(owner: Owner) -> list[Envelope]:
    return [each for each in owner.sent if each.type == objects_pb2.RETIREMENT]


# ---- status ------------------------------------------------------------------------------------------


async def test_status_tells_since_when_the_chain_is_stalled_and_who_is_missing() -> None:
    swarm = Swarm()
    swarm.extend(6, 7, 8)
    status = await swarm.owner(slot=9).status_now()
    assert status.stall.since_slot == status.final.slot == 2
    assert status.stall.since_ms == swarm.tale.swarm.genesis.slot_end_ms(2)
    assert sorted(names(status.stall.present)) == sorted(map(called, ("ada", "bob", "cyd")))
    assert sorted(names(status.stall.missing)) == sorted(map(called, ("dan", "eve")))
    assert {line.last_vote_slot for line in status.stall.missing} == {3}
    assert [line.connected for line in status.stall.missing] == [False, False]
    assert status.stall.provisional.slot == 8
    assert status.finality.provisional
    assert f"`fullrank retire {' '.join(names(status.stall.missing))}`" in status.stall.advice


async def test_status_sends_everybody_but_the_root_to_the_founder() -> None:
    swarm = Swarm()
    swarm.extend(6, 7, 8)
    status = await swarm.owner("bob", slot=9).status_now()
    assert "or the founder, when sure that they are gone for good, retires them" in status.stall.advice


async def test_a_founder_who_is_connected_to_nobody_is_not_told_to_retire_the_others() -> None:
    swarm = Swarm(present="ada")
    swarm.extend(6, 7, 8)
    alone = swarm.owner(slot=9, connected=())
    advice = (await alone.status_now()).stall.advice
    assert "it may be the one that is cut off" in advice
    assert "fullrank retire" not in advice
    assert (await alone.retire(retire(called("dan"), preview=True))).peers_connected == 0


async def test_before_the_stall_status_names_who_is_missing_and_no_stall() -> None:
    swarm = Swarm()
    status = await swarm.owner(slot=6).status_now()
    assert not status.HasField("stall")
    assert sorted(status.finality.waiting_for) == sorted(map(called, ("dan", "eve")))
    assert (status.head.slot, status.justified.slot, status.final.slot) == (5, 3, 2)


async def test_a_swarm_that_rested_for_long_is_not_called_stalled() -> None:
    """Everything was final before the rest; the first round after it has waited for a slot only."""
    swarm = Swarm(present=ALL)
    swarm.chain += swarm.tale.line(swarm.chain[-1], [6, 7], ALL)
    idle = swarm.owner(slot=90)
    assert not (await idle.status_now()).HasField("stall")
    swarm.extend(90)
    assert not (await swarm.owner(slot=91).status_now()).HasField("stall")


async def test_a_signed_retirement_is_shown_until_it_acts() -> None:
    swarm = Swarm()
    swarm.extend(6, 7, 8)
    owner = swarm.owner(slot=9)
    await owner.retire(retire(called("dan"), called("eve")))
    status = await owner.status_now()
    assert [line.retirement_signatures for line in status.stall.missing] == [1, 1]
    assert status.stall.advice == "their retirement is signed: finality comes with the next slots"


async def test_peers_and_members_tell_who_voted_last_for_which_slot() -> None:
    swarm = Swarm()
    swarm.extend(6, 7, 8)
    owner = swarm.owner(slot=9, connected=("bob", "dan", "reader"))
    peers = {line.key: line for line in (await owner.peers(wire.PeersRequest())).peers}
    assert peers[key("bob")].last_vote_slot == 8
    assert peers[key("dan")].last_vote_slot == 3
    assert peers[key("dan")].last_vote_ms == swarm.tale.swarm.genesis.slot_end_ms(3)
    assert not peers[key("reader")].HasField("last_vote_slot")
    members = {line.key: line for line in (await owner.members(wire.MembersRequest())).members}
    assert [members[key(name)].last_vote_slot for name in FIVE] == [8, 8, 8, 3, 3]


# ---- retire --------------------------------------------------------------------------------------------


async def test_a_preview_tells_whom_it_retires_and_signs_nothing() -> None:
    swarm = Swarm()
    swarm.extend(6, 7, 8)
    owner = swarm.owner(slot=9, connected=("dan",))
    reply = await owner.retire(retire(called("dan"), key("eve").hex()[:6], called("dan"), preview=True))
    assert [line.key for line in reply.retired] == [key("dan"), key("eve")]
    assert [line.last_vote_slot for line in reply.retired] == [3, 3]
    assert [line.connected for line in reply.retired] == [True, False]
    assert sorted(reply.remaining) == sorted(map(called, ("ada", "bob", "cyd")))
    assert (reply.stalled, reply.stalls_in_slots, reply.signatures_needed) == (True, 0, 1)
    assert not owner.sent


async def test_who_never_voted_is_told_so() -> None:
    swarm = Swarm()
    owner = Owner(swarm.tale)
    owner.at(3)
    reply = await owner.retire(retire(called("eve"), preview=True))
    assert not reply.retired[0].HasField("last_vote_slot")


async def test_in_a_stall_the_next_checkpoint_retires_all_together() -> None:
    swarm = Swarm()
    swarm.extend(6, 7, 8)
    owner = swarm.owner(slot=9)
    reply = await owner.retire(retire(called("dan"), called("eve")))
    assert reply.note == ""
    assert [line.retirement_signatures for line in reply.retired] == [1, 1]
    signed = [each for slot in range(10, 16) for each in some(SignCheckpoint, owner.at(slot, 900))]
    assert {record.type for record in owner.sent} == {objects_pb2.RETIREMENT}
    assert len(signed[0].checkpoint.records) == 2
    assert owner.machine.head.members.certifiers == {key("ada"), key("bob"), key("cyd")}


async def test_where_finality_is_missing_for_a_short_time_it_tells_when_the_stall_begins() -> None:
    swarm = Swarm(stall_slots=20)
    reply = await swarm.owner(slot=9, connected=()).retire(retire(called("dan"), preview=True))
    assert not reply.stalled
    assert reply.stalls_in_slots == 2 + 20 - 9
    assert reply.stalls_in_ms == 13_000


async def test_where_finality_works_nothing_has_to_be_waited_for() -> None:
    swarm = Swarm(present=ALL)
    reply = await swarm.owner(slot=6).retire(retire(called("dan"), preview=True))
    assert (reply.stalled, reply.stalls_in_slots) == (False, 0)


async def test_to_retire_again_what_is_signed_already_signs_nothing_new() -> None:
    swarm = Swarm()
    owner = swarm.owner(slot=6)
    await owner.retire(retire(called("dan")))
    owner.at(6, 500)
    await owner.retire(retire(called("dan")))
    assert len(retirements(owner)) == 1


# ---- who may, and whom ---------------------------------------------------------------------------------


async def test_without_a_root_key_nobody_is_retired() -> None:
    error = await failure(Swarm().owner("bob", slot=6), retire(called("dan")))
    assert error.exit_code == ExitCode.PERMISSION
    assert "Ask the founder" in error.hint


async def test_a_name_that_nobody_has_is_told_as_such() -> None:
    error = await failure(Swarm().owner(slot=6), retire("nobody-at-all"))
    assert error.exit_code == ExitCode.USAGE
    assert "nobody among the certifiers is called 'nobody-at-all'" in str(error)


async def test_a_member_that_is_no_certifier_is_told_as_such() -> None:
    swarm = Swarm(present=ALL)
    tip = swarm.chain[-1]
    swarm.chain.append(swarm.tale.grow(tip, slot=6, records=[swarm.tale.leave("dan", certifier_role_only=True)]))
    error = await failure(swarm.owner(slot=7), retire(called("dan")))
    assert f"{called('dan')} is no certifier: there is nothing to retire" in str(error)
    assert called("bob") in error.hint


async def test_a_name_that_two_certifiers_have_is_told_with_both_keys() -> None:
    """Somebody joins under the name that commands give to Dan."""
    swarm = Swarm(present=ALL)
    tale, grant = swarm.tale, swarm.tale.grant()
    admission = make_admission(
        key_of("twin"),
        swarm=tale.swarm.id,
        invite_seed=seed_of("invite"),
        grant_id=grant_id(grant),
        roles=ALL_ROLES,
        name=called("dan").upper(),
    )
    swarm.chain.append(tale.grow(swarm.chain[-1], slot=6, records=[grant, admission]))
    swarm.chain.append(tale.grow(swarm.chain[-1], slot=7, records=[tale.take_up("twin")]))
    owner = swarm.owner(slot=8)
    error = await failure(owner, retire(called("dan")))
    assert error.exit_code == ExitCode.USAGE
    for name in ("dan", "twin"):
        assert key(name).hex()[:12] in str(error)
        planned = await owner.retire(retire(key(name).hex()[:8], preview=True))
        assert (planned.retired[0].key, planned.retired[0].handle) == (key(name), key(name).hex()[:8])


async def test_the_last_certifier_cannot_be_retired() -> None:
    owner = Swarm().owner(slot=6)
    error = await failure(owner, retire(*map(called, FIVE)))
    assert "no certifier would be left without" in str(error)
    assert not owner.sent
    await owner.retire(retire(*map(called, FIVE[:4])))
    assert "no certifier would be left" in str(await failure(owner, retire(called("eve"))))


async def test_who_only_asks_to_certify_is_no_certifier_that_could_be_left() -> None:
    swarm = Swarm(present=ALL)
    tale, grant = swarm.tale, swarm.tale.grant()
    swarm.chain.append(tale.grow(swarm.chain[-1], slot=6, records=[grant, tale.admission("fay", grant)]))
    owner = swarm.owner(slot=7)
    owner.receive(tale.take_up("fay"))
    assert "no certifier would be left" in str(await failure(owner, retire(*map(called, FIVE))))


# ---- several root keys ---------------------------------------------------------------------------------


async def test_every_holder_of_a_root_key_signs_the_same_bytes() -> None:
    swarm = Swarm(roots=("ada", "bob"))
    ada, bob = swarm.owner(slot=6), swarm.owner("bob", slot=6)
    first = await ada.retire(retire(called("dan")))
    assert first.note == (
        f"1 of 2 root signatures: another holder of a root key runs `fullrank retire {called('dan')}`, too"
    )
    bob.at(6, 700)
    bob.receive(*ada.sent)
    planned = await bob.retire(retire(called("dan"), preview=True))
    assert planned.retired[0].retirement_signatures == 1
    assert planned.retired[0].retirement_issued_ms == ada.machine.now_ms
    second = await bob.retire(retire(called("dan")))
    assert (second.retired[0].retirement_signatures, second.note) == (2, "")
    assert bob.sent[0].payload == ada.sent[0].payload
    assert bob.sent[0].public_key == key("bob")


async def test_a_signature_that_a_checkpoint_has_carried_long_ago_is_joined() -> None:
    swarm = Swarm(present=ALL, roots=("ada", "bob"))
    ada = swarm.owner(slot=6)
    await ada.retire(retire(called("dan")))
    swarm.chain.append(swarm.tale.grow(swarm.chain[-1], slot=6, records=ada.sent))
    swarm.chain += swarm.tale.line(swarm.chain[-1], [7, 8, 9, 10], ALL)
    bob = swarm.owner("bob", slot=11)
    assert ada.sent[0].id not in bob.machine.state.records
    reply = await bob.retire(retire(called("dan")))
    assert reply.retired[0].retirement_signatures == 2
    assert bob.sent[0].payload == ada.sent[0].payload


async def test_a_signature_older_than_the_newest_record_about_somebody_is_not_joined() -> None:
    """Dan was retired by a later paper since, and certifies again: what Ada signed before is worth nothing."""
    swarm = Swarm(present=ALL, roots=("ada", "bob"))
    old = make_retirement(key_of("ada"), swarm=swarm.tale.swarm.id, certifier=key("dan"), issued_at_ms=5)
    newer = [
        make_retirement(key_of(root), swarm=swarm.tale.swarm.id, certifier=key("dan"), issued_at_ms=9)
        for root in ("ada", "bob")
    ]
    swarm.chain.append(swarm.tale.grow(swarm.chain[-1], slot=6, records=[old, *newer]))
    swarm.chain += swarm.tale.line(swarm.chain[-1], [7, 8, 9], "ada bob cyd eve")
    back = swarm.tale.take_up("dan", at_ms=50)
    swarm.chain.append(swarm.tale.grow(swarm.chain[-1], slot=10, records=[back]))
    owner = swarm.owner("bob", slot=11)
    await owner.retire(retire(called("dan")))
    assert owner.sent[0].payload != old.payload


# ---- an invite's whole tree ------------------------------------------------------------------------------


class Tree(Swarm):
    """Fay and Gil came by an invite, and certify; so did Hal, who does not. All of it is final."""

    def __init__(self) -> None:
        super().__init__(present=ALL, stall_slots=64)
        tale, grant = self.tale, self.tale.grant()
        admissions = [tale.admission(name, grant) for name in ("fay", "gil", "hal")]
        self.chain.append(tale.grow(self.chain[-1], slot=6, records=[grant, *admissions]))
        for slot, name in ((7, "fay"), (11, "gil")):
            self.chain.append(tale.grow(self.chain[-1], slot=slot, records=[tale.take_up(name)]))
            self.chain += tale.line(self.chain[-1], range(slot + 1, slot + 4), ALL)


def revoke(invite: str, *, preview: bool = False) -> wire.RevokeRequest:
    return wire.RevokeRequest(subject=key(invite).hex()[:8], whole_tree=True, preview=preview)


async def test_revoking_a_whole_tree_tells_whom_it_hits_before_it_signs() -> None:
    owner = Tree().owner(slot=15)
    reply = await owner.revoke(revoke("invite", preview=True))
    assert list(reply.admitted) == ["fay", "gil", "hal"]
    assert list(reply.retiring) == ["fay", "gil"]
    assert not owner.sent


async def test_revoking_a_whole_tree_retires_its_certifiers_one_after_another() -> None:
    swarm = Tree()
    owner = swarm.owner(slot=15)
    reply = await owner.revoke(revoke("invite"))
    assert "Retiring with it: fay, gil; one after another" in reply.note
    carried: list[bytes] = []
    for slot in range(15, 40):
        for action in some(SignCheckpoint, owner.at(slot, 900)):
            carried += action.checkpoint.records
            head = owner.machine.head
            owner.receive(*(swarm.tale.vote(name, head) for name in FIVE[1:]))
    members = owner.machine.head.members
    assert members.certifiers == {key(name) for name in FIVE}
    assert members.revoked >= {key("fay"), key("gil"), key("hal")}
    assert len(carried) == 3


async def test_a_tree_that_was_revoked_before_is_retired_by_revoking_it_again() -> None:
    swarm = Tree()
    old = make_revocation(
        key_of("ada"), swarm=swarm.tale.swarm.id, subject=key("invite"), issued_at_ms=9, whole_tree=True
    )
    swarm.chain.append(swarm.tale.grow(swarm.chain[-1], slot=15, records=[old]))
    owner = swarm.owner(slot=16)
    assert list((await owner.revoke(revoke("invite"))).retiring) == ["fay", "gil"]
    assert len(retirements(owner)) == 2


async def test_a_retirement_from_before_the_revocation_does_not_stand_in_for_the_later_one() -> None:
    """Revocations are carried first, and what is older about the same key comes to nothing after them."""
    swarm = Tree()
    owner = swarm.owner(slot=15)
    await owner.retire(retire("fay"))
    owner.at(15, 500)
    await owner.revoke(revoke("invite"))
    issued = [each for each in retirements(owner) if each.payload[2:34] == key("fay")]
    assert len(issued) == 2


async def test_only_an_invite_has_a_tree() -> None:
    owner = Tree().owner(slot=15)
    with pytest.raises(NodeError, match="fay is no invite: it has no tree"):
        await owner.revoke(wire.RevokeRequest(subject="fay", whole_tree=True))


async def test_where_a_tree_has_all_certifiers_one_is_kept() -> None:
    swarm = Tree()
    for name in FIVE:
        parent = swarm.chain[-1]
        records = [swarm.tale.retirement(name, 99)]
        swarm.chain.append(swarm.tale.grow(parent, slot=parent.slot + 70, by="fay", records=records))
    owner = swarm.owner(slot=swarm.chain[-1].slot + 1)  # Ada asks to certify again, and does not count yet.
    reply = await owner.revoke(revoke("invite"))
    assert list(reply.retiring) == ["gil"]
    assert "fay stays a certifier, because no other is left" in reply.note

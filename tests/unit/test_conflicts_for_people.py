"""What people see of two final checkpoints that contradict each other, and how they end it (section 8, "Choice")."""

import logging
from collections.abc import Sequence

import pytest
from chains import Story, key, swarm_with
from machines import some
from owner_view import Owner

from fullrank_node.api import control_pb2 as wire
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.names import name_of
from fullrank_protocol.chain import ChainState
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.round_io import CastVote, DeltaChecked, SignCheckpoint

FOUR = ("ada", "bob", "cyd", "dan")


class Split:
    """Bob and Cyd voted on both sides. Ada saw rounds of slots 1 and 2 become final first, Dan an empty slot 5.

    Each of Ada's rounds merged a delta of hers.
    """

    def __init__(self, *, roots: int = 1, late_rounds: int = 0) -> None:
        self.tale = tale = Story(swarm_with(*FOUR, roots=FOUR[:roots], root_threshold=roots))
        self.one = tale.round_of(tale.genesis, slot=1)
        self.two = tale.round_of(self.one, slot=2, votes=tale.votes("ada bob cyd", self.one))
        self.three = tale.grow(self.two, slot=3, votes=tale.votes("ada bob cyd", self.two))
        self.ours = [self.one, self.two, self.three, *tale.votes("ada bob cyd", self.three)]
        self.five = tale.grow(tale.genesis, slot=5, by="bob")
        self.six = tale.grow(self.five, slot=6, by="bob", votes=tale.votes("bob cyd dan", self.five))
        self.theirs = [self.five, self.six, *tale.votes("bob cyd dan", self.six)]
        tip = self.six
        for slot in range(7, 7 + late_rounds):
            tip = tale.grow(tip, slot=slot, by="bob", accepted=[tale.contribution("bob", tip)])
            self.theirs.append(tip)

    def owner(self, name: str = "ada", *, knows: Sequence[object] = ()) -> Owner:
        """Somebody who saw Ada's side first, and then Dan's."""
        owner = Owner(self.tale, name)
        owner.at(20)
        owner.receive(*self.ours, *self.theirs, *knows)  # type: ignore[arg-type]
        return owner


def adopt(at: ChainState | str, *, preview: bool = False) -> wire.AdoptRequest:
    return wire.AdoptRequest(checkpoint=at if isinstance(at, str) else at.id.hex()[:8], preview=preview)


async def failure(owner: Owner, request: wire.AdoptRequest) -> NodeError:
    with pytest.raises(NodeError) as caught:
        await owner.adopt(request)
    return caught.value


def short(at: ChainState) -> str:
    return at.id.hex()[:12]


def choices(owner: Owner) -> list[Envelope]:
    return [each for each in owner.sent if each.type == 15]


# ---- being told ----------------------------------------------------------------------------------------


async def test_the_alarm_says_what_happened_and_what_to_do_in_status_and_log(caplog: pytest.LogCaptureFixture) -> None:
    split = Split()
    with caplog.at_level(logging.ERROR):
        owner = split.owner("bob")
    (record,) = caplog.records
    for words in (short(split.two), short(split.five), "neither votes nor proposes", "`fullrank adopt`"):
        assert words in record.getMessage()
    status = await owner.status_now()
    assert status.state == wire.NODE_TROUBLED
    assert status.reason == (
        f"two final checkpoints contradict each other: {short(split.two)} of slot 2, kept here, "
        f"and {short(split.five)} of slot 5"
    )


async def test_status_shows_both_with_their_voters_and_sends_members_to_the_founder() -> None:
    split = Split()
    conflict = (await split.owner("bob").status_now()).conflict
    assert (conflict.ours.checkpoint.slot, conflict.ours.checkpoint.round) == (2, 2)
    assert (conflict.theirs.checkpoint.slot, conflict.theirs.checkpoint.round) == (5, 0)
    assert list(conflict.ours.voters) == sorted(name_of(key(name)) for name in ("ada", "bob", "cyd"))
    assert list(conflict.theirs.voters) == sorted(name_of(key(name)) for name in ("bob", "cyd", "dan"))
    assert not conflict.HasField("chosen")
    assert "tell the founder" in conflict.advice
    assert short(split.two) in conflict.advice
    assert short(split.five) in conflict.advice


async def test_status_tells_the_founder_the_two_commands() -> None:
    split = Split()
    advice = (await split.owner().status_now()).conflict.advice
    assert f"`fullrank adopt {short(split.two)}` or `fullrank adopt {short(split.five)}`" in advice


# ---- the founder chooses ---------------------------------------------------------------------------------


async def test_a_founder_who_chooses_the_own_history_goes_on_at_once() -> None:
    split = Split()
    owner = split.owner()
    planned = await owner.adopt(adopt(split.two, preview=True))
    assert (planned.signs, planned.follows, planned.checkpoint.id) == (True, False, split.two.id)
    assert not owner.sent
    reply = await owner.adopt(adopt(split.two))
    assert "The conflict is over: this node goes on from" in reply.note
    assert len(choices(owner)) == 1
    assert (await owner.status_now()).state != wire.NODE_TROUBLED
    later = [each for slot in range(21, 24) for each in owner.at(slot, 900)]
    assert some(SignCheckpoint, later)


async def test_a_founder_who_chooses_the_other_history_follows_it() -> None:
    split = Split()
    owner = split.owner()
    planned = await owner.adopt(adopt(split.five, preview=True))
    assert (planned.signs, planned.follows) == (True, True)
    assert (planned.fork_round, planned.rounds_left, planned.final_rounds_left, planned.deltas_left) == (0, 2, 2, 2)
    assert planned.deltas_offered
    reply = await owner.adopt(adopt(split.five))
    assert "this node goes on from" in reply.note
    assert owner.machine.head.id == split.six.id
    candidates = owner.machine.state.candidates
    assert sum(each.contribution.member == key("ada") for each in candidates.values()) == 2


async def test_deltas_that_are_too_old_by_now_are_told_to_be_lost() -> None:
    owner = Split(late_rounds=4).owner()
    split_five = owner.machine.state.tree.conflict
    assert split_five is not None
    planned = await owner.adopt(adopt(split_five[1].checkpoint.hex(), preview=True))
    assert planned.deltas_left == 2
    assert not planned.deltas_offered


async def test_a_founder_may_change_the_choice() -> None:
    split = Split()
    owner, bob = split.owner(), split.owner("bob")
    await owner.adopt(adopt(split.five))
    bob.receive(*choices(owner))
    assert (await bob.status_now()).conflict.chosen.id == split.five.id
    other = split.owner(knows=choices(owner))
    other.at(20, 500)
    await other.adopt(adopt(split.two))
    bob.receive(*choices(other))
    assert bob.machine.state.tree.conflict is None
    assert bob.machine.state.tree.final == split.two.here


async def test_an_older_checkpoint_of_one_of_the_histories_may_be_chosen_but_not_one_of_both() -> None:
    split = Split()
    owner = split.owner()
    await owner.adopt(adopt(split.one))
    assert owner.machine.state.tree.conflict is None
    error = await failure(split.owner(), adopt(split.tale.genesis))
    assert "is no checkpoint of the two histories that conflict" in str(error)
    assert short(split.two) in error.hint
    assert short(split.five) in error.hint


async def test_too_few_digits_name_nothing() -> None:
    error = await failure(Split().owner(), adopt("a"))
    assert (error.exit_code, "too short" in str(error)) == (ExitCode.USAGE, True)


async def test_where_two_root_keys_are_needed_both_sign_the_same_choice() -> None:
    split = Split(roots=2)
    ada, bob = split.owner(), split.owner("bob")
    first = await ada.adopt(adopt(split.five))
    assert (first.signatures, first.signatures_needed) == (1, 2)
    assert (
        f"1 of 2 root signatures: another holder of a root key runs `fullrank adopt {short(split.five)}`" in first.note
    )
    assert ada.machine.state.tree.conflict is not None
    bob.at(20, 700)
    bob.receive(*choices(ada))
    second = await bob.adopt(adopt(split.five))
    assert second.signatures == 2
    assert choices(bob)[0].payload == choices(ada)[0].payload
    assert bob.machine.state.tree.final == split.five.here
    ada.receive(*choices(bob))
    assert ada.machine.state.tree.final == split.five.here  # Her owner has consented before.


# ---- everybody else ----------------------------------------------------------------------------------------


async def test_before_the_founder_has_chosen_nobody_else_can_end_it() -> None:
    split = Split()
    owner = split.owner("bob")
    error = await failure(owner, adopt(split.five))
    assert error.exit_code == ExitCode.RETRY
    assert "the founder has not chosen yet" in str(error)
    assert f"`fullrank adopt {short(split.five)}`" in error.hint
    assert not choices(owner)


async def test_a_node_on_the_chosen_history_needs_nobody() -> None:
    split = Split()
    founder = split.owner()
    await founder.adopt(adopt(split.two))
    bob = split.owner("bob", knows=choices(founder))
    assert bob.machine.state.tree.conflict is None
    reply = await bob.adopt(adopt(split.two))
    assert not reply.HasField("conflict")
    assert f"There is no conflict: {short(split.two)} of slot 2 is final here" in reply.note


async def test_a_node_on_the_other_history_follows_when_its_owner_says_so() -> None:
    split = Split()
    founder = split.owner()
    await founder.adopt(adopt(split.five))
    bob = split.owner("bob", knows=choices(founder))
    status = await bob.status_now()
    assert status.conflict.chosen.id == split.five.id
    assert f"`fullrank adopt {short(split.five)}` follows it" in status.conflict.advice
    assert not some(CastVote, [each for slot in (21, 22) for each in bob.at(slot, 900)])
    planned = await bob.adopt(adopt(split.five, preview=True))
    assert (planned.signs, planned.follows, planned.checkpoint.id) == (False, True, split.five.id)
    reply = await bob.adopt(adopt(split.five))
    assert f"this node goes on from {short(split.five)}, slot 5" in reply.note
    assert (await bob.status_now()).state != wire.NODE_TROUBLED


class Slow(Split):
    """Dan's history holds a delta that is not to be had for now."""

    def __init__(self) -> None:
        super().__init__()
        tale = self.tale
        self.missing = tale.contribution("dan")
        self.five = tale.grow(tale.genesis, slot=5, by="bob", accepted=[self.missing])
        self.six = tale.grow(self.five, slot=6, by="bob", votes=tale.votes("bob cyd dan", self.five))
        self.theirs = [self.five, self.six, *tale.votes("bob cyd dan", self.six)]

    def owner(self, name: str = "ada", *, knows: Sequence[object] = ()) -> Owner:
        owner = Owner(self.tale, name)
        owner.machine.verdicts[self.missing.id] = None
        owner.at(20)
        owner.receive(*self.ours, *self.theirs, *knows)  # type: ignore[arg-type]
        return owner


async def test_a_node_goes_over_by_itself_once_it_has_recomputed_what_its_owner_adopted() -> None:
    split = Slow()
    owner = split.owner()
    reply = await owner.adopt(adopt(split.five))
    assert "This node goes over as soon as it has recomputed the chosen history" in reply.note
    assert owner.machine.state.tree.final == split.two.here
    owner.feed(DeltaChecked(contribution_id=split.missing.id))
    assert owner.machine.state.tree.final == split.five.here
    assert (await owner.status_now()).state != wire.NODE_TROUBLED


async def test_who_arrived_by_a_snapshot_above_the_fork_is_told_to_join_again() -> None:
    split = Slow()
    owner = split.owner()
    owner.machine.state.arrival.beside.add(split.five.id)
    reply = await owner.adopt(adopt(split.five))
    assert "join again with the same identity.key into a new --home" in reply.note


async def test_nobody_but_the_founder_can_keep_what_was_not_chosen() -> None:
    split = Split()
    founder = split.owner()
    await founder.adopt(adopt(split.five))
    error = await failure(split.owner("bob", knows=choices(founder)), adopt(split.two))
    assert error.exit_code == ExitCode.PERMISSION
    assert f"`fullrank adopt {short(split.five)}` follows the founder's choice" in error.hint


async def test_without_a_conflict_there_is_nothing_to_adopt() -> None:
    split = Split()
    owner = Owner(split.tale)
    owner.at(20)
    owner.receive(*split.ours)
    reply = await owner.adopt(adopt(split.five))
    assert not reply.HasField("conflict")
    assert "There is no conflict" in reply.note
    assert not owner.sent

"""Two real histories that contradict each other: told to running nodes, chosen between, and left behind (section 8).

Bob's and Cyd's disks were copied, and both copies ran: with Ada on one side of a broken network, with Dan on the
other. Three of four make rounds final on either side. Then the copies are gone, and Ada and Dan meet.
"""

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from chains import key
from loop_swarm import Hub, LoopNode, LoopSwarm, loop_swarm, make_genesis, some_delta
from owner_view import view_of
from peers import until

from fullrank_node.api import control_pb2 as wire
from fullrank_node.model.master import MasterStore, manifest_digest
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.vote import is_offence

NUM_ROUNDS = 3


@dataclass(frozen=True)
class Meeting:
    """Ada and Dan, each with a final history of their own.

    Attributes:
        lost: What Ada contributed to hers.
    """

    ada: LoopNode
    dan: LoopNode
    lost: list[Envelope]

    @property
    def nodes(self) -> list[LoopNode]:
        return [self.ada, self.dan]

    def pass_time(self, milliseconds: int = 100) -> bool:
        """Let the clocks of both go on; True, to be used in conditions."""
        for node in self.nodes:
            node.runner.clock.time_ms += milliseconds
        return True


async def history(swarm: LoopSwarm, name: str) -> list[Envelope]:
    """Rounds with a delta of one node each, until the first of them are final; those deltas' contributions."""
    (author,) = (node for node in swarm.nodes if node.name == name)
    made = []
    for number in range(NUM_ROUNDS):
        made.append(author.contribute(some_delta(swarm.genesis, f"{name}{number}")))
        await swarm.everywhere(made[-1])
        await end_slot(swarm)
    return made


async def end_slot(swarm: LoopSwarm) -> None:
    """As `LoopSwarm.next_slot`, where some whose turn it may be are not there: time goes on until somebody proposes."""
    slot = swarm.genesis.slot_at(swarm.clock.time_ms)
    swarm.clock.time_ms = swarm.genesis.slot_end_ms(slot)

    def is_done() -> bool:
        heads = {node.head.id for node in swarm.nodes}
        voted = len(heads) == 1 and len(swarm.nodes[0].runner.state.tree.nodes[heads.pop()].voters) == len(swarm.nodes)
        if voted and swarm.nodes[0].head.slot == slot:
            return True
        swarm.clock.time_ms += 10
        return False

    await until(is_done)


@pytest.fixture
async def meeting(tmp_path: Path) -> AsyncIterator[Meeting]:
    """The two have just learned of each other."""
    genesis = make_genesis("ada", "bob", "cyd", "dan")
    async with (
        loop_swarm(tmp_path / "here", genesis, "ada", "bob", "cyd") as here,
        loop_swarm(tmp_path / "there", genesis, "bob", "cyd", "dan") as there,
    ):
        lost = await history(here, "ada")
        await history(there, "dan")
        ada, dan = here.nodes[0], there.nodes[-1]
        assert ada.runner.state.tree.final.slot == dan.runner.state.tree.final.slot == 2
        here.clock.time_ms = there.clock.time_ms = max(here.clock.time_ms, there.clock.time_ms)
        for swarm in (here, there):
            swarm.hub.networks.clear()  # Bob and Cyd are gone, all four of them.
        hub = Hub()
        for node in (ada, dan):
            node.network._hub = hub
            hub.networks[node.network.key] = node.network
        both = Meeting(ada=ada, dan=dan, lost=lost)
        await until(lambda: ada.runner.state.alarmed and dan.runner.state.alarmed)
        await until(lambda: not any(node.runner.state.unverified for node in both.nodes))
        yield both


async def adopt(node: LoopNode, checkpoint: bytes) -> wire.AdoptReply:
    return await view_of(node.runner).adopt(wire.AdoptRequest(checkpoint=checkpoint.hex()[:12]))


async def digest_of_weights(node: LoopNode) -> bytes:
    """Of the masters at the head, whose files are whole."""
    manifest = await node.runner.masters.ensure(node.head.id, node.runner.state)
    files = MasterStore(node.home.masters_dir)
    assert all(files.verify(sha256) for sha256 in manifest.values())
    return manifest_digest(manifest)


async def test_both_sides_say_what_has_happened_and_hold_evidence_against_the_copies(
    meeting: Meeting, caplog: pytest.LogCaptureFixture
) -> None:
    for node, other in (meeting.nodes, meeting.nodes[::-1]):
        status = await view_of(node.runner).status(wire.StatusRequest())
        assert status.state == wire.NODE_TROUBLED
        assert status.conflict.ours.checkpoint.id == node.runner.state.tree.final.checkpoint
        assert status.conflict.theirs.checkpoint.id == other.runner.state.tree.final.checkpoint
        pieces = node.runner.state.evidence.values()
        assert {piece.accused for piece in pieces} == {key("bob"), key("cyd")}
        assert all(is_offence(piece.first, piece.second) for piece in pieces)
    told = [record for record in caplog.get_records("setup") if "contradict each other" in record.getMessage()]
    assert [record.levelno for record in told] == [logging.ERROR, logging.ERROR]


async def test_a_conflict_stops_both_sides_until_it_is_over(meeting: Meeting) -> None:
    heads = [node.head for node in meeting.nodes]
    votes = [len(node.store.own_votes()) for node in meeting.nodes]
    for _ in range(60):  # Six slots.
        meeting.pass_time()
        for node in meeting.nodes:
            node.runner.feed()
    assert [node.head for node in meeting.nodes] == heads
    assert [len(node.store.own_votes()) for node in meeting.nodes] == votes


async def test_who_is_on_the_side_that_was_not_chosen_follows_and_has_the_same_weights(meeting: Meeting) -> None:
    """Ada, the founder, keeps her history. Dan's weights of it are gone by then, and are replayed from the deltas."""
    ada, dan = meeting.nodes
    mine = ada.runner.state.tree.final.checkpoint
    await adopt(ada, mine)
    assert ada.runner.state.tree.conflict is None
    await until(lambda: dan.runner.state.tree.chosen is not None)
    status = await view_of(dan.runner).status(wire.StatusRequest())
    assert f"`fullrank adopt {mine.hex()[:12]}` follows it" in status.conflict.advice
    dan.runner.masters.collect(dan.runner.state)
    assert dan.store.manifest(mine) is None
    reply = await adopt(dan, mine)
    assert (reply.follows, reply.rounds_left, reply.final_rounds_left, reply.deltas_left) == (True, 3, 2, 3)
    await until(lambda: dan.head == ada.head)
    assert dan.runner.state.tree.final == ada.runner.state.tree.final
    assert await digest_of_weights(dan) == await digest_of_weights(ada) == ada.head.model_digest
    assert "conflict" not in dan.runner.warnings


async def test_a_founder_who_gives_up_the_own_history_brings_its_deltas_along(meeting: Meeting) -> None:
    ada, dan = meeting.nodes
    theirs = dan.runner.state.tree.final.checkpoint
    reply = await adopt(ada, theirs)
    assert (reply.signs, reply.follows, reply.deltas_offered) == (True, True, True)
    await until(lambda: dan.runner.state.tree.conflict is None)
    assert ada.head == dan.head
    await until(lambda: all(node.is_ready(each) for node in meeting.nodes for each in meeting.lost))
    before = ada.head.round
    await until(lambda: meeting.pass_time() and all(node.head.round > before for node in meeting.nodes))
    for node in meeting.nodes:
        assert [node.verdict(each)[0] for each in meeting.lost] == ["accepted"] * NUM_ROUNDS
    assert await digest_of_weights(ada) == await digest_of_weights(dan) == ada.head.model_digest


async def test_what_was_adopted_still_holds_after_a_restart(meeting: Meeting) -> None:
    from fullrank_node.restoring import restored_state

    ada, dan = meeting.nodes
    await adopt(ada, dan.runner.state.tree.final.checkpoint)
    state = ada.runner.state
    again = restored_state(
        ada.genesis, ada.store, key=key("ada"), base_digest=state.base_digest, now_ms=ada.runner.clock.now_ms()
    )
    assert again.tree.final == state.tree.final
    assert again.tree.conflict is None
    assert again.tree.head() == ada.head

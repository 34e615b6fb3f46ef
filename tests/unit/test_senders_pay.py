"""Whoever hands a node something false pays, and whoever passes on what is merely unknown, late or second does not.

Ada's round machine stands behind her exchange, without a daemon; peers ask her as they ask any node. What they send
are the very objects of the vectors.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from chains import Story, key, swarm_with
from hostile.receiver import Receiver
from hostile.vectors import unpacked
from loop_swarm import LoopNode, loop_swarm, make_genesis, some_delta
from machines import Machine
from swarms import id_of, key_of

from fullrank_node import exchange as exchange_module
from fullrank_node.conduct import FALSE_OBJECT, UNITS_AT_ONCE, Conduct
from fullrank_node.exchange import MAX_IDS_ASKED, Exchange
from fullrank_node.network.asking import check_response
from fullrank_node.network.interface import NetworkError, PeerFailure, PeerInfo
from fullrank_node.network.limits import Traffic
from fullrank_node.taking import MAX_REFUSALS_TOLD, Taker
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import Rule
from fullrank_protocol.identity import verify
from fullrank_protocol.round_io import Drop, Event, Keep
from fullrank_protocol.vote import make_vote
from fullrank_protocol.wire import peer_pb2

VECTORS = Path(__file__).resolve().parents[2] / "protocol" / "vectors"
MALLORY, BOB = key("mallory"), key("bob")
FOUR = ("ada", "bob", "cyd", "dan")


class Log:
    """Objects kept, as the exchange reads them."""

    def __init__(self) -> None:
        self.objects: dict[bytes, bytes] = {}
        self.num_reads = 0

    def get_object(self, object_id: bytes) -> bytes | None:
        self.num_reads += 1
        return self.objects.get(object_id)

    def object_ids(self, from_slot: int = 0) -> list[tuple[bytes, int, int]]:
        return [(object_id, from_slot, 0) for object_id in self.objects]


class Desk:
    """A node's round machine and exchange; time stands still."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.now_s = 0.0
        self.log = Log()
        self.conduct = Conduct(lambda: self.now_s)
        self.taker = Taker(state=machine.state, feed=self.feed, conduct=self.conduct)
        parts: dict[str, Any] = {"store": self.log, "clock": None, "state": machine.state, "feed": self.feed}
        self.exchange = Exchange(**parts, conduct=self.conduct, taker=self.taker)

    def feed(self, *events: Event) -> None:
        for event in events:
            for action in self.machine.feed(event):
                if isinstance(action, Drop):
                    self.taker.dropped(action)
                elif isinstance(action, Keep):
                    self.taker.kept(action.envelope.id)
                    self.log.objects[action.envelope.id] = action.envelope.encode()

    async def offered(self, *objects: Envelope | bytes, by: bytes = MALLORY) -> peer_pb2.Response:
        data = [each if isinstance(each, bytes) else each.encode() for each in objects]
        return await self.exchange.handle(by, peer_pb2.Request(offer=peer_pb2.Offer(envelopes=data)))

    def points(self, peer: bytes = MALLORY) -> float:
        return self.conduct._record(peer).points


def desk(tale: Story, *told: Any, slot: int = 3) -> Desk:
    machine = Machine(tale, "ada", certifies=False)
    machine.at(slot, 500)
    machine.receive(*told)
    return Desk(machine)


def story() -> Story:
    return Story(swarm_with(*FOUR))


# ---- malformed, lying, replayed --------------------------------------------------------------------


async def test_every_malformed_object_of_the_vectors_costs_its_sender() -> None:
    content = json.loads((VECTORS / "malformed.json").read_text(encoding="utf-8"))
    for case in content["refused"]:
        node = Desk(Receiver(content["context"]))
        reply = await node.offered(unpacked(case["envelope"]))
        if reply.WhichOneof("body") == "failure":  # It was so large that it was enough.
            assert case["detail"] in reply.failure.detail
            continue
        (refused,) = reply.received.refused
        assert (refused.rule, refused.detail) == (case["rule"], case["detail"])
        assert node.points() >= FALSE_OBJECT, case["what"]
        assert node.points(BOB) == 0


async def test_of_the_lies_of_the_vectors_those_cost_their_sender_that_are_lies_everywhere() -> None:
    content = json.loads((VECTORS / "lying.json").read_text(encoding="utf-8"))
    num_innocent = 0
    for context in content["contexts"]:
        for lie in context["lies"]:
            node = Desk(Receiver(context))
            reply = await node.offered(bytes.fromhex(lie["envelope"]))
            told = [(each.rule, each.detail) for each in reply.received.refused]
            assert told == ([(lie["rule"], lie["detail"])] if lie["outcome"] == "refused" else [])
            assert (node.points() >= FALSE_OBJECT) == lie["blames_sender"], lie["what"]
            num_innocent += not lie["blames_sender"]
    assert num_innocent > 50


async def test_a_sender_of_false_objects_is_told_why_it_is_shut_out_and_nothing_of_it_is_taken_any_more() -> None:
    tale = story()
    one = tale.grow(tale.genesis, slot=1)
    node = desk(tale, one)
    lies = [tale.swarm.vote(f"sybil {number}", target=one.id, target_slot=1).envelope for number in range(8)]
    replies = [await node.offered(lie) for lie in lies]
    assert [reply.WhichOneof("body") for reply in replies] == ["received"] * 4 + ["failure"] * 4
    failure = replies[4].failure
    assert failure.code == peer_pb2.Failure.SHUT_OUT
    assert failure.detail.startswith("shut out for 60 s more: sent a vote that was refused by rule VOTE: ")
    with pytest.raises(PeerFailure, match="peer takes nothing from this node: shut out for 60 s"):
        check_response(replies[7])
    sound = tale.vote("cyd", one).envelope
    assert (await node.offered(sound)).WhichOneof("body") == "failure"
    assert sound.id not in node.machine.state.known
    assert (await node.offered(sound, by=BOB)).received.num_new == 1
    asked = await node.exchange.handle(MALLORY, peer_pb2.Request(get_genesis=peer_pb2.GetGenesis()))
    assert asked.failure.code == peer_pb2.Failure.SHUT_OUT
    node.now_s += 61.0
    assert (await node.offered(tale.vote("bob", one).envelope)).received.num_new == 1


async def test_after_the_last_straw_nothing_more_of_the_same_offer_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_checked = 0

    def counted(public_key: bytes, data: bytes, signature: bytes) -> bool:
        nonlocal num_checked
        num_checked += 1
        return verify(public_key, data, signature)

    tale = story()
    node = desk(tale)
    forged = []
    for number in range(500):
        message = tale.swarm.vote("bob", target=id_of(f"{number}"), target_slot=1).envelope.encode()
        forged.append(message[:-1] + bytes([message[-1] ^ 1]))
    monkeypatch.setattr("fullrank_protocol.envelope.verify", counted)
    reply = await node.offered(*forged)
    assert reply.failure.code == peer_pb2.Failure.SHUT_OUT
    assert num_checked == 5


async def test_replayed_objects_are_not_verified_again_and_cost_whoever_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tale = story()
    one = tale.grow(tale.genesis, slot=1)
    node = desk(tale)
    objects = [one_of.encode() for one_of in (node.machine.envelope_of(one), tale.vote("bob", one).envelope)]
    assert (await node.offered(*objects, by=BOB)).received.num_new == 2
    before = len(node.log.objects)

    def no_more(*_: Any) -> bool:
        raise AssertionError("what is known is verified again")

    monkeypatch.setattr("fullrank_protocol.envelope._is_authentic", no_more)
    assert (await node.offered(*objects, by=MALLORY)).received.num_new == 0
    assert node.points() == 0, "whoever brings it for the first time does not know that it is here"
    replies = [await node.offered(*objects * 20, by=MALLORY) for _ in range(15)]
    assert replies[-1].failure.code == peer_pb2.Failure.SHUT_OUT
    assert "again and again" in replies[-1].failure.detail
    assert len(node.log.objects) == before


async def test_a_flood_of_new_objects_is_not_taken_in_beyond_a_peers_share() -> None:
    tale = story()
    node = desk(tale)
    node.conduct.has_room(MALLORY, num_objects=int(UNITS_AT_ONCE) - 5, num_bytes=0)
    votes = [tale.swarm.vote("bob", target=id_of(f"{number}"), target_slot=1).envelope for number in range(9)]
    refused = await node.offered(*votes)
    assert refused.failure.code == peer_pb2.Failure.BUSY
    assert len(node.machine.state.parked) == 0
    assert (await node.offered(*votes, by=BOB)).received.num_new == 9


async def test_a_long_list_of_refusals_is_told_in_part() -> None:
    tale = story()
    state = tale.genesis
    rounds = []
    for slot in range(1, 7):
        state = tale.round_of(state, slot=slot)
        rounds.append(state)
    node = desk(tale, *rounds, slot=8)
    late = [tale.contribution("bob", num_tokens=1 + number).envelope for number in range(40)]
    reply = await node.offered(*late)
    assert reply.received.num_new == 40
    assert [each.rule for each in reply.received.refused] == [Rule.STALE] * MAX_REFUSALS_TOLD


# ---- innocent -------------------------------------------------------------------------------------


async def innocent(node: Desk, *objects: Envelope) -> None:
    """Passing these on costs nothing, whatever becomes of them."""
    for _ in range(2):
        for each in objects:
            await node.offered(each)
    assert node.points() < FALSE_OBJECT / 2
    assert node.conduct.refusal(MALLORY) is None


async def test_what_refers_to_something_unknown_costs_nothing_even_when_that_never_comes() -> None:
    tale = story()
    node = desk(tale)
    votes = [tale.swarm.vote("bob", target=id_of(f"{number}"), target_slot=2).envelope for number in range(30)]
    await innocent(node, *votes)
    assert len(node.machine.state.parked) == 30


async def test_when_it_comes_and_shows_that_the_object_was_false_whoever_brought_it_pays() -> None:
    tale = story()
    one = tale.grow(tale.genesis, slot=1)
    node = desk(tale)
    false = tale.swarm.vote("mallory", target=one.id, target_slot=1).envelope
    await node.offered(false)
    assert node.points() == 0
    await node.offered(node.machine.envelope_of(one), by=BOB)
    assert node.points() >= FALSE_OBJECT
    assert node.points(BOB) == 0


async def test_a_second_contribution_costs_its_forwarder_nothing_for_there_it_may_be_the_first() -> None:
    tale = story()
    node = desk(tale)
    await node.offered(tale.contribution("bob", num_tokens=1).envelope, by=BOB)
    await innocent(node, tale.contribution("bob", num_tokens=2).envelope)


async def test_what_follows_a_refused_checkpoint_costs_its_forwarder_nothing_who_has_not_recomputed_it_yet() -> None:
    tale = story()
    wrong = tale.grow(tale.genesis, slot=1, by="cyd", model_digest=id_of("wrong"))
    node = desk(tale, wrong)
    assert node.machine.state.tree.nodes[wrong.id].verdict is False
    await innocent(node, tale.checkpoint(wrong, slot=2, by="dan").envelope)


async def test_a_checkpoint_that_does_not_hold_costs_its_forwarder_nothing() -> None:
    tale = story()
    node = desk(tale)
    wrong = tale.checkpoint(tale.genesis, slot=1, by="cyd", model_digest=id_of("wrong"))
    await innocent(node, wrong.envelope)
    assert node.machine.state.tree.nodes[wrong.id].verdict is False


async def test_records_that_are_too_late_or_too_early_here_cost_nothing() -> None:
    tale = story()
    grant, other = tale.grant(count=1), tale.grant("other")
    one = tale.grow(tale.genesis, slot=1, records=[grant, tale.admission("eve", grant)])
    node = desk(tale, one)
    late = [tale.admission("fay", grant), tale.take_up("cyd"), tale.admission("gus", other, "other")]
    votes = [tale.swarm.vote("eve", target=id_of(name), target_slot=2) for name in ("x", "y")]
    unknown = [tale.swarm.vote("hal", target=id_of(name), target_slot=2) for name in ("x", "y")]
    await innocent(node, *late, tale.evidence(*votes).envelope, tale.evidence(*unknown).envelope)


# ---- whoever is asked -------------------------------------------------------------------------------


class Neighbour:
    """A network of one neighbour that answers as a test wants."""

    def __init__(self, answer: Callable[[peer_pb2.Request], peer_pb2.Response]) -> None:
        self.answer = answer
        self.num_asked = 0
        self.hints: list[bytes] = []

    def peers(self) -> list[PeerInfo]:
        return [PeerInfo(key=MALLORY)]

    def addresses(self) -> list[str]:
        return []

    def traffic(self) -> Traffic:
        return Traffic()

    async def request(self, peer: bytes, request: peer_pb2.Request, *, timeout_s: float) -> peer_pb2.Response:
        self.num_asked += 1
        await asyncio.sleep(0)
        return check_response(self.answer(request))

    async def lookup(self, kind: str, slot: int) -> list[bytes]:
        return self.hints if kind == "vote" else []


def asks(node: Desk, answer: Callable[[peer_pb2.Request], peer_pb2.Response]) -> Neighbour:
    network = Neighbour(answer)
    node.exchange.attach(network)  # type: ignore[arg-type]
    return network


def objects(data: Sequence[bytes], *, more: bool = False) -> peer_pb2.Response:
    return peer_pb2.Response(objects=peer_pb2.Objects(envelopes=data, more=more))


async def ends(work: Awaitable[None]) -> None:
    async with asyncio.timeout(60):
        await work


async def test_answers_with_what_was_not_asked_for_are_not_taken_and_cost_their_sender() -> None:
    tale = story()
    node = desk(tale)
    votes = [tale.swarm.vote("bob", target=id_of(f"{number}"), target_slot=2).envelope for number in range(30)]
    network = asks(node, lambda _: objects([vote.encode() for vote in votes]))
    await ends(node.exchange.fetch((votes[0].id,)))
    assert len(node.machine.state.parked) == 1
    assert "not asked for" in (node.conduct.refusal(MALLORY) or "")
    await ends(node.exchange.fetch((votes[1].id,)))
    assert network.num_asked == 1, "who is shut out is asked for nothing"


async def test_a_neighbour_that_claims_to_have_what_it_never_gives_is_not_listened_to_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange_module, "PATIENCE_S", 0.0)
    node = desk(story())
    ids = [id_of(f"{number}") for number in range(5000)]

    def answer(request: peer_pb2.Request) -> peer_pb2.Response:
        if request.WhichOneof("body") == "inventory":
            return peer_pb2.Response(inventory=peer_pb2.Inventory(object_ids=ids))
        return objects([])

    network = asks(node, answer)
    await ends(node.exchange._catch_up(MALLORY))
    assert network.num_asked == 2


async def test_a_chain_of_checkpoints_that_nobody_can_place_comes_to_an_end() -> None:
    """Strangers' checkpoints of ever later slots, each answer promising more."""
    tale = story()
    node = desk(tale)
    slots = iter(range(1, 10_000))

    def answer(request: peer_pb2.Request) -> peer_pb2.Response:
        if request.WhichOneof("body") == "inventory":
            return peer_pb2.Response(inventory=peer_pb2.Inventory(head=id_of("far"), head_slot=10_000))
        slot = next(slots)
        orphan = tale.swarm.checkpoint_envelope("mallory", parent=id_of(f"{slot}"), slot=slot)
        return objects([orphan.encode()], more=True)

    network = asks(node, answer)
    await ends(node.exchange._catch_up(MALLORY))
    assert network.num_asked == 2


async def test_a_neighbour_whose_answers_are_false_is_asked_no_more() -> None:
    tale = story()
    one = tale.grow(tale.genesis, slot=1)
    node = desk(tale, one)
    lies = [tale.swarm.vote(f"sybil {number}", target=one.id, target_slot=1).envelope for number in range(400)]
    by_id = {lie.id: lie.encode() for lie in lies}

    def answer(request: peer_pb2.Request) -> peer_pb2.Response:
        if request.WhichOneof("body") == "inventory":
            return peer_pb2.Response(inventory=peer_pb2.Inventory(object_ids=list(by_id)))
        return objects([by_id[each] for each in request.get_objects.ids])

    network = asks(node, answer)
    with pytest.raises(NetworkError, match="refused by rule VOTE"):
        await ends(node.exchange._catch_up(MALLORY))
    assert network.num_asked == 2
    assert len(node.machine.state.refused) <= 100


async def test_of_a_flood_on_the_dht_a_part_is_looked_at_and_nobody_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "MAX_FOUND", 10)
    tale = story()
    node = desk(tale)
    found = [tale.swarm.vote(f"sybil {number}", target=id_of("t"), target_slot=1).envelope for number in range(30)]
    network = asks(node, lambda _: objects([]))
    network.hints = [b"junk", *(vote.encode() for vote in found)]
    await ends(node.exchange.look_up(slot=1))
    assert len(node.machine.state.parked) == 9
    assert node.conduct.shut_out() == {}


async def test_more_objects_than_allowed_are_not_looked_for() -> None:
    node = desk(story())
    ids = [id_of(f"{number}") for number in range(MAX_IDS_ASKED + 1)]
    request = peer_pb2.Request(get_objects=peer_pb2.GetObjects(ids=ids))
    reply = await node.exchange.handle(MALLORY, request)
    assert reply.failure.code == peer_pb2.Failure.TOO_LARGE
    assert node.log.num_reads == 0


# ---- with a real node -----------------------------------------------------------------------------


async def test_a_running_node_shuts_out_who_lies_and_goes_on_with_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with loop_swarm(tmp_path, make_genesis("ada", "bob"), "ada", "bob") as swarm:
        ada, bob = swarm.nodes
        assert await ada.offered(*(lying_vote(bob, number) for number in range(6))) == 0
        assert "is shut out for 60 s: it sent a vote that was refused by rule VOTE" in caplog.text
        good = bob.contribute(some_delta(swarm.genesis, "good"))
        await swarm.everywhere(good)
        assert await ada.offered(good) == 0
        await swarm.next_slot()
        assert ada.verdict(good)[0] == "accepted"


def lying_vote(node: LoopNode, number: int) -> Envelope:
    """A vote for the genesis, which is no target, by somebody who is no certifier."""
    swarm = node.genesis.swarm
    return make_vote(key_of(f"sybil {number}"), swarm=swarm, source=swarm, source_slot=0, target=swarm, target_slot=0)

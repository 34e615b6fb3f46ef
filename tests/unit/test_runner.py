"""Several nodes in one loop: what one signs, all recompute to the very same bits."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from chains import key
from loop_swarm import LoopNode, LoopSwarm, loop_swarm, make_genesis, some_delta
from peers import until

from fullrank_node.errors import ExitCode, node_error_in
from fullrank_node.files import disk_full
from fullrank_node.finality_watch import LAG_ROUNDS, FinalityWatch
from fullrank_node.history import SwitchRow
from fullrank_node.home import Home
from fullrank_node.people import name_of_member
from fullrank_node.runner import LISTEN_MS, STILL_MS
from fullrank_node.store import Store
from fullrank_protocol.codec import encode
from fullrank_protocol.delta import SeedContext, expand, to_float
from fullrank_protocol.envelope import open_envelope
from fullrank_protocol.round_state import ASK_AGAIN_MS
from fullrank_protocol.wire import objects_pb2 as wire


@contextlib.asynccontextmanager
async def three(directory: Path) -> AsyncIterator[tuple[LoopSwarm, list[LoopNode]]]:
    async with loop_swarm(directory, make_genesis("ada", "bob", "cyd"), "ada", "bob", "cyd") as swarm:
        yield swarm, swarm.nodes


def manifests(nodes: list[LoopNode], checkpoint: bytes) -> list[dict[str, str] | None]:
    return [node.store.manifest(checkpoint) for node in nodes]


async def test_mixed_ranks_and_modes_in_one_round_give_one_digest_on_all_nodes(tmp_path: Path) -> None:
    """Ranks 2, 5 and 8; ada and cyd send A (mode AB), bob draws it from a seed (mode B)."""
    async with three(tmp_path) as (swarm, nodes):
        ada, bob, cyd = nodes
        given = {
            ada: some_delta(swarm.genesis, "ada", rank=2),
            bob: some_delta(swarm.genesis, "bob", rank=5, seeded=True),
            cyd: some_delta(swarm.genesis, "cyd", rank=8),
        }
        sent = {node: node.contribute(delta) for node, delta in given.items()}
        await swarm.everywhere(*sent.values())
        head = await swarm.next_slot()
        first, *others = manifests(nodes, head.id)
        assert first is not None
        assert others == [first, first]
        assert {node.head.model_digest for node in nodes} == {head.model_digest}

        before = ada.store.manifest(swarm.genesis.swarm)
        assert before is not None
        rows = {row.member: row for row in ada.store.contributions()}
        context = {node: SeedContext(swarm=swarm.genesis.swarm, member=key(node.name), period=0) for node in nodes}
        for module in swarm.genesis.modules:
            shape = (module.out_features, module.in_features)
            tensors = [ada.runner.masters._files.open(each[module.name], shape) for each in (before, first)]  # type: ignore[attr-defined]
            expected = tensors[0].astype(np.float64)
            for node, delta in given.items():
                weight = rows[key(node.name)].weight
                assert weight is not None
                (part,) = [
                    part
                    for part in expand(delta, context[node], swarm.genesis.modules).parts
                    if part.module == module.name
                ]
                expected = expected + weight.value() * to_float(part).reshape(shape)
            np.testing.assert_allclose(tensors[1], expected, rtol=0, atol=1e-6)


async def test_stale_and_fresh_deltas_are_merged_alike_and_empty_slots_finish_finality(tmp_path: Path) -> None:
    async with three(tmp_path) as (swarm, nodes):
        ada, bob, cyd = nodes
        genesis = ada.head
        await swarm.everywhere(ada.contribute(some_delta(swarm.genesis, "ada")))
        one = await swarm.next_slot()
        late = bob.contribute(some_delta(swarm.genesis, "bob", seeded=True), base=genesis)
        fresh = cyd.contribute(some_delta(swarm.genesis, "cyd", rank=6))
        await swarm.everywhere(late, fresh)
        two = await swarm.next_slot()
        assert (one.round, two.round) == (1, 2)
        assert len({node.head.model_digest for node in nodes}) == 1
        three_ = await swarm.next_slot()
        assert (three_.round, three_.model_digest) == (2, two.model_digest)
        await until(lambda: all(node.runner.state.tree.final == two.here for node in nodes))
        for node in nodes:
            assert [node.verdict(each)[0] for each in (late, fresh)] == ["accepted", "accepted"]
        weights = {row.member: row.weight for row in ada.store.contributions()}
        assert all(weight is not None and weight.value() > 0 for weight in weights.values())


async def test_a_latecomer_recomputes_everything_and_has_the_same_model(tmp_path: Path) -> None:
    async with three(tmp_path) as (swarm, nodes):
        ada, head = nodes[0], nodes[0].head
        for number in range(2):
            await swarm.everywhere(ada.contribute(some_delta(swarm.genesis, f"ada {number}")))
            head = await swarm.next_slot()
        async with swarm.node("zoe", threads=2) as zoe:
            await until(lambda: zoe.head == head)
            assert zoe.store.manifest(head.id) == ada.store.manifest(head.id)
            assert [row.num_accepted for row in zoe.store.rounds()] == [1, 1]


async def test_a_node_that_comes_back_goes_on_where_it_was(tmp_path: Path) -> None:
    async with three(tmp_path) as (swarm, nodes):
        ada = nodes[0]
        async with swarm.node("zoe") as zoe:
            await swarm.everywhere(ada.contribute(some_delta(swarm.genesis, "ada 1")))
            one = await swarm.next_slot()
            assert zoe.head == one
        await swarm.everywhere(ada.contribute(some_delta(swarm.genesis, "ada 2")))
        two = await swarm.next_slot()
        async with swarm.node("zoe") as again:
            assert again.head == one
            await until(lambda: again.head == two)
            assert again.store.manifest(two.id) == ada.store.manifest(two.id)


async def test_a_fork_turns_the_verdicts_in_history_with_the_head(tmp_path: Path) -> None:
    """Ada, cut off, merges a delta of hers; bob and cyd agree on another checkpoint of the same slot."""
    async with three(tmp_path) as (swarm, nodes):
        ada, bob, cyd = nodes
        swarm.hub.alone.add(key("ada"))
        mine = ada.contribute(some_delta(swarm.genesis, "ada"))
        theirs = bob.contribute(some_delta(swarm.genesis, "bob"))
        await until(lambda: ada.is_ready(mine) and bob.is_ready(theirs) and cyd.is_ready(theirs))
        first = min(swarm.turns(1).index(node) for node in (bob, cyd))
        swarm.clock.time_ms = swarm.genesis.slot_end_ms(1) + 100 * first
        await until(lambda: bob.head.slot == 1 and bob.head == cyd.head)
        await until(lambda: {key("bob"), key("cyd")} <= bob.runner.state.tree.nodes[bob.head.id].voters)
        swarm.clock.time_ms = swarm.genesis.slot_end_ms(1) + 300
        await until(lambda: ada.head.slot == 1)
        assert ada.verdict(mine)[0] == "accepted"
        swarm.hub.alone.clear()
        await until(lambda: ada.head == bob.head)
        assert ada.verdict(mine)[0] == "pending"
        assert ada.verdict(theirs)[0] == "accepted"
        left = ada.left_branch()
        assert (left.left_round, left.fork_round, left.deltas) == (1, 0, 1)
        assert (left.deltas_kept, left.deltas_waiting, left.tokens_kept) == (0, 1, 0)
        await until(lambda: bob.is_ready(mine) and cyd.is_ready(mine))
        await swarm.next_slot()
        left = ada.left_branch()
        assert (left.deltas_kept, left.deltas_waiting) == (1, 0)
        assert left.tokens_kept == left.tokens > 0
        assert not bob.store.switches()


async def test_the_log_tells_when_rounds_stop_becoming_final_and_when_they_do_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With two of three certifiers away, one goes on alone."""
    caplog.set_level("INFO")
    async with three(tmp_path) as (swarm, nodes):
        ada = nodes[0]
        watch = FinalityWatch(ada.runner.state.tree)
        ada.runner.on_adopt.append(watch.look)
        ada.runner.on_final.append(watch.look)
        swarm.hub.alone.update({key("bob"), key("cyd")})

        def time_passes_until(number: int) -> bool:
            swarm.clock.time_ms += 200
            return ada.head.round == number

        for number in range(1, LAG_ROUNDS + 2):
            ada.contribute(some_delta(swarm.genesis, f"ada {number}"))
            await until(lambda number=number: time_passes_until(number))
        away = ", ".join(sorted(name_of_member(key(name), ada.head.members) for name in ("bob", "cyd")))
        told = f"Rounds go on, but none has become final since slot 0: waiting for certifiers {away}."
        assert caplog.text.count(told) == caplog.text.count("Rounds go on") == 1
        swarm.hub.alone.clear()

        def time_passes_until_told() -> bool:
            swarm.clock.time_ms += 200
            return "Rounds become final again: slot " in caplog.text

        await until(time_passes_until_told)


async def test_a_contribution_that_waited_in_vain_is_late_with_its_age(tmp_path: Path) -> None:
    """Nobody gets zoe's blob whole; after four rounds it is too late for it."""
    async with loop_swarm(tmp_path, make_genesis("ada", policy=wire.OPEN), "ada", "zoe") as swarm:
        ada, zoe = swarm.nodes
        zoe.network.spoil = lambda data: data[:-1]
        late = zoe.contribute(some_delta(swarm.genesis, "zoe"))
        for number in range(4):
            assert zoe.verdict(late) == ("pending", "", "")
            await swarm.everywhere(ada.contribute(some_delta(swarm.genesis, f"ada {number}")))
            await swarm.next_slot()
        assert zoe.verdict(late) == ("late", "stale", "is 4 rounds old, at most 3 are accepted")
        row = SwitchRow(at_ms=1, left_checkpoint=ada.head.id, left_round=1, fork_round=0, contributions=(late.id,))
        ada.store.note_switch(row)  # As if a branch that had merged it had been left before: ada sees it pending.
        assert ada.verdict(late)[0] == "pending"
        assert (ada.left_branch().deltas, ada.left_branch().deltas_waiting) == (1, 0)


async def test_what_is_fed_before_the_node_lives_waits_for_it(tmp_path: Path) -> None:
    """A restarted node may offer its admission while its parts are still coming up."""
    async with loop_swarm(tmp_path, make_genesis("ada")) as swarm, swarm.node("ada") as ada:
        ada.life.cancel()
        await asyncio.gather(ada.life, return_exceptions=True)
        mine = ada.contribute(some_delta(swarm.genesis, "ada"))
        assert not ada.store.contributions()
        ada.life = asyncio.create_task(ada.runner.run())
        await until(lambda: ada.is_ready(mine))
        assert ada.verdict(mine)[0] == "pending"


async def test_a_node_that_stood_still_says_for_how_long(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with loop_swarm(tmp_path, make_genesis("ada"), "ada") as swarm:
        swarm.clock.time_ms += STILL_MS + 2000
        await until(lambda: "This node stood still for 12 s" in caplog.text)


async def test_a_log_that_cannot_be_written_ends_the_node_with_the_reason_and_leaves_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with loop_swarm(tmp_path, make_genesis("ada")) as swarm:
        async with swarm.node("ada") as ada:
            await swarm.everywhere(ada.contribute(some_delta(swarm.genesis, "ada 1")))
            head = await swarm.next_slot()

            def full(*_: object, **__: object) -> bool:
                raise disk_full(ada.home.state_file)

            monkeypatch.setattr(ada.store, "put_object", full)
            lost = ada.contribute(some_delta(swarm.genesis, "ada 2"))
            with pytest.raises(BaseExceptionGroup) as caught:
                await ada.life
            error = node_error_in(caught.value)
            assert error is not None
            assert error.exit_code == ExitCode.DISK
            assert "no space left" in str(error)
        async with swarm.node("ada") as again:
            assert again.head == head
            assert lost.id not in again.runner.state.candidates
            swarm.clock.time_ms += LISTEN_MS
            await swarm.everywhere(again.contribute(some_delta(swarm.genesis, "ada 3")))
            assert (await swarm.next_slot()).round == 2


async def test_an_object_that_the_disk_has_spoilt_comes_from_peers_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with three(tmp_path) as (swarm, nodes):
        ada = nodes[0]
        async with swarm.node("zoe") as zoe:
            for number in range(2):
                await swarm.everywhere(ada.contribute(some_delta(swarm.genesis, f"ada {number}")))
                head = await swarm.next_slot()
            first = head.parent
            assert first is not None
            path = zoe.store.path
        with sqlite3.connect(path) as database:
            row = database.execute("SELECT envelope FROM objects WHERE id = ?", (first,)).fetchone()
            spoilt = row[0][:-1] + bytes([row[0][-1] ^ 1])
            database.execute("UPDATE objects SET envelope = ? WHERE id = ?", (spoilt, first))
        async with swarm.node("zoe") as again:
            assert again.head.slot == 0
            assert "is damaged on this disk and comes from peers again" in caplog.text
            await until(lambda: again.head == head)
            assert again.store.get_object(first) == row[0]


async def test_a_delta_that_the_disk_has_spoilt_before_it_was_judged_comes_from_peers_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with three(tmp_path) as (swarm, nodes):
        ada, bob, _ = nodes
        data = encode(some_delta(swarm.genesis, "ada"), swarm.genesis)
        ref = bob.blobs.put_bytes(data)
        bob.blobs.path(ref.id).write_bytes(data[: len(data) // 2])
        mine = ada.contribute(data)
        await until(lambda: "is damaged: it does not hash to its name" in caplog.text)
        await until(lambda: bob.runner.state.candidates[mine.id].status.value == "unavailable")
        assert not bob.blobs.has(ref.id)
        swarm.clock.time_ms += ASK_AGAIN_MS
        await until(lambda: bob.blobs.has(ref.id))
        assert bob.blobs.read(ref.id) == data
        await until(lambda: "delta" not in bob.runner.warnings)


async def test_a_vote_that_was_recorded_and_not_sent_is_sent_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with loop_swarm(tmp_path, make_genesis("ada", "bob", "cyd"), "ada", "bob") as swarm:
        async with swarm.node("cyd") as cyd:
            submit = cyd.runner.submit
            monkeypatch.setattr(cyd.runner, "submit", lambda own: None if own.type == wire.VOTE else submit(own))
            await swarm.everywhere(swarm.nodes[0].contribute(some_delta(swarm.genesis, "ada")))
            swarm.clock.time_ms = swarm.genesis.slot_end_ms(1) + 300
            await until(lambda: bool(cyd.store.own_votes()))
        vote = open_envelope(cyd_vote(tmp_path), swarm=swarm.genesis.swarm)
        assert not any(node.store.has_object(vote.id) for node in swarm.nodes)
        async with swarm.node("cyd"):
            await until(lambda: all(node.store.has_object(vote.id) for node in swarm.nodes))


def cyd_vote(directory: Path) -> bytes:
    with Store(Home(directory / "cyd"), readonly=True) as store:
        (vote,) = store.own_votes()
    return vote

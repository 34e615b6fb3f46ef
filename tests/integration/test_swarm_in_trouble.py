"""Four real certifiers and what happens to swarms: kills, damage, lies, people who come and go, a founder lost.

The tests share one swarm, and each leaves it whole, but for the last ones, in which members are gone for good.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from live_swarm import (
    MANY_STEPS,
    LiveNode,
    LiveSwarm,
    now_ms,
    wait_for_certifiers,
    wait_for_contributions,
    wait_for_new_final_rounds,
    wait_until,
    wait_until_gone,
    wait_until_it_trains,
)

from fullrank_node.store import Store
from fullrank_protocol.link import Link
from fullrank_protocol.wire import objects_pb2 as wire

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Swarm:
    live: LiveSwarm
    ada: LiveNode
    bob: LiveNode
    cyd: LiveNode
    dan: LiveNode
    link: Link

    @property
    def nodes(self) -> list[LiveNode]:
        return [self.ada, self.bob, self.cyd, self.dan]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with LiveSwarm(tmp_path_factory.mktemp("swarm")) as live:
        ada = live.found("ada")
        link = live.invite(ada)
        bob, cyd, dan = live.join_together(link, {"bob": [], "cyd": [], "dan": []})
        wait_for_certifiers([ada, bob, cyd, dan], 4)
        yield Swarm(live=live, ada=ada, bob=bob, cyd=cyd, dan=dan, link=link)


@pytest.fixture
def swarm(shared: Swarm) -> Swarm:
    """The swarm with all four at work, whatever an earlier test broke off."""
    start_the_stopped(shared.nodes)
    return shared


@pytest.fixture
def bereft(shared: Swarm) -> Swarm:
    """The swarm after its founder has gone."""
    start_the_stopped([shared.bob, shared.cyd, shared.dan])
    if shared.ada.status()["running"]:
        wait_until_gone(shared.ada.kill())
    return shared


def start_the_stopped(nodes: list[LiveNode]) -> None:
    for node in nodes:
        if not node.status()["running"]:
            node.start()


def objects_of(node: LiveNode) -> set[bytes]:
    """Everything that a node has durably taken in."""
    with Store(node.home, readonly=True) as store:
        return {object_id for object_id, _, _ in store.object_ids()}


def votes_of(node: LiveNode) -> list[bytes]:
    """The node's own votes as it recorded them."""
    with Store(node.home, readonly=True) as store:
        return store.own_votes()


def num_evidence(node: LiveNode) -> int:
    with Store(node.home, readonly=True) as store:
        return len(list(store.objects(wire.EVIDENCE)))


def link_by(swarm: Swarm, *nodes: LiveNode) -> Link:
    """The link with the addresses of these nodes alone, in this order."""
    addresses = [address for node in nodes for address in node.status()["addresses"]]
    return replace(swarm.link, peers=tuple(addresses), final=None)


# ---- processes die ---------------------------------------------------------------------------------


def test_a_node_killed_in_mid_round_goes_on_where_it_was(swarm: Swarm) -> None:
    wait_until_it_trains(swarm.bob)
    objects, votes = objects_of(swarm.bob), votes_of(swarm.bob)
    killed = swarm.bob.kill()
    assert len(killed) >= 4  # Daemon, trainer, worker and p2pd.
    wait_until_gone(killed)
    restarted_ms = now_ms()
    swarm.bob.start()
    wait_for_contributions([swarm.bob], since_ms=restarted_ms)
    wait_for_new_final_rounds(swarm.nodes)
    assert objects <= objects_of(swarm.bob)
    assert set(votes) < set(votes_of(swarm.bob))
    for node in swarm.nodes:
        assert num_evidence(node) == 0
        assert node.members()["bob"]["certifies"]


def test_a_node_outlives_its_p2pd(swarm: Swarm) -> None:
    before = swarm.cyd.status()
    p2pd = swarm.cyd.p2pd()
    assert p2pd is not None
    assert p2pd.pid == before["processes"]["p2pd"]
    killed_ms = now_ms()
    p2pd.send_signal(signal.SIGKILL)
    wait_until_gone([p2pd])
    wait_until("another p2pd runs", swarm.cyd.p2pd, [swarm.cyd])
    wait_until("all peers are back", lambda: swarm.cyd.status()["peers_connected"] == 3, swarm.nodes)
    after = swarm.cyd.status()
    assert after["processes"]["daemon"] == before["processes"]["daemon"]
    assert (after["peer_id"], after["addresses"]) == (before["peer_id"], before["addresses"])
    wait_for_contributions([swarm.cyd], since_ms=killed_ms)
    wait_for_new_final_rounds(swarm.nodes)


def test_a_stopped_node_leaves_nothing_behind(swarm: Swarm) -> None:
    family = swarm.dan.family()
    run = swarm.dan.home.read_run()
    assert run is not None
    sockets = [path for path in swarm.live.sockets.iterdir() if str(family[0].pid) in path.name]
    assert sockets  # Those of p2pd carry the daemon's process id.
    swarm.dan.stop()
    wait_until_gone(family)
    assert not swarm.dan.home.run_file.exists()
    assert not any(path.exists() for path in (Path(run.socket).parent, *sockets))
    status = swarm.dan.fullrank("status", code=69)
    assert "not running" in status.stdout
    swarm.dan.start()
    wait_for_new_final_rounds(swarm.nodes)


# ---- wrong bytes -------------------------------------------------------------------------------------


def test_deltas_damaged_on_a_disk_are_fetched_elsewhere(swarm: Swarm) -> None:
    damaged_ms = now_ms()
    damaged = [path for path in swarm.dan.home.blobs_dir.iterdir() if len(path.name) == 64]
    assert damaged
    for path in damaged:
        flip_a_byte(path)
    reader, model = swarm.live.node("reader"), swarm.live.directory / "model"
    report = reader.json("pull", str(link_by(swarm, swarm.dan, swarm.bob).without_invite()), "--out", str(model))
    assert report["digest"] == swarm.ada.final_rounds()[report["round"]]["checkpoint"]["digest"]
    assert reader.json("verify", str(model))["ok"]
    wait_for_contributions([swarm.dan], since_ms=damaged_ms)
    wait_for_new_final_rounds(swarm.nodes)


def test_deltas_of_a_member_that_serves_garbage_are_left_out(swarm: Swarm) -> None:
    eve = swarm.live.join(swarm.link, "eve", "--no-certify", "--no-start")
    eve.start_as_liar()
    wait_until("Eve offers deltas", lambda: len(eve.history()["contributions"]) >= 2, [eve, *swarm.nodes])
    offered_ms = now_ms()
    wait_for_new_final_rounds(swarm.nodes)
    wait_for_contributions(swarm.nodes, since_ms=offered_ms)
    for node in swarm.nodes:
        assert node.members()["eve"]["accepted"] == 0
        assert f"No more blobs from peer {eve.key[:8]}, which sent wrong bytes" in node.home.log_file.read_text()
    eve.end()


# ---- people come and go ------------------------------------------------------------------------------


def test_a_paused_node_goes_on_certifying(swarm: Swarm) -> None:
    swarm.cyd.fullrank("pause")
    paused_ms = now_ms()
    votes = len(votes_of(swarm.cyd))
    assert (swarm.cyd.status()["state"], swarm.cyd.status()["reason"]) == ("paused", "by its owner")
    wait_for_new_final_rounds(swarm.nodes)
    assert not swarm.cyd.accepted_since(paused_ms)
    assert len(votes_of(swarm.cyd)) > votes
    swarm.cyd.fullrank("resume")
    wait_for_contributions([swarm.cyd], since_ms=paused_ms)


def test_a_pause_for_a_time_ends_by_itself(swarm: Swarm) -> None:
    paused_ms = now_ms()
    swarm.cyd.fullrank("pause", "--for", "5s")
    wait_for_contributions([swarm.cyd], since_ms=paused_ms + 5000)


def test_a_node_that_finishes_ends_after_its_delta(swarm: Swarm) -> None:
    family = swarm.dan.family()
    swarm.dan.fullrank("finish")
    wait_until("Dan has finished", lambda: not any(process.is_running() for process in family), swarm.nodes)
    finished_ms = now_ms()
    assert not swarm.dan.home.run_file.exists()
    swarm.dan.start()
    wait_for_contributions([swarm.dan], since_ms=finished_ms)


def test_a_late_joiner_contributes_until_it_is_revoked_and_reads_why(swarm: Swarm) -> None:
    joined_ms = now_ms()
    fay = swarm.live.join(swarm.link, "fay", "--no-certify", steps=MANY_STEPS)
    wait_for_contributions([fay], since_ms=joined_ms)
    wait_until_it_trains(fay)
    trainer = fay.status()["processes"]["trainer"]
    with frozen(trainer):  # As slow as a machine can be: her delta comes after the checkpoint that revokes her.
        swarm.ada.fullrank("revoke", "fay", "--yes")
        wait_until("Fay knows it", lambda: not fay.status()["member"], [fay, *swarm.nodes])
    refused = wait_until("Fay's last delta is refused", lambda: verdicts(fay, "refused"), [fay, *swarm.nodes])
    assert refused[-1]["rule"] == "membership"
    assert "who was revoked" in refused[-1]["detail"]
    status = fay.json("status")
    assert status["state"] != "training"
    assert "this member was revoked" in status["reason"]
    assert swarm.bob.members()["fay"]["standing"] == "revoked"
    fay.stop()
    wait_for_new_final_rounds(swarm.nodes)


# ---- gone for good -----------------------------------------------------------------------------------


def test_the_swarm_goes_on_without_its_founder(swarm: Swarm) -> None:
    link = link_by(swarm, swarm.ada, swarm.bob)
    left = [swarm.bob, swarm.cyd, swarm.dan]
    wait_until_gone(swarm.ada.kill())
    departed_ms = now_ms()
    departed_in = max(swarm.bob.final_rounds())
    wait_for_new_final_rounds(left, 3)
    hal = swarm.live.join(link, "hal", "--no-certify")
    wait_for_contributions([hal, *left], since_ms=departed_ms)
    reader = swarm.live.node("another reader")
    report = reader.json("pull", str(link.without_invite()), "--out", str(swarm.live.directory / "later"))
    assert report["final"]
    assert report["round"] >= departed_in + 3
    assert report["digest"] == hal.final_rounds()[report["round"]]["checkpoint"]["digest"]
    hal.fullrank("leave", "--yes")  # Nobody has to allow that.
    wait_until("Hal has left", lambda: swarm.bob.members()["hal"]["standing"] == "left", [hal, *left])
    wait_until("Hal knows it", lambda: "has left" in hal.status()["reason"], [hal, *left])
    hal.stop()


def test_status_names_who_blocks_finality(bereft: Swarm) -> None:
    wait_until_gone(bereft.dan.kill())
    left = [bereft.bob, bereft.cyd]

    def named() -> bool:
        return all(set(node.status()["finality"]["waiting_for"]) == absent for node in left)

    absent = {"ada", "dan"}
    wait_until("both absent certifiers are named", named, left)
    final, number = bereft.bob.status()["final"]["slot"], bereft.bob.status()["round"]
    wait_until("rounds go on", lambda: bereft.bob.status()["round"] >= number + 2, left)
    status = bereft.bob.status()
    assert status["final"]["slot"] == final
    assert status["finality"]["votes"] < status["finality"]["needed"]
    bereft.dan.start()
    wait_until("all becomes final with Dan", lambda: bereft.bob.status()["final"]["round"] >= number + 2, left)


# ---- inside ------------------------------------------------------------------------------------------


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)


def verdicts(node: LiveNode, verdict: str) -> list[dict[str, Any]]:
    """Own contributions with this verdict, oldest first."""
    return [line for line in node.history()["contributions"] if line["verdict"] == verdict]


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process that makes no progress for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)

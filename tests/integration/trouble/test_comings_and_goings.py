"""People come and go, and one lies. These tests run while the history is short: whoever comes has to replay it."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_swarm import (
    MANY_STEPS,
    LiveNode,
    now_ms,
    wait_for_contributions,
    wait_for_new_final_rounds,
    wait_until,
    wait_until_gone,
    wait_until_it_trains,
)
from troubled_swarm import Swarm, blob_files, flip_a_bit, log_of, votes_of

pytestmark = pytest.mark.timeout(600)


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


# ---- wrong bytes --------------------------------------------------------------------------------------


def test_deltas_damaged_on_a_disk_are_fetched_elsewhere(swarm: Swarm) -> None:
    damaged_ms = now_ms()
    told = len(log_of(swarm.cyd))
    damaged = blob_files(swarm.cyd)
    assert damaged
    for path in damaged:
        flip_a_bit(path)
    reader, model = swarm.live.node("reader"), swarm.live.directory / "model"
    report = reader.json("pull", str(swarm.link_by(swarm.cyd, swarm.bob).without_invite()), "--out", str(model))
    assert report["digest"] == swarm.ada.final_rounds()[report["round"]]["checkpoint"]["digest"]
    assert reader.json("verify", str(model))["ok"]
    assert "A blob is damaged on this disk and is fetched again when it is needed" in log_of(swarm.cyd, after=told)
    wait_for_contributions([swarm.cyd], since_ms=damaged_ms)
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
        assert f"No more blobs from peer {eve.key[:8]}, which sent wrong bytes" in log_of(node)
    eve.end()


# ---- without the founder -----------------------------------------------------------------------------------


def test_the_swarm_goes_on_without_its_founder(swarm: Swarm) -> None:
    link = swarm.link_by(swarm.ada, swarm.bob)
    left = [swarm.bob, swarm.cyd, swarm.dan]
    wait_until_gone(swarm.ada.kill())
    departed_ms = now_ms()
    departed_in = max(swarm.bob.final_rounds())
    wait_for_new_final_rounds(left, 3)
    hal = swarm.live.join(link, "hal", "--no-certify")
    wait_for_contributions([hal, *left], since_ms=departed_ms)
    reader = swarm.live.node("pia")
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

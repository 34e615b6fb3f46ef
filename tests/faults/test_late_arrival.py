"""Who comes late arrives by a snapshot where that is fewer bytes, and who has a small disk serves one (section 12).

Ada keeps everything. Bob's disk is small. The rank is high, so that a few rounds have more bytes than the weights.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from live_swarm import (
    LiveNode,
    LiveSwarm,
    now_ms,
    wait_for_contributions,
    wait_for_new_final_rounds,
    wait_until,
    wait_until_gone,
)

from fullrank_node.identity_file import load_identity
from fullrank_node.store import Store
from fullrank_protocol.checkpoint import open_checkpoint
from fullrank_protocol.envelope import open_envelope
from fullrank_protocol.genesis import Genesis, open_genesis
from fullrank_protocol.link import Link
from fullrank_protocol.snapshot import Snapshot, make_snapshot, open_snapshot
from fullrank_protocol.wire import objects_pb2 as wire

pytestmark = pytest.mark.timeout(900)

LARGE_DELTAS = ("--window", "3", "--max-steps", "2", "--rank", "64", "--mode", "ab", "--bits", "8")

NUM_ROUNDS = 12

SMALL_DISK_GB = "0.006"
"""Room for a snapshot (2.9 MB) and some deltas (0.5 MB each), and not for twelve rounds of them."""


@dataclass(frozen=True)
class Past:
    """A swarm of two that has a past."""

    live: LiveSwarm
    ada: LiveNode
    bob: LiveNode
    link: Link
    genesis: Genesis


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    with LiveSwarm(tmp_path_factory.mktemp("late")) as live:
        ada = live.found("ada", options=LARGE_DELTAS)
        link = live.invite(ada)
        bob = live.join(link, "bob", "--no-start")
        bob.fullrank("config", "set", "limits.disk_gb", SMALL_DISK_GB)
        bob.start()
        wait_for_contributions([bob], since_ms=0)
        genesis = open_genesis(ada.home.genesis_file.read_bytes())
        wait_until("many rounds", lambda: max(ada.final_rounds(), default=0) >= NUM_ROUNDS, [ada, bob])
        yield Past(live=live, ada=ada, bob=bob, link=link, genesis=genesis)


def log_of(node: LiveNode) -> str:
    return node.home.log_file.read_text() if node.home.log_file.exists() else ""


def snapshots_of(node: LiveNode, genesis: Genesis) -> list[Snapshot]:
    """Every snapshot that a node has heard of, in the order in which it did."""
    with Store(node.home, readonly=True) as store:
        hints = [open_envelope(data, swarm=genesis.swarm) for data in store.objects(type=wire.SNAPSHOT)]
    return [open_snapshot(hint, genesis) for hint in hints]


def deltas_of(node: LiveNode, genesis: Genesis) -> dict[bytes, int]:
    """Blobs of all deltas that the node's log accepts, with their bytes."""
    with Store(node.home, readonly=True) as store:
        envelopes = [open_envelope(data, swarm=genesis.swarm) for data in store.objects(type=wire.CHECKPOINT)]
    checkpoints = [open_checkpoint(envelope, genesis) for envelope in envelopes]
    blobs = [accepted.contribution.blob for checkpoint in checkpoints for accepted in checkpoint.accepted]
    return {blob.id: blob.num_bytes for blob in blobs}


def here(node: LiveNode, blobs: dict[bytes, int]) -> set[bytes]:
    with Store(node.home, readonly=True) as store:
        return {blob for blob in blobs if store.blobs.has(blob)}


def test_the_archive_makes_a_snapshot_and_keeps_every_delta(past: Past) -> None:
    own = wait_until("ada makes one", lambda: snapshots_of(past.ada, past.genesis), [past.ada])
    assert own[0].author == load_identity(past.ada.home.identity_file).public_key
    deltas = deltas_of(past.ada, past.genesis)
    assert here(past.ada, deltas) == set(deltas)
    assert past.ada.status()["archive"]
    (ada,) = past.bob.peers().values()
    assert ada["archive"]


def test_a_small_disk_serves_a_snapshot_instead_of_old_deltas(past: Past) -> None:
    wait_until("bob removes old deltas", lambda: "Removed" in log_of(past.bob), [past.bob])
    deltas = deltas_of(past.bob, past.genesis)
    assert here(past.bob, deltas) < set(deltas)
    bob = load_identity(past.bob.home.identity_file).public_key
    with Store(past.bob.home, readonly=True) as store:
        own = [each for each in snapshots_of(past.bob, past.genesis) if each.author == bob]
        assert store.blobs.has(own[-1].blob.id)
    status = past.bob.status()
    assert not status["archive"]
    assert status["disk_limit_bytes"] == 6_000_000


def test_verify_starts_where_the_deltas_are_and_says_so(past: Past) -> None:
    from_base = past.ada.json("verify")
    assert (from_base["ok"], from_base["notes"]) == (True, [])
    from_snapshot = past.bob.json("verify")
    assert from_snapshot["ok"], from_snapshot
    assert "replayed from a certified snapshot" in from_snapshot["notes"][0]
    assert from_snapshot["checkpoints"] < from_base["checkpoints"]


def test_verify_by_a_link_replays_from_the_base_where_an_archive_answers_and_says_so_where_none_does(
    past: Past,
) -> None:
    with_archive = past.live.node("verifier").json("verify", str(link_of(past.ada, past.bob, past.link)))
    assert (with_archive["ok"], with_archive["final"], with_archive["notes"]) == (True, True, [])
    assert with_archive["round"] >= NUM_ROUNDS
    link = link_of(past.bob, past.bob, past.link)
    past.ada.stop()
    without = past.live.node("lonely verifier").json("verify", str(link))
    past.ada.start()
    assert without["ok"], without
    assert "replayed from a certified snapshot" in without["notes"][0]
    assert without["checkpoints"] < with_archive["checkpoints"]


def test_a_newcomer_arrives_by_fewer_bytes_and_contributes(past: Past) -> None:
    since = now_ms()
    eve = past.live.join(past.link, "eve", "--no-certify")  # So that rounds become final without her, too.
    wait_for_contributions([eve], since_ms=since)
    arrived = re.search(
        r"Arriving by the snapshot of round (\d+), .*: (\d+) bytes instead of (\d+) deltas \((\d+)", log_of(eve)
    )
    assert arrived, eve.story()
    taken, spared = int(arrived[2]), int(arrived[4])
    assert taken < spared
    deltas = deltas_of(eve, past.genesis)
    assert len(set(deltas) - here(eve, deltas)) > int(arrived[3]) // 2
    assert "holds: its weights have the digest" in log_of(eve)
    eve.stop()


def test_a_reader_takes_the_fewer_bytes_and_is_told(past: Past, tmp_path: Path) -> None:
    reader = past.live.node("reader")
    report = reader.json("pull", str(past.link), "-o", str(tmp_path / "model"))
    assert report["final"]
    assert "taken by a snapshot" in report["notes"][0]


def test_a_lie_is_refused_and_a_killed_newcomer_goes_on(past: Past) -> None:
    link = link_of(past.bob, past.ada, past.link)
    stop_where_it_can_lie(past.bob, past.genesis)
    past.ada.stop()  # Without her nothing becomes final, and nobody makes a newer snapshot than the lie.
    put_a_lie(past.bob, past.genesis)
    past.bob.start()
    fay = past.live.join(link, "fay", "--no-certify", "--no-start")
    fay.start()
    wait_until("fay is on its way", lambda: "Arriving by the snapshot" in log_of(fay), [fay])
    wait_until_gone(fay.kill())
    since = now_ms()
    fay.start()
    refusal = r"snapshot of \w+ refused by rule (CODEC|DIGEST)"
    wait_until("fay sees through it", lambda: re.search(refusal, log_of(fay)), [fay, past.bob])
    past.ada.start()
    wait_for_contributions([fay], since_ms=since)
    assert "holds: its weights have the digest" in log_of(fay)


def link_of(first: LiveNode, second: LiveNode, link: Link) -> Link:
    addresses = [address for node in (first, second) for address in node.status()["addresses"]]
    return replace(link, peers=tuple(dict.fromkeys(addresses)))


def can_lie(node: LiveNode, genesis: Genesis) -> bool:
    """Whether the newest final checkpoint is above all snapshots that the node has made: only its highest counts."""
    own = load_identity(node.home.identity_file).public_key
    with Store(node.home, readonly=True) as store:
        final = store.get_object(store.final() or b"")
    if final is None:
        return False
    slot = open_checkpoint(open_envelope(final, swarm=genesis.swarm), genesis).slot
    return all(slot > each.slot for each in snapshots_of(node, genesis) if each.author == own)


def stop_where_it_can_lie(node: LiveNode, genesis: Genesis) -> None:
    wait_until("it can lie", lambda: can_lie(node, genesis), [node])
    node.stop()
    while not can_lie(node, genesis):  # It told the truth while it ended.
        node.start()
        wait_for_new_final_rounds([node])
        node.stop()


def put_a_lie(node: LiveNode, genesis: Genesis) -> None:
    """A snapshot of the node's newest final checkpoint that is none, as if it had made one."""
    key = load_identity(node.home.identity_file)
    with Store(node.home) as store:
        final = store.get_object(store.final() or b"")
        assert final is not None
        checkpoint = open_checkpoint(open_envelope(final, swarm=genesis.swarm), genesis)
        blob = store.blobs.put_bytes(b"these are no weights" * 100)
        hint = make_snapshot(key, swarm=genesis.swarm, checkpoint=checkpoint.id, slot=checkpoint.slot, blob=blob)
        store.put_object(hint, slot=checkpoint.slot, received_at_ms=now_ms())

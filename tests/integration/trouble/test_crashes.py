"""What machines do to real nodes: they die at the worst moments, freeze, and lose processes.

Whatever happens to one of four certifiers, nothing that was certified is lost, nobody gets evidence against itself, and
it goes on by itself, with a sentence in its log.
"""

import contextlib
import itertools
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psutil
import pytest
from crashing_daemon import DAEMON_POINTS, SAYS_NAME, WORKER_POINTS
from live_swarm import (
    LiveNode,
    now_ms,
    wait_for_contributions,
    wait_for_new_final_rounds,
    wait_until,
    wait_until_gone,
)
from troubled_swarm import (
    Swarm,
    assert_nobody_is_accused,
    assert_one_history,
    log_lengths,
    log_of,
    objects_of,
    votes_of,
    wait_for_rounds,
)

from fullrank_node.model.master import MasterStore
from fullrank_node.store import Store
from fullrank_protocol.envelope import open_envelope
from fullrank_protocol.vote import open_vote

pytestmark = pytest.mark.timeout(900)

POINTS = (*DAEMON_POINTS, *WORKER_POINTS)

LANES = {"ada": POINTS[0::3], "bob": POINTS[1::3], "cyd": POINTS[2::3]}
"""Who is killed where; three nodes at a time, the founder among them, while Dan looks on."""

FROZEN_ROUNDS = 4
"""Of the others, while a node is frozen: more seconds than any node stands still by itself."""


@dataclass(frozen=True)
class Crash:
    """How a daemon ended, and what it had made durable by then."""

    node: str
    code: int
    said: str
    objects: set[bytes]
    votes: list[bytes]
    leftovers: set[str]
    final: dict[int, str]
    told_from: int


# ---- killed at every point ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crashes(shared: Swarm) -> dict[str, Crash]:
    """Every node of a lane is killed at one point after the other, and in the end started as it should be."""
    shared.make_whole(*shared.nodes)
    told = log_lengths(shared.nodes)

    def crash(node: LiveNode, point: str) -> Crash:
        final = shared.dan.final_checkpoints()
        killed_at = node.home.path / SAYS_NAME
        killed_at.write_text("")
        process = node.start_to_crash(point)
        wait_until(f"{node.name} is killed {point}", lambda: has_ended(node, process), [node, shared.dan])
        wait_until_gone(node.remembered())
        said = (node.home.logs_dir / "daemon.out").read_text() + killed_at.read_text()
        return Crash(
            node=node.name,
            code=process.wait(),
            said=said,
            objects=objects_of(node),
            votes=votes_of(node),
            leftovers={path.name for path in node.home.masters_dir.glob("*.tmp")},
            final=final,
            told_from=told[node.name],
        )

    def lane(name: str) -> dict[str, Crash]:
        node = shared.live.nodes[name]
        wait_until_gone(node.kill())
        found = {point: crash(node, point) for point in LANES[name]}
        node.start()
        return found

    with ThreadPoolExecutor() as pool:
        found = {point: crash for lane in pool.map(lane, LANES) for point, crash in lane.items()}
    wait_for_new_final_rounds(shared.nodes)
    return found


def has_ended(node: LiveNode, process: subprocess.Popen[bytes]) -> bool:
    """Whether a daemon has ended; as long as it runs, its children are remembered."""
    node.note_processes()
    return process.poll() is not None


@pytest.mark.parametrize("point", POINTS)
def test_a_node_killed_loses_nothing_and_goes_on(swarm: Swarm, crashes: dict[str, Crash], point: str) -> None:
    crash = crashes[point]
    node = swarm.live.nodes[crash.node]
    assert crash.said == point
    assert crash.code == -signal.SIGKILL
    assert crash.objects <= objects_of(node)
    assert crash.votes == votes_of(node)[: len(crash.votes)]
    assert crash.final.items() <= node.final_checkpoints().items()
    # Every start after a kill tells; the first kill had no point.
    sentence = "The daemon before this one did not end in order"
    assert log_of(node, after=crash.told_from).count(sentence) == 1 + len(LANES[crash.node])


def test_nobody_is_accused_after_crashes_and_all_go_on(swarm: Swarm, crashes: dict[str, Crash]) -> None:
    restarted_ms = now_ms()
    wait_for_contributions(swarm.nodes, since_ms=restarted_ms)
    wait_for_new_final_rounds(swarm.nodes)
    assert_nobody_is_accused(swarm.nodes)
    assert_one_history(swarm.nodes)


def test_a_vote_of_which_only_the_record_was_left_is_sent_after_all(swarm: Swarm, crashes: dict[str, Crash]) -> None:
    crash = crashes["between vote record and vote"]
    recorded = open_envelope(crash.votes[-1], swarm=None)
    assert recorded.id not in crash.objects
    assert recorded.id in objects_of(swarm.live.nodes[crash.node])
    # The others ask for what matters: not for votes well below what is final.
    is_old = open_vote(recorded).target_slot < swarm.dan.final_slot()
    wait_until("Dan has it", lambda: is_old or recorded.id in objects_of(swarm.dan), swarm.nodes)


def test_half_written_weights_are_left_out_and_removed(swarm: Swarm, crashes: dict[str, Crash]) -> None:
    crash = crashes["writing the master weights"]
    node = swarm.live.nodes[crash.node]
    assert crash.leftovers
    assert not any((node.home.masters_dir / name).exists() for name in crash.leftovers)

    def all_whole() -> bool:
        masters = MasterStore(node.home.masters_dir)
        with Store(node.home, readonly=True) as store:
            manifest = store.manifest(store.head() or b"") or {"": ""}
        return all(masters.verify(sha256) for sha256 in manifest.values())

    wait_until("all weights of the head are whole", all_whole, [node])  # Not at once where the head is just moving.


# ---- frozen, and without a network process -----------------------------------------------------------


def test_a_frozen_node_misses_rounds_and_catches_up(swarm: Swarm) -> None:
    """As many as may be away: with one of four certifiers frozen, rounds go on becoming final."""
    with frozen_and_catching_up(swarm, swarm.bob):
        wait_for_new_final_rounds([swarm.ada, swarm.cyd, swarm.dan], FROZEN_ROUNDS)


def test_more_than_a_third_frozen_hold_up_finality_and_nothing_else(swarm: Swarm) -> None:
    awake = [swarm.ada, swarm.dan]
    with frozen_and_catching_up(swarm, swarm.bob, swarm.cyd):
        wait_for_rounds(awake, 2)  # What was voted for before they froze may still become final.
        final = {node.final_slot() for node in awake}
        wait_for_rounds(awake, 2)
        assert {node.final_slot() for node in awake} == final


@contextlib.contextmanager
def frozen_and_catching_up(swarm: Swarm, *nodes: LiveNode) -> Iterator[None]:
    """All processes of these nodes stand still; afterwards the same ones catch up, and everybody goes on."""
    before = log_lengths(nodes)
    families = {node: node.family() for node in nodes}
    for process in itertools.chain(*families.values()):
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for family in families.values():
            for process in reversed(family):
                process.send_signal(signal.SIGCONT)
    awake_ms = now_ms()
    wait_for_contributions(nodes, since_ms=awake_ms)
    wait_for_new_final_rounds(swarm.nodes)
    for node, family in families.items():
        assert node.daemon() == family[0]
        assert re.search(r"This node stood still for \d+ s .*: it catches up", log_of(node, after=before[node.name]))
    assert_nobody_is_accused(swarm.nodes)
    assert_one_history(swarm.nodes)


def test_a_node_outlives_its_p2pd(swarm: Swarm) -> None:
    before = swarm.cyd.status()
    p2pd = swarm.cyd.p2pd()
    assert p2pd is not None
    assert p2pd.pid == before["processes"]["p2pd"]
    told = len(log_of(swarm.cyd))
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
    assert "The network process (p2pd) is gone; starting another" in log_of(swarm.cyd, after=told)
    assert "The network process runs again" in log_of(swarm.cyd, after=told)


def test_a_node_outlives_its_trainer_and_its_worker(swarm: Swarm) -> None:
    """Each is frozen until the daemon waits for it, and then killed."""
    before = len(log_of(swarm.bob))
    sentences = {"trainer": "Training failed|The shared model could not be measured", "worker": "the worker failed at"}
    for name, words in sentences.items():
        victim = psutil.Process(swarm.bob.status()["processes"][name])
        victim.send_signal(signal.SIGSTOP)
        wait_for_new_final_rounds([swarm.ada, swarm.cyd, swarm.dan])
        victim.send_signal(signal.SIGKILL)
        wait_until(
            f"the death of the {name} is told",
            lambda words=words: re.search(f"({words}).* was killed by signal 9", log_of(swarm.bob, after=before)),
            [swarm.bob],
        )
    killed_ms = now_ms()
    wait_for_contributions([swarm.bob], since_ms=killed_ms)
    wait_for_new_final_rounds(swarm.nodes)
    assert_nobody_is_accused(swarm.nodes)
    assert_one_history(swarm.nodes)

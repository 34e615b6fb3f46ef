"""What machines do to real nodes: they die at the worst moments, freeze, lose processes, spoil and fill disks.

Four certifiers share one swarm. Whatever happens to one of them, nothing that was certified is lost, nobody gets
evidence against itself, and it goes on, by itself or by what it tells its owner.
"""

import contextlib
import itertools
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from crashing_daemon import DAEMON_POINTS, SAYS_NAME, WORKER_POINTS
from live_swarm import (
    LiveNode,
    LiveSwarm,
    now_ms,
    wait_for_certifiers,
    wait_for_contributions,
    wait_for_new_final_rounds,
    wait_until,
    wait_until_gone,
)
from namespaces import missing

from fullrank_node.model.master import MasterStore
from fullrank_node.store import Store
from fullrank_protocol.envelope import open_envelope
from fullrank_protocol.vote import is_offence, open_vote
from fullrank_protocol.wire import objects_pb2 as wire

pytestmark = pytest.mark.timeout(900)

POINTS = (*DAEMON_POINTS, *WORKER_POINTS)

LANES = {"ada": POINTS[0::3], "bob": POINTS[1::3], "cyd": POINTS[2::3]}
"""Who is killed where; three nodes at a time, the founder among them, while Dan looks on."""

P2PD_MINUTE_S = 60.0

FROZEN_ROUNDS = 4
"""Of the others, while a node is frozen: more seconds than any node stands still by itself."""

LEFT_BYTES = 32 << 10
"""What is left free on a full disk: room for some lines of the log, and for no weights."""

DISK_BYTES = 192 << 20
"""Of the file system that Dan's home lies on, where the tests may mount one: three times what a home takes."""


@dataclass(frozen=True)
class Swarm:
    live: LiveSwarm
    ada: LiveNode
    bob: LiveNode
    cyd: LiveNode
    dan: LiveNode

    @property
    def nodes(self) -> list[LiveNode]:
        return [self.ada, self.bob, self.cyd, self.dan]


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


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    directory = tmp_path_factory.mktemp("swarm")
    with contextlib.ExitStack() as stack:
        if not missing():
            stack.enter_context(small_disk(directory / "dan"))
        live = stack.enter_context(LiveSwarm(directory))
        ada = live.found("ada")
        bob, cyd, dan = live.join_together(live.invite(ada), {"bob": [], "cyd": [], "dan": []})
        wait_for_certifiers([ada, bob, cyd, dan], 4)
        yield Swarm(live=live, ada=ada, bob=bob, cyd=cyd, dan=dan)


@pytest.fixture(autouse=True)
def nothing_final_is_lost(swarm: Swarm) -> Iterator[None]:
    """Whatever a test does: every checkpoint that was final anywhere before it is final everywhere after it."""
    before = {slot: final for node in swarm.nodes for slot, final in node.final_checkpoints().items()}
    assert before
    yield
    for node in swarm.nodes:
        assert before.items() <= node.final_checkpoints().items()


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def objects_of(node: LiveNode) -> set[bytes]:
    """Everything that a node has durably taken in."""
    with Store(node.home, readonly=True) as store:
        return {object_id for object_id, _, _ in store.object_ids()}


def votes_of(node: LiveNode) -> list[bytes]:
    """The node's own votes as it recorded them."""
    with Store(node.home, readonly=True) as store:
        return store.own_votes()


def stored(node: LiveNode, kind: int) -> list[bytes]:
    """Everything of one kind that a node has."""
    with Store(node.home, readonly=True) as store:
        return list(store.objects(kind))


def log_of(node: LiveNode, *, after: int = 0) -> str:
    """What a node has logged after so many characters."""
    return node.home.log_file.read_text(errors="replace")[after:]


def assert_nobody_is_accused(nodes: Sequence[LiveNode]) -> None:
    """No evidence exists, and none could: no two votes of anybody break the voting rules."""
    for node in nodes:
        assert not stored(node, wire.EVIDENCE)
        votes = [open_vote(open_envelope(data, swarm=None)) for data in votes_of(node)]
        for one, other in itertools.combinations(votes, 2):
            assert not is_offence(one, other)


def assert_one_history(nodes: Sequence[LiveNode]) -> None:
    """Whatever is final in a slot is the same everywhere."""
    seen = [node.final_checkpoints() for node in nodes]
    common = set.intersection(*map(set, seen))
    assert common
    for slot in common:
        assert len({ids[slot] for ids in seen}) == 1


# ---- killed at every point ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crashes(swarm: Swarm) -> dict[str, Crash]:
    """Every node of a lane is killed at one point after the other, and in the end started as it should be."""

    def crash(node: LiveNode, point: str) -> Crash:
        final = swarm.dan.final_checkpoints()
        killed_at = node.home.path / SAYS_NAME
        killed_at.write_text("")
        process = node.start_to_crash(point)
        wait_until(f"{node.name} is killed {point}", lambda: has_ended(node, process), [node, swarm.dan])
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
        )

    def lane(name: str) -> dict[str, Crash]:
        node = swarm.live.nodes[name]
        wait_until_gone(node.kill())
        found = {point: crash(node, point) for point in LANES[name]}
        node.start()
        return found

    with ThreadPoolExecutor() as pool:
        found = {point: crash for lane in pool.map(lane, LANES) for point, crash in lane.items()}
    wait_for_new_final_rounds(swarm.nodes)
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
    assert log_of(node).count("The daemon before this one did not end in order") == 1 + len(LANES[crash.node])


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
    others = [swarm.ada, swarm.cyd, swarm.dan]
    before = len(log_of(swarm.bob))
    family = swarm.bob.family()
    for process in family:
        process.send_signal(signal.SIGSTOP)
    try:
        wait_for_new_final_rounds(others, FROZEN_ROUNDS)
    finally:
        for process in reversed(family):
            process.send_signal(signal.SIGCONT)
    awake_ms = now_ms()
    wait_for_contributions([swarm.bob], since_ms=awake_ms)
    wait_for_new_final_rounds(swarm.nodes)
    assert swarm.bob.daemon() == family[0]
    assert re.search(r"This node stood still for \d+ s .*: it catches up", log_of(swarm.bob, after=before))
    assert_nobody_is_accused(swarm.nodes)
    assert_one_history(swarm.nodes)


def test_a_node_whose_p2pd_is_killed_every_few_seconds_for_a_minute_outlives_them_all(swarm: Swarm) -> None:
    others = [swarm.ada, swarm.bob, swarm.dan]
    daemon = swarm.cyd.daemon()
    before = max(swarm.dan.final_checkpoints())
    killed: set[psutil.Process] = set()
    ends = time.monotonic() + P2PD_MINUTE_S
    while time.monotonic() < ends:
        p2pd = wait_until("another p2pd runs", swarm.cyd.p2pd, [swarm.cyd])
        wait_until("it has found somebody", lambda: swarm.cyd.status()["peers_connected"], [swarm.cyd])
        with contextlib.suppress(psutil.NoSuchProcess):
            p2pd.send_signal(signal.SIGKILL)
            wait_until_gone([p2pd])
            killed.add(p2pd)
    killed_ms = now_ms()
    assert len(killed) >= 5
    assert max(swarm.dan.final_checkpoints()) > before  # The others went on meanwhile.
    wait_until("all peers are back", lambda: swarm.cyd.status()["peers_connected"] == 3, swarm.nodes)
    wait_for_contributions([swarm.cyd], since_ms=killed_ms)
    wait_for_new_final_rounds([swarm.cyd, *others])
    assert swarm.cyd.daemon() == daemon
    assert log_of(swarm.cyd).count("The network process runs again") >= len(killed)
    assert_nobody_is_accused(swarm.nodes)


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


# ---- damaged disks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["a flipped bit", "a cut file"])
def test_damaged_weights_are_found_by_their_hash_and_made_again(swarm: Swarm, damage: str) -> None:
    before = len(log_of(swarm.bob))
    spoilt: set[str] = set()

    def found() -> bool:
        """Whether the damage is noticed; else the files of the head, which may have moved on, are damaged."""
        if "are damaged on this disk: they are made again from the log" in log_of(swarm.bob, after=before):
            return True
        with Store(swarm.bob.home, readonly=True) as store:
            manifest = store.manifest(store.head() or b"") or {}
        for sha256 in set(manifest.values()) - spoilt:
            with contextlib.suppress(FileNotFoundError):  # Collected meanwhile.
                spoil(swarm.bob.home.masters_dir / f"{sha256}.f32", damage)
            spoilt.add(sha256)
        return False

    wait_until("the damage is found", found, swarm.nodes)
    damaged_ms = now_ms()
    wait_for_contributions([swarm.bob], since_ms=damaged_ms)
    wait_for_new_final_rounds(swarm.nodes)
    assert_one_history(swarm.nodes)
    assert not [each for node in swarm.nodes for each in stored(node, wire.REFUSAL)]


def test_cut_deltas_are_fetched_again_for_a_replay_from_the_base(swarm: Swarm) -> None:
    """Also the masters of the base are gone: they are imported once more, and the log is replayed onto them."""
    swarm.bob.stop()
    for path in swarm.bob.home.blobs_dir.iterdir():
        if len(path.name) == 64:
            spoil(path, "a cut file")
    for path in swarm.bob.home.masters_dir.glob("*.f32"):
        spoil(path, "a cut file")
    before = len(log_of(swarm.bob))
    started_ms = now_ms()
    swarm.bob.start()
    wait_for_contributions([swarm.bob], since_ms=started_ms)
    wait_for_new_final_rounds(swarm.nodes)
    assert "Making the weights of the base again." in log_of(swarm.bob, after=before)
    assert "A blob is damaged on this disk and is fetched again when it is needed" in log_of(swarm.bob, after=before)
    assert_one_history(swarm.nodes)
    assert_nobody_is_accused(swarm.nodes)


def test_a_damaged_log_is_told_and_fetched_from_peers_after_its_owner_moved_it_away(swarm: Swarm) -> None:
    swarm.cyd.stop()
    votes = votes_of(swarm.cyd)
    database = swarm.cyd.home.state_file
    data = bytearray(database.read_bytes())
    page = int.from_bytes(data[16:18], "big")
    for number in range(2, len(data) // page, 3):
        data[number * page : (number + 1) * page] = random.Random(number).randbytes(page)
    database.write_bytes(data)
    refused = swarm.cyd.fullrank("start", code=74)
    assert squeezed(f"the database {database} is damaged") in squeezed(refused.stderr)
    assert squeezed(f"Move {database}") in squeezed(refused.stderr)
    for path in database.parent.glob(f"{database.name}*"):
        path.rename(path.with_name(f"damaged-{path.name}"))
    started_ms = now_ms()
    swarm.cyd.start()
    wait_for_contributions([swarm.cyd], since_ms=started_ms)
    wait_for_new_final_rounds(swarm.nodes)
    wait_until("Cyd votes again", lambda: votes_of(swarm.cyd), swarm.nodes)
    assert "the log of this node was lost: it votes when a peer has told it what it had" in log_of(swarm.cyd)
    old = {open_envelope(vote, swarm=None).id for vote in votes}
    assert len(old & objects_of(swarm.cyd)) > 0
    everything = [open_vote(open_envelope(data, swarm=None)) for data in (*votes, *votes_of(swarm.cyd))]
    assert not any(is_offence(one, other) for one, other in itertools.combinations(everything, 2))
    assert_nobody_is_accused(swarm.nodes)
    assert_one_history(swarm.nodes)


@pytest.mark.privileged
def test_a_full_disk_is_told_and_nothing_whole_is_lost(swarm: Swarm) -> None:
    objects, votes = objects_of(swarm.dan), votes_of(swarm.dan)
    filler = swarm.dan.home.path / "filler"
    fill(filler, leave=LEFT_BYTES)

    def told() -> bool:
        status = swarm.dan.status()
        return not status["running"] or "no space left on the disk" in str(status["warnings"])

    wait_until("Dan says that his disk is full, or ends", told, swarm.nodes)
    if not swarm.dan.status()["running"]:
        wait_until("it has ended", lambda: not swarm.dan.home.is_locked(), [swarm.dan])
        fill(filler, leave=0)
        refused = swarm.dan.fullrank("start", code=74)
        assert squeezed("no space left on the disk that holds") in squeezed(refused.stderr)
    wait_for_new_final_rounds([swarm.ada, swarm.bob, swarm.cyd])
    filler.unlink()
    freed_ms = now_ms()
    if not swarm.dan.status()["running"]:
        swarm.dan.start()
    wait_for_contributions([swarm.dan], since_ms=freed_ms)
    wait_for_new_final_rounds(swarm.nodes)
    assert objects <= objects_of(swarm.dan)
    assert votes == votes_of(swarm.dan)[: len(votes)]
    assert_nobody_is_accused(swarm.nodes)
    assert_one_history(swarm.nodes)


def fill(path: Path, *, leave: int) -> None:
    """Write zeros until so many bytes are left on the file system."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while shutil.disk_usage(path.parent).free > leave:
            file.write(bytes(4096))


def squeezed(text: str) -> str:
    """A text without blanks and line breaks: a terminal wraps where it likes."""
    return "".join(text.split())


def spoil(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    if damage == "a cut file":
        path.write_bytes(data[: len(data) // 2])
        return
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)

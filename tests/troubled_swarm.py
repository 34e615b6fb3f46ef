"""Four real certifiers to whom everything happens, and what has to hold whatever happened.

Where this machine can (`namespaces.missing`), every node lives on a host of its own, on a network that can be cut, and
Dan lives behind a router that nobody outside can dial, with a home on a small disk that can be filled. Elsewhere all
live on loopback.
"""

import contextlib
import itertools
import random
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from live_swarm import LiveNode, LiveSwarm, wait_for_certifiers, wait_until
from namespaces import Lan, missing

from fullrank_node.store import Store
from fullrank_protocol.envelope import open_envelope
from fullrank_protocol.link import Link
from fullrank_protocol.vote import is_offence, open_vote
from fullrank_protocol.wire import objects_pb2 as wire

DISK_BYTES = 192 << 20
"""Of the file system that Dan's home lies on: three times what a home takes."""

HEALED_S = 240.0
"""To one history after a cut: connections that fell silent are given up and dialled anew within a minute or two."""


@dataclass(frozen=True)
class Swarm:
    """The four, and the link by which others join them."""

    live: LiveSwarm
    ada: LiveNode
    bob: LiveNode
    cyd: LiveNode
    dan: LiveNode
    link: Link

    @property
    def nodes(self) -> list[LiveNode]:
        """All four."""
        return [self.ada, self.bob, self.cyd, self.dan]

    @property
    def lan(self) -> Lan:
        """The network that can be cut."""
        assert self.live.lan is not None, "only privileged tests cut networks"
        return self.live.lan

    def link_by(self, *nodes: LiveNode) -> Link:
        """The link with the addresses of these nodes alone, in this order."""
        addresses = [address for node in nodes for address in node.status()["addresses"]]
        return replace(self.link, peers=tuple(addresses), final=None)

    def make_whole(self, *nodes: LiveNode) -> None:
        """Have these nodes run and hear each other, whatever an earlier test broke off."""
        if self.live.lan is not None:
            self.live.lan.heal()
        for node in nodes:
            if not node.status()["running"]:
                node.start()


@contextlib.contextmanager
def four_certifiers(directory: Path) -> Iterator[Swarm]:
    """The swarm, at work."""
    with contextlib.ExitStack() as stack:
        lan = None
        if not missing():
            lan = stack.enter_context(Lan())
            for name in ("ada", "bob", "cyd"):
                lan.host(name)
            lan.router("dan")
            stack.enter_context(_small_disk(directory / "dan"))
        live = stack.enter_context(LiveSwarm(directory, lan=lan))
        ada, bob, cyd, dan = live.found_together("ada", "bob", "cyd", "dan")
        wait_for_certifiers([ada, bob, cyd, dan], 4)
        yield Swarm(live=live, ada=ada, bob=bob, cyd=cyd, dan=dan, link=live.invite(ada))


@contextlib.contextmanager
def _small_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@contextlib.contextmanager
def nothing_final_is_lost(swarm: Swarm) -> Iterator[None]:
    """Whatever happens inside: what was final anywhere before is final after it on every node that runs then."""
    before: dict[int, str] = {}
    wait_until("all tell what is final", lambda: [before.update(node.final_checkpoints()) for node in _running(swarm)])
    assert before
    yield

    def kept() -> bool:
        return all(before.items() <= node.final_checkpoints().items() for node in _running(swarm))

    wait_until("what was final is final", kept, swarm.nodes)


def _running(swarm: Swarm) -> list[LiveNode]:
    return [node for node in swarm.nodes if node.status()["running"]]


# ---- fixtures --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with four_certifiers(tmp_path_factory.mktemp("swarm")) as swarm:
        yield swarm


@pytest.fixture
def swarm(shared: Swarm) -> Iterator[Swarm]:
    """The swarm with all four at work, whatever an earlier test broke off."""
    shared.make_whole(*shared.nodes)
    with nothing_final_is_lost(shared):
        yield shared


@pytest.fixture
def bereft(shared: Swarm) -> Iterator[Swarm]:
    """The swarm without its founder."""
    shared.make_whole(shared.bob, shared.cyd, shared.dan)
    shared.ada.end()
    with nothing_final_is_lost(shared):
        yield shared


# ---- what a node has ---------------------------------------------------------------------------------


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


def votes_heard(node: LiveNode) -> set[bytes]:
    """Ids of the votes that a node knows, loose ones and those that checkpoints carry."""
    carried = [
        vote
        for checkpoint in stored(node, wire.CHECKPOINT)
        for vote in wire.Checkpoint.FromString(open_envelope(checkpoint, swarm=None).payload).votes
    ]
    return {open_envelope(vote, swarm=None).id for vote in (*carried, *stored(node, wire.VOTE))}


def blob_files(node: LiveNode) -> list[Path]:
    """Its whole blobs."""
    return [path for path in node.home.blobs_dir.iterdir() if len(path.name) == 64]


def log_of(node: LiveNode, *, after: int = 0) -> str:
    """What a node has logged after so many characters."""
    return node.home.log_file.read_text(errors="replace")[after:]


def log_lengths(nodes: Sequence[LiveNode]) -> dict[str, int]:
    """How long the logs are now, by name."""
    return {node.name: len(log_of(node)) for node in nodes}


def wait_for_the_log(nodes: Sequence[LiveNode], words: str, *, after: dict[str, int]) -> None:
    """Return when each of these nodes has logged the words, since its log had the length given by name."""
    wait_until(f"all say {words}", lambda: all(words in log_of(node, after=after[node.name]) for node in nodes), nodes)


# ---- what must hold ----------------------------------------------------------------------------------


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


def rounds_of(node: LiveNode) -> int:
    """Rounds of its chain; 0 while it does not answer."""
    status = node.status()
    return int(status["round"]) if status["running"] else 0


def wait_for_rounds(nodes: Sequence[LiveNode], count: int) -> None:
    """Return when the chain of every node has so many rounds more than the longest has now."""
    goal = max(map(rounds_of, nodes)) + count
    wait_until(f"round {goal} is reached", lambda: all(rounds_of(node) >= goal for node in nodes), nodes)


def wait_for_one_history(nodes: Sequence[LiveNode]) -> None:
    """Return when two new rounds are final everywhere; whatever is final must be the same everywhere."""
    goal = max(map(rounds_of, nodes)) + 2

    def healed() -> bool:
        return all(max(node.final_rounds(), default=0) >= goal for node in nodes)

    wait_until(f"round {goal} is final everywhere", healed, nodes, deadline_s=HEALED_S)
    assert_one_history(nodes)


# ---- damage ------------------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def damage_pages(database: Path) -> None:
    """Fill every third page of an SQLite database but the first with noise."""
    data = bytearray(database.read_bytes())
    page = int.from_bytes(data[16:18], "big")
    for number in range(2, len(data) // page, 3):
        data[number * page : (number + 1) * page] = random.Random(number).randbytes(page)
    database.write_bytes(data)

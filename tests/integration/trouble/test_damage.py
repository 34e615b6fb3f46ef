"""What disks do to real nodes: they spoil files of each kind, and fill up.

Damage is found by its hash, told in a sentence, and mended by fetching or recomputing; nothing certified is lost.
"""

import contextlib
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from live_swarm import now_ms, wait_for_contributions, wait_for_new_final_rounds, wait_until
from troubled_swarm import (
    Swarm,
    assert_nobody_is_accused,
    assert_one_history,
    blob_files,
    cut,
    damage_pages,
    flip_a_bit,
    log_of,
    objects_of,
    stored,
    votes_heard,
    votes_of,
)

from fullrank_node.store import Store
from fullrank_protocol.envelope import open_envelope
from fullrank_protocol.vote import is_offence, open_vote
from fullrank_protocol.wire import objects_pb2 as wire

pytestmark = pytest.mark.timeout(900)

LEFT_BYTES = 32 << 10
"""What is left free on a full disk: room for some lines of the log, and for no weights."""


@pytest.mark.parametrize("damage", [flip_a_bit, cut])
def test_damaged_weights_are_found_by_their_hash_and_made_again(swarm: Swarm, damage: Callable[[Path], None]) -> None:
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
                damage(swarm.bob.home.masters_dir / f"{sha256}.f32")
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
    for path in (*blob_files(swarm.bob), *swarm.bob.home.masters_dir.glob("*.f32")):
        cut(path)
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
    damage_pages(database)
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
    assert old & votes_heard(swarm.cyd)
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

"""Four real certifiers on a network that is cut, heals and loses packets; one of them behind a router at home.

Every node lives in a network namespace of its own. Nobody tells a node that the network was cut: packets vanish.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from live_swarm import (
    LiveNode,
    LiveSwarm,
    now_ms,
    wait_for_certifiers,
    wait_for_contributions,
    wait_for_new_final_rounds,
    wait_until,
)
from namespaces import INSIDE, Lan

from fullrank_node.store import Store
from fullrank_protocol.wire import objects_pb2 as wire

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(900)]

HEALED_S = 240.0
"""To one history again: connections that fell silent are given up and dialled anew within a minute or two."""


@dataclass(frozen=True)
class Swarm:
    lan: Lan
    live: LiveSwarm
    ada: LiveNode
    bob: LiveNode
    cyd: LiveNode
    dan: LiveNode

    @property
    def nodes(self) -> list[LiveNode]:
        return [self.ada, self.bob, self.cyd, self.dan]


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with Lan() as lan:
        for name in ("ada", "bob", "cyd"):
            lan.host(name)
        lan.router("dan")
        with LiveSwarm(tmp_path_factory.mktemp("swarm"), lan=lan) as live:
            ada = live.found("ada")
            bob, cyd, dan = live.join_together(live.invite(ada), {"bob": [], "cyd": [], "dan": []})
            wait_for_certifiers([ada, bob, cyd, dan], 4)
            yield Swarm(lan=lan, live=live, ada=ada, bob=bob, cyd=cyd, dan=dan)


def rounds_of(node: LiveNode) -> int:
    status = node.status()
    return int(status["round"]) if status["running"] else 0


def wait_for_rounds(nodes: Sequence[LiveNode], count: int) -> None:
    """Return when the chain of every node has so many rounds more than the longest has now."""
    goal = max(map(rounds_of, nodes)) + count
    wait_until(f"round {goal} is reached", lambda: all(rounds_of(node) >= goal for node in nodes), nodes)


def wait_for_one_history(nodes: Sequence[LiveNode]) -> None:
    """Return when two new rounds are final everywhere; every final round must be the same everywhere."""
    goal = max(map(rounds_of, nodes)) + 2

    def healed() -> bool:
        return all(max(node.final_rounds(), default=0) >= goal for node in nodes)

    wait_until(f"round {goal} is final everywhere", healed, nodes, deadline_s=HEALED_S)
    seen = [node.final_rounds() for node in nodes]
    for number in set.intersection(*map(set, seen)):
        assert len({rounds[number]["checkpoint"]["id"] for rounds in seen}) == 1


@pytest.fixture(autouse=True)
def nothing_final_is_lost(swarm: Swarm) -> Iterator[None]:
    """Whatever a test does: every checkpoint that was final anywhere before it is final everywhere after it."""
    before = {slot: final for node in swarm.nodes for slot, final in node.final_checkpoints().items()}
    assert before
    yield
    for node in swarm.nodes:
        assert before.items() <= node.final_checkpoints().items()


def assert_nobody_is_accused(nodes: Sequence[LiveNode]) -> None:
    for node in nodes:
        with Store(node.home, readonly=True) as store:
            assert not list(store.objects(wire.EVIDENCE))


def log_of(node: LiveNode, *, after: int = 0) -> str:
    """What a node has logged after so many characters."""
    return node.home.log_file.read_text()[after:]


def wait_for_the_log(nodes: Sequence[LiveNode], words: str, *, after: dict[str, int]) -> None:
    """Return when each of these nodes has logged the words, since its log had the length given by name."""
    wait_until(f"all say {words}", lambda: all(words in log_of(node, after=after[node.name]) for node in nodes), nodes)


def trained_between(node: LiveNode, begin_ms: int, end_ms: int) -> list[dict[str, Any]]:
    """Own contributions signed in that time."""
    return [line for line in node.history()["contributions"] if begin_ms < line["created_at_ms"] < end_ms]


def test_a_node_behind_a_router_contributes_and_certifies(swarm: Swarm) -> None:
    joined_ms = now_ms()
    wait_for_contributions(swarm.nodes, since_ms=joined_ms)
    assert swarm.dan.status()["certifier"]
    assert all(INSIDE in address for address in swarm.dan.status()["addresses"])
    # The set is of four, and three votes make a round final: with Bob cut off, Dan's is one of the three.
    swarm.lan.part(["bob"])
    try:
        wait_for_new_final_rounds([swarm.ada, swarm.cyd, swarm.dan])
    finally:
        swarm.lan.heal()
    wait_for_one_history(swarm.nodes)


def test_two_halves_go_on_and_become_one_again(swarm: Swarm) -> None:
    halves = [swarm.ada, swarm.bob], [swarm.cyd, swarm.dan]
    told = {node.name: len(log_of(node)) for node in swarm.nodes}
    swarm.lan.part(["cyd", "dan"])
    try:
        cut_ms = now_ms()
        for half in halves:
            wait_for_rounds(half, 2)
        final = [node.final_slot() for node in swarm.nodes]
        for half in halves:
            wait_for_rounds(half, 2)
        assert [node.final_slot() for node in swarm.nodes] == final  # Neither half can make anything final.
        for half, absent in zip(halves, (["cyd", "dan"], ["ada", "bob"]), strict=True):
            wait_for_the_log(half, f"waiting for certifiers {', '.join(absent)}.", after=told)
            for node in half:
                assert sorted(node.status()["finality"]["waiting_for"]) == absent
        healed_ms = now_ms()
    finally:
        swarm.lan.heal()
    wait_for_one_history(swarm.nodes)
    assert_nobody_is_accused(swarm.nodes)
    wait_for_the_log(swarm.nodes, "Rounds become final again: slot ", after=told)

    # The lighter side's deltas are merged as stale ones, and those too old for that say so; none is held against them.
    def verdicts() -> set[str]:
        return {line["verdict"] for node in swarm.nodes for line in trained_between(node, cut_ms, healed_ms)}

    wait_until("all deltas from that time are judged", lambda: verdicts() <= {"accepted", "late"}, swarm.nodes)
    assert "accepted" in verdicts()


def test_three_make_rounds_final_without_the_fourth_which_comes_back(swarm: Swarm) -> None:
    three = [swarm.bob, swarm.cyd, swarm.dan]
    told = {node.name: len(log_of(node)) for node in swarm.nodes}
    swarm.lan.part(["ada"])
    try:
        wait_for_rounds([swarm.ada], 1)
        final = swarm.ada.final_slot()
        wait_for_new_final_rounds(three, 3)
        wait_for_the_log([swarm.ada], "waiting for certifiers bob, cyd, dan.", after=told)
        assert swarm.ada.final_slot() == final
    finally:
        swarm.lan.heal()
    healed_ms = now_ms()
    wait_for_one_history(swarm.nodes)
    wait_for_the_log([swarm.ada], "Rounds become final again: slot ", after=told)
    wait_for_contributions(swarm.nodes, since_ms=healed_ms)
    assert_nobody_is_accused(swarm.nodes)


def test_a_line_that_loses_packets_carries_rounds_all_the_same(swarm: Swarm) -> None:
    for node in swarm.nodes:
        swarm.lan.lose(node.name, percent=5)
    try:
        lossy_ms = now_ms()
        wait_for_contributions(swarm.nodes, since_ms=lossy_ms)
        wait_for_new_final_rounds(swarm.nodes)
    finally:
        for node in swarm.nodes:
            swarm.lan.lose_nothing(node.name)

"""A network that is cut and heals; and one of the four behind a router at home, whom nobody outside can dial.

Nobody tells a node that the network was cut: packets vanish.
"""

from typing import Any

import pytest
from live_swarm import LiveNode, now_ms, wait_for_contributions, wait_for_new_final_rounds, wait_until
from namespaces import INSIDE
from troubled_swarm import (
    Swarm,
    assert_nobody_is_accused,
    log_lengths,
    wait_for_one_history,
    wait_for_rounds,
    wait_for_the_log,
)

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(900)]


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


def test_three_make_rounds_final_without_the_fourth_which_comes_back(swarm: Swarm) -> None:
    three = [swarm.bob, swarm.cyd, swarm.dan]
    told = log_lengths(swarm.nodes)
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


def test_two_halves_go_on_and_become_one_again(swarm: Swarm) -> None:
    halves = [swarm.ada, swarm.bob], [swarm.cyd, swarm.dan]
    told = log_lengths(swarm.nodes)
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

"""What takes minutes: a network process killed again and again, bad and long lines."""

import contextlib
import signal
import time

import psutil
import pytest
from live_swarm import (
    now_ms,
    wait_for_contributions,
    wait_for_new_final_rounds,
    wait_until,
    wait_until_gone,
)
from troubled_swarm import (
    Swarm,
    assert_nobody_is_accused,
    log_of,
    stored,
)

from fullrank_protocol.envelope import open_envelope
from fullrank_protocol.wire import objects_pb2 as wire

pytestmark = pytest.mark.timeout(900)

P2PD_MINUTE_S = 60.0

ONE_WAY_MS = 150
"""Half way round the world."""


def test_a_node_whose_p2pd_is_killed_every_few_seconds_for_a_minute_outlives_them_all(swarm: Swarm) -> None:
    others = [swarm.ada, swarm.bob, swarm.dan]
    daemon = swarm.cyd.daemon()
    before = swarm.dan.final_slot()
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
    assert swarm.dan.final_slot() > before  # The others went on meanwhile.
    wait_until("all peers are back", lambda: swarm.cyd.status()["peers_connected"] == 3, swarm.nodes)
    wait_for_contributions([swarm.cyd], since_ms=killed_ms)
    wait_for_new_final_rounds([swarm.cyd, *others])
    assert swarm.cyd.daemon() == daemon
    assert log_of(swarm.cyd).count("The network process runs again") >= len(killed)
    assert_nobody_is_accused(swarm.nodes)


@pytest.mark.privileged
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


@pytest.mark.privileged
def test_a_member_at_the_end_of_a_long_and_narrow_line_contributes_and_certifies(swarm: Swarm) -> None:
    swarm.lan.far_host("eve", delay_ms=ONE_WAY_MS, kbit_per_s=1000)
    joined_ms = now_ms()
    eve = swarm.live.join(swarm.link, "eve")
    wait_for_contributions([eve], since_ms=joined_ms)

    def voters() -> set[str]:
        return {open_envelope(data, swarm=None).public_key.hex() for data in stored(swarm.ada, wire.VOTE)}

    wait_until("the others have a vote of hers", lambda: eve.key in voters(), [eve, *swarm.nodes])
    wait_for_new_final_rounds([eve, *swarm.nodes])
    assert swarm.ada.peers()["eve"]["latency_ms"] >= 2 * ONE_WAY_MS
    eve.end()

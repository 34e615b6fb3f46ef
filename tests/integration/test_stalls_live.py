"""A certifier of three real daemons is gone for good: what its swarm shows, what readers get, and how it goes on."""

import json
from pathlib import Path

import pytest
from live_swarm import LiveNode, LiveSwarm, wait_for_certifiers, wait_until, wait_until_gone

from fullrank_node.errors import ExitCode

pytestmark = pytest.mark.timeout(600)

STALLS_SOON = ("--window", "2", "--stall-slots", "8")
"""As soon as two thirds of three can vote within: who has not voted for that long does not count as there."""


def test_a_stalled_swarm_says_who_is_missing_and_goes_on_without_them_once_they_are_retired(tmp_path: Path) -> None:
    with LiveSwarm(tmp_path) as live:
        ada = live.found("ada", options=STALLS_SOON)
        link = live.invite(ada)
        bob, cyd = live.join_together(link, {"bob": [], "cyd": []})
        wait_for_certifiers([ada, bob, cyd], 3)
        wait_until_gone(cyd.kill())
        left = [ada, bob]

        # Everybody left sees it, and who is missing; rounds go on.
        wait_until("the chain is stalled", lambda: all(node.status()["stall"] for node in left), left)
        newest = bob.status()["round"]
        wait_until("rounds go on", lambda: bob.status()["round"] > newest, left)

        def counted_without_cyd() -> bool:  # Who voted for one of the newest eight slots still counts as there.
            stall = bob.status()["stall"]
            return bool(stall["provisional"] and [line["name"] for line in stall["missing"]] == ["cyd"])

        wait_until("Bob's node has something provisional without Cyd", counted_without_cyd, left)
        status = bob.status()
        assert [line["name"] for line in status["stall"]["present"]] == ["ada", "bob"]
        assert status["stall"]["since_slot"] == status["final"]["slot"] < status["stall"]["provisional"]["slot"]
        shown = bob.fullrank("status").stdout
        assert "STALLED" in shown
        assert "`fullrank retire cyd`" in shown

        # Readers get what is final, and are told of what is not; or what is provisional, and are told that it is.
        dora, model = live.node("dora"), tmp_path / "model"
        reading = str(link.without_invite())
        provisional = dora.json("pull", reading, "--provisional", "--out", str(model))
        assert (provisional["final"], provisional["standing"]) == (False, "provisional"), provisional["notes"]
        assert (provisional["present"], provisional["missing"]) == (["ada", "bob"], ["cyd"])
        assert provisional["round"] > status["final"]["round"]
        assert "2 of 3 certifiers are there; missing: cyd" in provisional["notes"][0]
        assert json.loads((model / "fullrank.json").read_text())["standing"] == "provisional"
        verified = dora.json("verify", str(model))
        assert (verified["ok"], verified["standing"]) == (True, "provisional")
        final = dora.json("pull", reading, "--out", str(tmp_path / "final"))
        assert (final["standing"], final["round"]) == ("final", status["final"]["round"])
        assert "--provisional takes them" in final["notes"][0]

        # Only the founder can retire, and then finality is back.
        assert "root key" in bob.fullrank("retire", "cyd", "--yes", code=ExitCode.PERMISSION).stderr
        done = ada.fullrank("retire", "cyd", "--yes")
        assert "last vote: slot" in done.stderr
        assert "at once" in done.stdout
        goal = provisional["round"]

        def is_well(node: LiveNode) -> bool:
            status = node.status()
            return status["final"]["round"] > goal and status["stall"] is None

        wait_until("rounds are final again", lambda: all(map(is_well, left)), left)
        assert not any(node.members()["cyd"]["certifies"] for node in left)

"""The command line: what people see, what scripts get, and what is never imported."""

import asyncio
import json
import os
import re
import sys
import types
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import fake_node
import pytest

import fullrank_node
from fullrank_node.api import control_pb2 as wire
from fullrank_node.cli import adopt, join, lifecycle, main, options, pull, render, retire
from fullrank_node.cli.status_screen import status_lines
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.home import Home
from fullrank_node.operations import CreateOptions, JoinSummary, PullReport, VerifyReport

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "peft", "hivemind", "transformers", "numpy", "rich")


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No command of a test sees the developer's own node or settings."""
    for name in [name for name in os.environ if name.startswith("FULLRANK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FULLRANK_HOME", str(tmp_path / "home"))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    fake_node.set_up(home)
    return home


@pytest.fixture
async def view(home: Home) -> AsyncIterator[fake_node.FakeNode]:
    view = fake_node.FakeNode()
    async with fake_node.serving(home, view):
        yield view


class Outcome:
    """What one command line printed and exited with."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def object(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> Outcome:
        code = main.run(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def ask(run: Run, view: fake_node.FakeNode) -> Callable[..., Any]:
    """Runs a command beside the loop that serves the fake node."""
    return lambda *arguments: asyncio.to_thread(run, *arguments)


def exists(path: str) -> bool:
    return Path(path).exists()


async def python(program: str, *arguments: str, **environment: str) -> Outcome:
    """Runs a program in an interpreter of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        *arguments,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), err.decode())


# ---- what is never imported --------------------------------------------------------------------

SEE_IMPORTS = f"""
import sys
from fullrank_node.cli.main import run
code = run(sys.argv[1:])
print("imported:", *(name for name in {HEAVY!r} if name in sys.modules))
sys.exit(code)
"""


@pytest.mark.parametrize("arguments", [("--help",), ("create", "--help"), ("--version",)])
async def test_help_imports_no_heavy_library(arguments: tuple[str, ...]) -> None:
    outcome = await python(SEE_IMPORTS, *arguments)
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1].split() == ["imported:"]


async def test_status_of_a_running_node_imports_no_heavy_library(view: fake_node.FakeNode) -> None:
    outcome = await python(SEE_IMPORTS, "status")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1].split() == ["imported:"]
    assert "quiet-otter" in outcome.out


async def test_status_without_a_daemon_imports_no_heavy_library(home: Home) -> None:
    outcome = await python(SEE_IMPORTS, "status")
    assert outcome.code == ExitCode.NO_PEERS
    assert outcome.out.splitlines()[-1].split() == ["imported:"]


# ---- help, usage, versions ---------------------------------------------------------------------


def test_help_lists_every_command(run: Run) -> None:
    listed = run("--help").out
    commands = (
        "create join start stop status history peers pull verify invite members revoke retire adopt leave logs doctor "
        "demo pause resume finish data config key version"
    )
    for name in commands.split():
        assert f"\n  {name} " in listed


def test_a_usage_error_exits_with_2(run: Run) -> None:
    assert run("status", "--nonsense").code == ExitCode.USAGE
    assert run("nonsense").code == ExitCode.USAGE


def test_a_usage_error_is_json_where_json_was_asked_for(run: Run) -> None:
    outcome = run("history", "many", "--json")
    assert outcome.code == ExitCode.USAGE
    assert outcome.object()["error"]["exit_code"] == 2


def test_what_an_option_cannot_be_is_said_in_a_sentence(run: Run) -> None:
    said = "Invalid value for '--format': 'gguf' is not one of 'hf', 'peft'."
    assert said in run("pull", "--format", "gguf").err.splitlines()[-1]
    assert run("pull", "--format", "gguf", "--json").object()["error"]["message"] == said


def test_the_version_names_program_and_protocol(run: Run) -> None:
    assert run("version", "--json").object() == {"version": 1, "fullrank": "0.1.0", "protocol_version": 1}
    assert run("--version").out == "fullrank 0.1.0\n"


# ---- homes -------------------------------------------------------------------------------------


def test_the_home_is_named_by_option_or_environment_in_this_order(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULLRANK_HOME", str(tmp_path / "environment"))
    assert f"home {tmp_path / 'environment'}" in run("status").out
    assert f"home {tmp_path / 'before'}" in run("--home", str(tmp_path / "before"), "status").out
    assert f"home {tmp_path / 'after'}" in run("--home", "before", "status", "--home", str(tmp_path / "after")).out
    assert f"home {tmp_path / 'environment'}" in run("status").out


@pytest.mark.parametrize(
    "arguments", ["history", "peers", "members", "pause", "resume", "finish", "stop", "invite", "leave --yes"]
)
def test_a_command_that_needs_a_daemon_says_how_to_start_one(run: Run, home: Home, arguments: str) -> None:
    outcome = run(*arguments.split())
    assert outcome.code == ExitCode.NO_PEERS
    assert outcome.out == ""
    assert outcome.err == f"error: no daemon is running on {home.path}\nhint: Start it with `fullrank start`.\n"


def test_the_same_error_as_json_stands_on_standard_output(run: Run, home: Home) -> None:
    outcome = run("peers", "--json")
    assert outcome.code == ExitCode.NO_PEERS
    assert outcome.err == ""
    assert outcome.object()["error"]["hint"] == "Start it with `fullrank start`."


# ---- status ------------------------------------------------------------------------------------

SCREEN = """\
quiet-otter  training   swarm demo-7f3a   round 41   step 118/200   about 3 min left
device   RTX 3060 12 GB, 6.1 GB used   limits  idle only, 70 % duty
loss     1.840 (start 1.970)   held-out, shared model 1.790 -> 1.760
peers    14 connected   swarm of 12 members, 11 certifiers (this node: certifier)
mine     37 deltas: 35 accepted, 1 late, 1 refused (norm 14.2 above 10.0)   up 412 MB  down 1.1 GB
model    round 41, final to round 40, digest 9c9c9c9c9c9c9c9c…
update   effective rank 412 of 768 in round 40 (7 of 84 modules sampled)
final    waiting for certifiers: slow-heron
"""


async def test_status_shows_the_screen(ask: Any) -> None:
    outcome = await ask("status")
    assert outcome.code == ExitCode.OK
    assert outcome.out == SCREEN


async def test_status_as_json_has_every_field(ask: Any) -> None:
    found = (await ask("status", "--json")).object()
    assert (found["version"], found["running"], found["state"]) == (1, True, "training")
    assert found["training"]["step"] == 118
    assert found["head"] == {"id": fake_node.HEAD.hex(), "slot": 50, "round": 41, "digest": fake_node.DIGEST.hex()}
    assert found["finality"]["reason"] == "waiting for certifiers: slow-heron"
    assert found["justified"] is None
    assert found["held_out_loss_now"] == 1.76


async def test_status_without_a_daemon_shows_the_last_known_state(run: Run, home: Home) -> None:
    async with fake_node.serving(home, fake_node.FakeNode()):
        pass
    outcome = run("status")
    assert outcome.code == ExitCode.NO_PEERS
    assert outcome.out.startswith(f"not running   home {home.path}\nLast known state, ")
    assert outcome.out.endswith(SCREEN)
    assert "hint: Start it with `fullrank start`." in outcome.err
    found = run("status", "--json").object()
    assert (found["running"], found["last"]["round"]) == (False, 41)


@pytest.mark.parametrize(
    ("state", "reason", "shown"),
    [
        (wire.NODE_STARTING, "loading the base", "starting (loading the base)"),
        (wire.NODE_SYNCING, "12 of 40 checkpoints", "syncing (12 of 40 checkpoints)"),
        (wire.NODE_WAITING, "round 12 closes in 14 s", "waiting (round 12 closes in 14 s)"),
        (wire.NODE_PAUSED, "on battery", "paused (on battery)"),
        (wire.NODE_NO_PEERS, "3 addresses tried", "no peers (3 addresses tried)"),
        (wire.NODE_TROUBLED, "two conflicting final checkpoints", "in trouble (two conflicting final checkpoints)"),
    ],
)
def test_every_state_has_its_reason(state: wire.NodeState, reason: str, shown: str) -> None:
    status = wire.StatusReply(node_name="quiet-otter", state=state, reason=reason)
    assert shown in status_lines(status)[0][1]


def test_a_head_that_is_final_is_shown_with_its_votes() -> None:
    status = fake_node.a_status()
    status.final.CopyFrom(status.head)
    status.finality.votes = 9
    lines = dict(status_lines(status))
    assert lines["model"].startswith("round 41 final (9 of 11 certifiers), digest 9c9c")
    assert "final" not in lines


def test_a_justified_round_between_head_and_final_is_shown() -> None:
    status = fake_node.a_status()
    status.justified.CopyFrom(status.head)
    assert dict(status_lines(status))["model"].startswith("round 41, justified to round 41, final to round 40, digest")


def a_stalled_status() -> wire.StatusReply:
    status = fake_node.a_status()
    status.now_ms = 100_000_000
    status.stall.since_slot, status.stall.since_ms = 12, 6_400_000
    status.stall.present.add(name="ada")
    status.stall.missing.add(name="dan", last_vote_slot=11, last_vote_ms=6_000_000)
    status.stall.missing.add(name="\x1b[2Jeve")
    status.stall.provisional.round, status.stall.provisional.slot, status.stall.provisional.id = 40, 49, fake_node.OTTER
    status.stall.advice = "they come back"
    return status


def test_a_stall_is_shown_with_who_is_missing_what_stands_and_what_to_do() -> None:
    lines = dict(status_lines(a_stalled_status()))
    assert lines["STALLED"] == ("nothing has become final since slot 12, 26 h ago: 1 of 3 certifiers are there (ada)")
    assert lines["missing"] == (
        "dan (last vote: slot 11, 26 h 7 min ago), \N{REPLACEMENT CHARACTER}[2Jeve (no vote known)"
    )
    assert lines["so far"] == "round 40 of slot 49 is provisionally final: `fullrank pull --provisional`"
    assert lines["what now"] == "they come back"
    assert "final" not in lines


def test_a_stall_without_anything_provisional_says_so() -> None:
    status = a_stalled_status()
    status.stall.ClearField("provisional")
    assert dict(status_lines(status))["so far"] == "nothing is provisionally final"


def test_a_conflict_is_shown_with_both_checkpoints_and_what_to_do() -> None:
    status = fake_node.a_status()
    status.state, status.reason = wire.NODE_TROUBLED, "two final checkpoints contradict each other"
    status.warnings.append(status.reason)
    status.conflict.CopyFrom(a_conflict())
    lines = status_lines(status)
    assert "in trouble (two final checkpoints contradict each other)" in lines[0][1]
    assert dict(lines)["here"] == "050505050505 of slot 5, round 4, voted for by ada, bob"
    assert dict(lines)["other"] == "090909090909 of slot 9, round 8, voted for by bob, cyd"
    assert dict(lines)["what now"] == "tell the founder"
    assert "warning" not in dict(lines)  # The first line has said it.


def test_unreachable_peers_and_warnings_have_lines_of_their_own() -> None:
    status = fake_node.a_status()
    status.connection_failures.add(address="/ip4/1.2.3.4/tcp/1", detail="no answer in 10 s")
    status.warnings.append("the clock is 12 s off")
    lines = status_lines(status)
    assert ("trouble", "cannot reach /ip4/1.2.3.4/tcp/1: no answer in 10 s") in lines
    assert ("warning", "the clock is 12 s off") in lines


async def test_watch_refreshes_until_the_daemon_fails(
    ask: Any, view: fake_node.FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def three_screens(make_lines: Callable[[], Any], *, interval_s: float) -> None:
        assert interval_s == 1.0
        for _ in range(3):
            assert dict(make_lines())["final"] == "waiting for certifiers: slow-heron"
        raise KeyboardInterrupt

    monkeypatch.setattr(render, "watch", three_screens)
    assert (await ask("status", "--watch")).code == ExitCode.OK
    assert len(view.asked) == 3


# ---- the other reading commands ----------------------------------------------------------------


async def test_history_shows_verdicts_with_reasons(ask: Any, view: fake_node.FakeNode) -> None:
    shown = (await ask("history", "--limit", "5")).out
    assert re.search(r"2026-05-28 20:26 UTC +9 +6 +8 +6 +1 +80,000 +75%", shown)
    assert view.asked == [wire.HistoryRequest(limit=5)]
    assert "01010101    39  accepted     40    0.25   4,096" in shown
    assert "scale: found exponent 9, required at most 4" in shown


async def test_history_of_one_round_asks_for_it(ask: Any, view: fake_node.FakeNode) -> None:
    found = (await ask("history", "0", "--json")).object()
    assert view.asked == [wire.HistoryRequest(round=0, limit=20)]
    assert found["contributions"][1]["rule"] == "scale"
    assert found["contributions"][0]["loss_first"] is None


async def test_names_of_strangers_cannot_steer_the_terminal(ask: Any) -> None:
    shown = (await ask("peers")).out
    assert "\x1b" not in shown
    assert "\N{REPLACEMENT CHARACTER}[2Jslow-heron" in shown


async def test_members_shows_roles_and_invites(ask: Any) -> None:
    shown = (await ask("members")).out
    assert "quiet-otter (this node)  01010101  active  trains, certifies" in shown
    assert "last vote" in shown
    assert "slot 50, " in shown
    assert "expired" in shown
    assert (await ask("members", "--json")).object()["invites"][0]["used"] == 2


# ---- steering ----------------------------------------------------------------------------------


async def test_invite_prints_only_the_link_on_standard_output(ask: Any, view: fake_node.FakeNode) -> None:
    outcome = await ask("invite", "--count", "3", "--days", "2", "--no-certify")
    assert view.asked == [wire.InviteRequest(count=3, valid_for_ms=172_800_000)]
    assert outcome.out == f"fullrank:{fake_node.SWARM.hex()}?invite={fake_node.HERON.hex()}\n"
    assert outcome.err == "nobody can dial this node\n"


async def test_revoke_passes_the_subject_and_reports_the_daemons_reason(ask: Any, view: fake_node.FakeNode) -> None:
    assert (await ask("revoke", "slow-heron", "--yes")).out == "revoked 02020202\n"
    assert view.asked == [wire.RevokeRequest(subject="slow-heron")]
    refused = await ask("revoke", "nobody", "--yes")
    assert refused.code == ExitCode.USAGE
    assert refused.err == "error: no member is called nobody\nhint: See `fullrank members`.\n"


async def test_revoking_a_whole_tree_shows_whom_it_hits_before_it_does(ask: Any, view: fake_node.FakeNode) -> None:
    asked = await ask("revoke", "slow-heron", "--whole-tree")
    assert asked.code == ExitCode.USAGE
    assert "members  bob, cyd" in asked.err
    assert "retires  bob: certifiers leave one after another" in asked.err
    assert "Revoke slow-heron and 2 members that it admitted?" in asked.err
    assert [each.preview for each in view.asked] == [True]
    assert (await ask("revoke", "slow-heron", "--whole-tree", "--yes")).out == "revoked 02020202\n"
    assert view.asked[-1] == wire.RevokeRequest(subject="slow-heron", whole_tree=True)


async def test_retire_tells_whom_when_and_at_what_risk_before_it_signs(ask: Any, view: fake_node.FakeNode) -> None:
    asked = await ask("retire", "slow-heron", "dan")
    assert asked.code == ExitCode.USAGE
    assert "retires  slow-heron 02020202   last vote: slot 12, " in asked.err
    assert "CONNECTED TO THIS NODE NOW" in asked.err
    assert "\N{REPLACEMENT CHARACTER}[2Jdan 29292929   no vote of it is known here" in asked.err
    assert "leaves   1 certifier: quiet-otter" in asked.err
    assert "acts     at once: the chain is stalled, the next checkpoint does it, for all together" in asked.err
    assert "both sides may" in asked.err
    assert "ALONE" not in asked.err
    assert "`fullrank adopt`" in asked.err
    assert view.asked == [wire.RetireRequest(subjects=["slow-heron", "dan"], preview=True)]


async def test_retire_signs_for_the_very_keys_that_it_has_shown(ask: Any, view: fake_node.FakeNode) -> None:
    outcome = await ask("retire", "slow-heron", "dan", "--yes")
    assert view.asked[-1] == wire.RetireRequest(subjects=[fake_node.HERON.hex(), fake_node.HEAD.hex()])
    assert outcome.out.splitlines()[0] == "signed: slow-heron, \N{REPLACEMENT CHARACTER}[2Jdan"
    assert outcome.out.splitlines()[1].startswith("They stop counting at once")
    found = (await ask("retire", "dan", "--yes", "--json")).object()
    assert found["retired"][0]["retirement_signatures"] == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stalled": True}, "at once"),
        (
            {"stalls_in_slots": 40, "stalls_in_ms": 12_000_000},
            "in 40 slots (3 h 20 min), when finality has been missing",
        ),
        ({}, "within some slots, when the checkpoint that says so is final"),
    ],
)
def test_when_a_retirement_acts_is_said_in_slots_and_time(fields: dict[str, Any], words: str) -> None:
    reply = wire.RetireReply(retired=[wire.CertifierLine(name="dan")], **fields)
    assert retire.effect_text(reply).startswith(words)


def test_a_signature_that_another_root_key_has_given_is_shown_with_its_age() -> None:
    line = wire.CertifierLine(name="dan", retirement_signatures=1, retirement_issued_ms=1_000)
    planned = wire.RetireReply(retired=[line], signatures_needed=2)
    shown = "\n".join(retire.consent_lines(planned, now_ms=3_601_000))
    assert "ALONE    this node is connected to nobody" in shown
    assert "signed by 1 of 2 root keys, 60 min ago" in shown


async def test_adopt_without_a_conflict_says_so_and_asks_nothing(ask: Any, view: fake_node.FakeNode) -> None:
    outcome = await ask("adopt", "29292929")
    assert (outcome.code, outcome.out, outcome.err) == (ExitCode.OK, "There is no conflict.\n", "")
    assert view.asked == [wire.AdoptRequest(checkpoint="29292929", preview=True)]


def a_conflict() -> wire.Conflict:
    ours, theirs = (
        wire.ConflictLine(checkpoint=wire.CheckpointLine(id=bytes([n]) * 32, slot=n, round=n - 1), voters=voters)
        for n, voters in ((5, ["ada", "bob"]), (9, ["bob", "cyd"]))
    )
    return wire.Conflict(ours=ours, theirs=theirs, advice="tell the founder")


async def test_adopt_shows_both_histories_and_what_is_left_before_it_acts(ask: Any, view: fake_node.FakeNode) -> None:
    conflict = a_conflict()
    view.adopt_reply = wire.AdoptReply(
        conflict=conflict,
        checkpoint=conflict.theirs.checkpoint,
        follows=True,
        fork_round=2,
        rounds_left=4,
        final_rounds_left=2,
        deltas_left=3,
        deltas_offered=True,
        note="this node goes on from 090909090909",
    )
    asked = await ask("adopt", "0909")
    assert asked.code == ExitCode.USAGE
    assert "here     050505050505 of slot 5, round 4, voted for by ada, bob" in asked.err
    assert "other    090909090909 of slot 9, round 8, voted for by bob, cyd" in asked.err
    assert "leaves   4 rounds of this node's history after round 2, 2 of them final here" in asked.err
    assert "deltas   3 deltas of this node's own: offered again, to count as late ones" in asked.err
    assert "Leave this node's final checkpoint and follow the founder's choice, 090909090909 of slot 9?" in asked.err
    done = await ask("adopt", "0909", "--yes")
    assert done.out == "this node goes on from 090909090909\n"
    assert view.asked[-1] == wire.AdoptRequest(checkpoint="09" * 32)


def test_adopt_says_what_the_root_signs_and_which_deltas_are_lost() -> None:
    conflict = a_conflict()
    planned = wire.AdoptReply(
        conflict=conflict,
        checkpoint=conflict.theirs.checkpoint,
        signs=True,
        signatures_needed=2,
        follows=True,
        deltas_left=1,
    )
    shown = "\n".join(adopt.consent_lines(planned))
    assert "signs    the root's choice of 090909090909" in shown
    assert "counts when 2 root keys have signed the same" in shown
    assert "1 delta of this node's own: lost, for too many rounds" in shown
    assert adopt.question(planned) == "Choose 090909090909 of slot 9 for the whole swarm, and leave this node's own?"


async def test_a_question_that_nobody_can_answer_is_not_taken_for_yes(ask: Any, view: fake_node.FakeNode) -> None:
    outcome = await ask("leave")
    assert outcome.code == ExitCode.USAGE
    assert "--yes" in outcome.err
    assert view.asked == []


async def test_leave_pause_resume_and_finish_reach_the_node(ask: Any, view: fake_node.FakeNode) -> None:
    for line in ("leave --yes --certifier-role-only", "pause --for 1h30m", "pause", "resume", "finish"):
        assert (await ask(*line.split())).code == ExitCode.OK
    assert view.asked == [
        wire.LeaveSwarmRequest(certifier_role_only=True),
        wire.PauseRequest(for_ms=5_400_000),
        wire.PauseRequest(),
        wire.ResumeRequest(),
        wire.FinishRequest(),
    ]


@pytest.mark.parametrize(("text", "milliseconds"), [("45s", 45_000), ("2h", 7_200_000), ("1d1m", 86_460_000)])
def test_durations_are_read_as_people_write_them(text: str, milliseconds: int) -> None:
    assert options.duration_ms(text) == milliseconds


@pytest.mark.parametrize("text", ["", "2", "h", "two hours", "-1h", "1m1h"])
def test_what_is_no_duration_is_a_usage_error(run: Run, text: str) -> None:
    if text:
        assert run("pause", "--for", text).code == ExitCode.USAGE
    with pytest.raises(Exception, match="no duration"):
        options.duration_ms(text)


# ---- the daemon's life -------------------------------------------------------------------------

WITH_ANOTHER_DAEMON = """
import sys
from fullrank_node.cli import lifecycle, main
program = sys.argv[1]
lifecycle.command_line = lambda home: [sys.executable, "-c", program, str(home.path)]
sys.exit(main.run(sys.argv[2:]))
"""

WORKING_DAEMON = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tests")!r})
import fake_node
asyncio.run(fake_node.main(Path(sys.argv[1])))
"""

FAILING_DAEMON = """
import sys
print("some library's noise", file=sys.stderr)
print("error: port 7700 is taken\\nby another program\\nhint: fullrank config set network.listen ...", file=sys.stderr)
sys.exit(78)
"""

CRASHING_DAEMON = """
raise RuntimeError("a mistake of ours")
"""


async def test_start_waits_for_the_answer_and_stop_for_the_end(home: Home) -> None:
    started = await python(WITH_ANOTHER_DAEMON, WORKING_DAEMON, "start")
    assert started.code == ExitCode.OK, started.err
    run_info = home.read_run()
    assert run_info is not None
    assert f"process {run_info.pid}" in started.err

    again = await python(WITH_ANOTHER_DAEMON, WORKING_DAEMON, "start")
    assert again.code == ExitCode.ERROR
    assert f"already running (process {run_info.pid})" in again.err

    stopped = await python(WITH_ANOTHER_DAEMON, WORKING_DAEMON, "stop")
    assert stopped.code == ExitCode.OK, stopped.err
    assert not home.is_locked()
    assert not exists(run_info.socket)


async def test_a_failed_start_shows_the_daemons_own_reason_cure_and_code(home: Home) -> None:
    outcome = await python(WITH_ANOTHER_DAEMON, FAILING_DAEMON, "start")
    assert outcome.code == ExitCode.CONFIG
    assert (
        outcome.err == "error: port 7700 is taken\nby another program\nhint: fullrank config set network.listen ...\n"
    )


async def test_a_daemon_without_room_for_its_last_words_is_still_understood(home: Home) -> None:
    outcome = await python(WITH_ANOTHER_DAEMON, "raise SystemExit(74)", "start")
    assert outcome.code == ExitCode.DISK
    assert outcome.err.startswith(f"error: no space left on the disk that holds {home.path}\nhint: ")


async def test_a_crash_at_the_start_shows_its_last_lines(home: Home) -> None:
    outcome = await python(WITH_ANOTHER_DAEMON, CRASHING_DAEMON, "start")
    assert outcome.code == ExitCode.ERROR
    assert "RuntimeError: a mistake of ours" in outcome.err
    assert "error: the daemon ended while starting (exit code 1)" in outcome.err


def test_start_without_a_node_says_how_to_get_one(run: Run) -> None:
    outcome = run("start")
    assert outcome.code == ExitCode.CONFIG
    assert "fullrank join" in outcome.err


def test_start_with_a_wrong_configuration_fails_before_it_starts_anything(run: Run, home: Home) -> None:
    home.config_file.write_text("[limits]\ncpu_thread = 1\n")
    outcome = run("start")
    assert outcome.code == ExitCode.CONFIG
    assert "limits.cpu_threads" in outcome.err


def test_start_in_the_foreground_becomes_the_daemon(run: Run, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []

    def execv(_program: str, arguments: list[str]) -> None:
        became.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", execv)
    assert run("start", "--foreground").code == ExitCode.OK
    assert became == [
        [sys.executable, "-P", "-m", "fullrank_node.daemon", "--home", str(home.path), "--foreground"],
    ]


def test_logs_shows_the_last_lines(run: Run, home: Home) -> None:
    home.log_file.write_text("one\ntwo\n\x1b[31mthree\n")
    assert run("logs", "-n", "2").out == "two\n\N{REPLACEMENT CHARACTER}[31mthree\n"


def test_logs_without_a_log_says_why(run: Run, home: Home) -> None:
    outcome = run("logs")
    assert outcome.code == ExitCode.ERROR
    assert "fullrank start" in outcome.err


@pytest.mark.parametrize("command", ["logs", "status", "members", "history"])
def test_without_a_node_a_command_says_how_to_set_one_up(run: Run, command: str) -> None:
    outcome = run(command)
    assert outcome.code == ExitCode.NO_PEERS
    assert "there is no node at" in outcome.err
    assert "`fullrank join LINK` or `fullrank create`" in outcome.err


def test_the_help_of_members_promises_what_it_shows(run: Run) -> None:
    assert "everybody's last vote" in " ".join(run("members", "--help").out.split())


# ---- founding, joining, pulling ----------------------------------------------------------------


def replace_module(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    """Puts functions in the place of a module that a command imports when it runs."""
    module = types.SimpleNamespace(**functions)
    monkeypatch.setitem(sys.modules, f"fullrank_node.{name}", module)
    monkeypatch.setattr(fullrank_node, name, module, raising=False)


async def test_create_founds_starts_and_prints_only_the_link(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    async def create(home: Home, overrides: dict[str, Any], **arguments: Any) -> None:
        arguments.pop("progress")("importing the base")
        calls.append((home.path, overrides, arguments))
        fake_node.set_up(home)

    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    home = Home(tmp_path / "home")
    replace_module(monkeypatch, "founding", create=create)
    monkeypatch.setattr(lifecycle, "start_in_background", lambda place: calls.append(("started", place.path)))
    async with fake_node.serving(home, view := fake_node.FakeNode()):
        outcome = await asyncio.to_thread(
            run, *f"create --base embedded:demo --name small --data {rows} --window 5 --rank 8 --listen /a".split()
        )
    assert outcome.code == ExitCode.OK, outcome.err
    (path, overrides, arguments), started = calls
    assert path == home.path
    assert overrides["network"] == {"listen": ["/a"], "announce": None}
    assert overrides["data"] == {"path": rows}
    assert arguments == {
        "base": "embedded:demo",
        "name": "small",
        "data": rows,
        "options": CreateOptions(window_s=5.0, rank=8),
    }
    assert started == ("started", home.path)
    assert view.asked[0] == wire.InviteRequest(count=32, valid_for_ms=30 * 86_400_000, certify=True)
    assert outcome.out == f"fullrank:{fake_node.SWARM.hex()}?invite={fake_node.HERON.hex()}\n"


@pytest.mark.parametrize("line", ["create --base x", f"join fullrank:{'0' * 64} --yes"])
def test_a_home_belongs_to_one_swarm(run: Run, home: Home, line: str) -> None:
    outcome = run(*line.split())
    assert outcome.code == ExitCode.CONFIG
    assert "already belongs to a swarm" in outcome.err


def test_data_that_is_not_there_is_noticed_before_any_work(run: Run, tmp_path: Path) -> None:
    outcome = run("create", "--base", "x", "--data", str(tmp_path / "missing.jsonl"))
    assert outcome.code == ExitCode.CONFIG
    assert "missing.jsonl" in outcome.err


@pytest.mark.parametrize("link", ["nonsense", "fullrank:12", f"fullrank:{'g' * 64}", "https://example.org"])
def test_a_wrong_link_is_told_how_a_link_looks(run: Run, link: str) -> None:
    outcome = run("join", link, "--yes")
    assert outcome.code == ExitCode.USAGE
    assert "fullrank:<64 hex digits>?peer=" in outcome.err


def a_summary() -> JoinSummary:
    return JoinSummary(
        swarm_name="demo-7f3a",
        swarm=fake_node.SWARM,
        base="embedded:demo",
        licence="mit",
        num_parameters=1_070_000,
        base_download_bytes=4_000_000,
        update_bytes=120_000,
        disk_bytes=50_000_000,
        device="auto",
        slot_window_ms=300_000,
        node_name="quiet-otter",
        member=fake_node.OTTER,
        addresses=("/ip4/0.0.0.0/tcp/7700",),
        num_rows=250,
        certifies=True,
    )


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in for founding and start; lists what they were asked."""
    calls: list[Any] = []

    async def join_swarm(_home: Home, link: Any, *, confirm: Any, **arguments: Any) -> JoinSummary | None:
        calls.append((link, arguments["overrides"]))
        return a_summary() if confirm(a_summary()) else None

    replace_module(monkeypatch, "founding", join=join_swarm)
    monkeypatch.setattr(lifecycle, "start_in_background", lambda place: calls.append(place.path))
    return calls


def test_join_shows_once_what_will_happen_and_starts(run: Run, joined: list[Any], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    outcome = run("join", f"fullrank:{'7f' * 32}", "--data", str(rows), "--yes", "--no-certify", "--name", "mine")
    assert outcome.code == ExitCode.OK, outcome.err
    assert joined[0][1]["certify"] is False
    assert joined[0][1]["node"] == {"name": "mine"}
    assert joined[1] == tmp_path / "home"
    assert outcome.out == ""
    for promise in ("demo-7f3a", "mit", "4.0 MB to fetch", "5 min", "120 kB", "quiet-otter", f"the data: {rows}"):
        assert promise in outcome.err


def test_join_declined_starts_nothing(run: Run, joined: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "require_consent", lambda _question, *, yes: yes)
    assert run("join", f"fullrank:{'7f' * 32}").code == ExitCode.ERROR
    assert len(joined) == 1


def test_a_new_node_gets_a_port_that_it_keeps(run: Run, joined: list[Any]) -> None:
    run("join", f"fullrank:{'7f' * 32}", "--yes")
    (address,) = joined[0][1]["network"]["listen"]
    assert address.startswith("/ip4/0.0.0.0/tcp/")
    assert int(address.rpartition("/")[2]) in options.KEPT_PORTS


def test_a_node_that_only_dials_listens_nowhere(run: Run, joined: list[Any]) -> None:
    run("join", f"fullrank:{'7f' * 32}", "--yes", "--no-listen")
    assert joined[0][1]["network"] == {"no_listen": True, "peers": None}


def a_pull_report(path: Path, **changes: Any) -> PullReport:
    fields: dict[str, Any] = {
        "swarm_name": "demo-7f3a",
        "swarm": fake_node.SWARM,
        "checkpoint": fake_node.HEAD,
        "round": 40,
        "slot": 49,
        "digest": fake_node.DIGEST,
        "final": True,
        "votes": 9,
        "certifiers": 11,
        "format": "hf",
        "path": path,
        "num_bytes": 4_300_000,
    }
    return PullReport(**fields | changes)


def test_pull_reports_what_was_checked_and_where_it_lies(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    async def pull(home: Home, target: str, **arguments: Any) -> PullReport:
        arguments.pop("progress")("replaying")
        asked.append((home.path, target, arguments))
        return a_pull_report(arguments["out"], format=arguments["format"], rank=64, energy_lost=0.021)

    replace_module(monkeypatch, "pull", pull=pull)
    outcome = run("pull", "fullrank:00", "-o", str(tmp_path / "model"), "--format", "peft", "--round", "40")
    assert outcome.code == ExitCode.OK
    assert asked[0][1] == "fullrank:00"
    assert asked[0][2] == {
        "out": tmp_path / "model",
        "format": "peft",
        "round": 40,
        "base": None,
        "provisional": False,
    }
    assert "round 40 final (9 of 11 certifiers)" in outcome.out
    assert "rank 64, 2.1 % of the update's energy lost" in outcome.out
    assert outcome.err == "replaying\n"
    found = run("pull", "--json").object()
    assert (found["digest"], found["final"], found["path"]) == (
        fake_node.DIGEST.hex(),
        True,
        str(Path("fullrank-model").absolute()),
    )


def test_a_pull_that_is_not_final_says_so_loudly(tmp_path: Path) -> None:
    note = "NOT final: provisional, 3 of 5 certifiers are there; missing: dan, eve."
    report = a_pull_report(
        tmp_path, final=False, standing="provisional", present=("ada",), missing=("dan", "eve"), notes=(note,)
    )
    lines = pull.report_lines(report)
    assert dict(lines)["model"].startswith("round 40 NOT final: provisional (9 of 11 certifiers), digest")
    assert ("note", note) in lines
    assert pull.as_fields(report)["missing"] == ("dan", "eve")
    assert pull.standing_text("not final") == "NOT final"


def test_a_count_gets_a_line_every_few_seconds_where_nothing_can_be_redrawn(capsys: pytest.CaptureFixture[str]) -> None:
    clock_s = [0.0]
    shown = render.ShownProgress(lambda: clock_s[0])
    shown("loading the base model")
    for clock_s[0], done in ((1.0, 0), (1.0, 3), (2.0, 4), (6.0, 11), (6.1, 12), (7.0, 64), (8.0, 64)):
        shown("recomputing rounds", done=done, total=64)
    shown("fetching a snapshot of the weights", done=1_050_000, total=2_912_573)
    assert capsys.readouterr().err.splitlines() == [
        "loading the base model",
        "recomputing rounds: 0 of 64",
        "recomputing rounds: 11 of 64",
        "recomputing rounds: 64 of 64",
        "fetching a snapshot of the weights: 36 %",
    ]


@pytest.mark.parametrize(("mismatch", "code"), [("", ExitCode.OK), ("round 7: digest 9c, expected 1f", 76)])
def test_verify_names_the_first_mismatch_and_fails(
    run: Run, monkeypatch: pytest.MonkeyPatch, mismatch: str, code: int
) -> None:
    def verify(_home: Home, _target: str, **_arguments: Any) -> VerifyReport:
        return VerifyReport(
            swarm_name="demo-7f3a",
            swarm=fake_node.SWARM,
            checkpoints=50,
            contributions=120,
            round=40,
            digest=fake_node.DIGEST,
            final=False,
            standing="provisional",
            mismatch=mismatch,
        )

    replace_module(monkeypatch, "verify", verify=verify)
    outcome = run("verify")
    assert outcome.code == code
    assert (mismatch or "all agrees") in outcome.out
    assert "round 40 NOT final: provisional, digest" in outcome.out
    assert run("verify", "--json").object()["ok"] is (not mismatch)


def test_demo_passes_its_choices_and_prints_one_object(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run_demo(nodes: int, rounds: int | None, *, keep: Path | None) -> dict[str, Any]:
        asked.append((nodes, rounds, keep))
        return {"nodes": nodes, "digests_equal": True}

    fake = types.SimpleNamespace(run_demo=run_demo, InterruptedDemoError=KeyError)
    monkeypatch.setitem(sys.modules, "fullrank_node.demo.run", fake)
    found = run("demo", "--nodes", "4", "--json", "--keep", str(tmp_path)).object()
    assert found == {"version": 1, "nodes": 4, "digests_equal": True}
    assert asked == [(4, None, tmp_path)]


# ---- configuration, data, key, doctor ----------------------------------------------------------


def test_config_is_set_read_and_validated(run: Run, home: Home) -> None:
    assert run("config", "set", "limits.cpu_threads", "2").code == ExitCode.OK
    assert run("config", "get", "limits.cpu_threads").out == "2\n"
    assert run("config", "get", "--json").object()["values"]["limits.cpu_threads"] == 2
    assert "politeness" in run("config", "get").out
    assert run("config", "validate").out == f"ok: {home.config_file}\n"
    home.config_file.write_text("certfy = false\n")
    wrong = run("config", "validate")
    assert (wrong.code, "Did you mean certify?" in wrong.err) == (ExitCode.CONFIG, True)


def test_data_check_names_bad_lines(run: Run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "good"}\nnot json\n{"prompt": "a", "completion": "b"}\n')
    shown = run("data", "check", str(rows))
    assert shown.code == ExitCode.CONFIG
    assert "2 to train on" in shown.out
    assert "line 2:" in shown.out
    assert run("data", "check", str(rows), "--json").object()["skipped"][0]["line"] == 2


def test_key_show_prints_the_public_half_only(run: Run, tmp_path: Path) -> None:
    from fullrank_node.identity_file import create_identity

    home = Home(tmp_path / "home")
    home.create()
    key = create_identity(home.identity_file)
    shown = run("key", "show").out
    assert key.public_key.hex() in shown
    assert key.seed.hex() not in shown
    assert run("key", "show", "--json").object()["peer_id"].startswith("12D3Koo")
    home.identity_file.chmod(0o644)
    assert run("key", "show").code == ExitCode.PERMISSION


def test_doctor_names_every_check_and_the_cure_of_a_failure(
    run: Run, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fullrank_node.cli import checks

    # The device needs torch: it is looked at once, in the integration tests.
    monkeypatch.setattr(checks, "ALL", tuple(check for check in checks.ALL if check is not checks.device))
    home.genesis_file.unlink()  # What stands there is none.
    well = run("doctor")
    assert well.code == ExitCode.OK, well.out
    for name in ("versions", "config", "home", "daemon", "data", "base", "disk", "memory", "clock", "ports", "p2pd"):
        assert f" {name} " in well.out
    home.identity_file.chmod(0o640)
    found = run("doctor", "--json")
    assert found.code == ExitCode.ERROR
    failed = [check for check in found.object()["checks"] if check["level"] == "failure"]
    assert [check["cure"] for check in failed] == [f"chmod 600 {home.identity_file}"]


# ---- printing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1_100, "1.1 kB"), (412_000_000, "412 MB"), (1_100_000_000, "1.1 GB")],
)
def test_sizes_read_as_people_say_them(num_bytes: int, text: str) -> None:
    assert render.bytes_text(num_bytes) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(900, "0 s"), (45_000, "45 s"), (180_000, "3 min"), (7_800_000, "2 h 10 min"), (360_000_000, "4 d 4 h")],
)
def test_durations_read_as_people_say_them(milliseconds: int, text: str) -> None:
    assert render.duration_text(milliseconds) == text


def test_long_and_dangerous_text_is_made_harmless() -> None:
    assert render.clean("a\x1b]0;title\x07b\u202ec") == "a\ufffd]0;title\ufffdb\ufffdc"
    assert render.clean("x" * 500, limit=10) == "x" * 9 + "…"


def test_numbers_that_json_does_not_know_become_null() -> None:
    status = wire.StatusReply(held_out_loss_now=float("nan"))
    assert render.plain(status)["held_out_loss_now"] is None


def test_a_full_disk_and_a_foreign_file_exit_with_their_codes(
    run: Run, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: OSError) -> Callable[[Path | None], Home]:
        def home_of(_flag: Path | None) -> Home:
            raise error

        return home_of

    monkeypatch.setattr("fullrank_node.cli.peers.home_of", fail(OSError(28, "No space left on device", "/x")))
    assert run("peers").code == ExitCode.DISK
    monkeypatch.setattr("fullrank_node.cli.peers.home_of", fail(PermissionError(13, "Permission denied", "/x")))
    assert run("peers").code == ExitCode.PERMISSION


def test_an_error_of_ours_is_not_hidden(run: Run, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def home_of(_flag: Path | None) -> Home:
        raise ZeroDivisionError

    monkeypatch.setattr("fullrank_node.cli.peers.home_of", home_of)
    with pytest.raises(ZeroDivisionError):
        run("peers")


def test_a_node_error_without_a_hint_has_no_hint_line(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_error(NodeError("it broke"), as_json=False)
    assert capsys.readouterr().err == "error: it broke\n"

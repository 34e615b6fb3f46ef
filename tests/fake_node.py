"""A node without network or training, behind the real control service: what the commands talk to in tests."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fullrank_node.api import access_token, last_status
from fullrank_node.api import control_pb2 as wire
from fullrank_node.api.server import ControlServer
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.home import Home, RunInfo

OTTER = bytes([1]) * 32
HERON = bytes([2]) * 32
SWARM = bytes([0x7F]) * 32
HEAD = bytes([41]) * 32
DIGEST = bytes([0x9C]) * 32


def a_status() -> wire.StatusReply:
    """A node in the middle of a delta, one round after the last final one."""
    return wire.StatusReply(
        node_name="quiet-otter",
        member_key=OTTER,
        swarm=SWARM,
        swarm_name="demo-7f3a",
        state=wire.NODE_TRAINING,
        round=41,
        slot=50,
        slot_ends_in_ms=12_000,
        training=wire.TrainingProgress(step=118, of=200, loss_first=1.97, loss_last=1.84, ends_in_ms=180_000),
        device=wire.ComputeDevice(name="RTX 3060", memory_total_bytes=12 * 10**9, memory_used_bytes=6_100_000_000),
        limits_acting=["idle only", "70 % duty"],
        peers_connected=14,
        members=12,
        certifiers=11,
        member=True,
        certifier=True,
        head=wire.CheckpointLine(id=HEAD, slot=50, round=41, digest=DIGEST),
        final=wire.CheckpointLine(id=OTTER, slot=49, round=40, digest=OTTER),
        finality=wire.Finality(votes=7, needed=8, reason="waiting for certifiers: slow-heron"),
        mine=wire.OwnContributions(accepted=35, late=1, refused=1, last_refusal="norm 14.2 above 10.0"),
        bytes_up=412_000_000,
        bytes_down=1_100_000_000,
        rank=wire.AccumulatedRank(effective=412.3, of=768, round=40, sampled=7, matrices=84),
        held_out_loss_base=1.79,
        held_out_loss_now=1.76,
    )


class FakeNode:
    """A NodeView whose replies a test sets, and which remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.status_reply = a_status()
        self.adopt_reply = wire.AdoptReply(note="There is no conflict.")
        self.failure: Exception | None = None
        self.silent = False
        self.stopped = asyncio.Event()

    def _note(self, request: Any) -> None:
        self.asked.append(request)
        if self.failure is not None:
            raise self.failure

    async def status(self, request: wire.StatusRequest) -> wire.StatusReply:
        self.asked.append(request)
        if self.silent:
            await asyncio.Event().wait()
        return self.status_reply

    async def history(self, request: wire.HistoryRequest) -> wire.HistoryReply:
        self._note(request)
        round_line = wire.RoundLine(
            checkpoint=wire.CheckpointLine(id=HEAD, slot=50, round=41, digest=DIGEST),
            kind="normal",
            standing="head",
            accepted=3,
            refused=1,
            num_tokens=120_000,
            update_norm=1.5,
            effective_rank=73.4,
        )
        accepted = wire.ContributionLine(
            id=OTTER, member=OTTER, base_round=39, round=40, verdict="accepted", weight=0.25, num_tokens=4096, mine=True
        )
        refused = wire.ContributionLine(
            id=HERON, member=OTTER, base_round=40, round=41, verdict="refused", rule="scale", mine=True
        )
        refused.detail = "found exponent 9, required at most 4"
        switch = wire.SwitchLine(
            at_ms=1_780_000_000_000,
            left_round=9,
            fork_round=6,
            deltas=8,
            deltas_kept=6,
            deltas_waiting=1,
            tokens=80_000,
            tokens_kept=60_000,
        )
        return wire.HistoryReply(rounds=[round_line], contributions=[accepted, refused], switches=[switch])

    async def peers(self, request: wire.PeersRequest) -> wire.PeersReply:
        self._note(request)
        evil = wire.PeerLine(key=HERON, name="\x1b[2Jslow-heron", connected=True, outbound=True, latency_ms=12.4)
        return wire.PeersReply(peers=[evil])

    async def members(self, request: wire.MembersRequest) -> wire.MembersReply:
        self._note(request)
        me = wire.MemberLine(
            key=OTTER,
            name="quiet-otter",
            contributes=True,
            certifies=True,
            standing="active",
            me=True,
            last_vote_slot=50,
            last_vote_ms=1,
        )
        invite = wire.InviteLine(grant=HEAD, invite_key=HERON, count=5, used=2, not_after_ms=1)
        return wire.MembersReply(members=[me], invites=[invite])

    async def invite(self, request: wire.InviteRequest) -> wire.InviteReply:
        self._note(request)
        return wire.InviteReply(link=f"fullrank:{SWARM.hex()}?invite={HERON.hex()}", note="nobody can dial this node")

    async def revoke(self, request: wire.RevokeRequest) -> wire.RevokeReply:
        self._note(request)
        if request.subject != "slow-heron":
            raise NodeError(
                f"no member is called {request.subject}", hint="See `fullrank members`.", exit_code=ExitCode.USAGE
            )
        reply = wire.RevokeReply(subject=HERON)
        if request.whole_tree:
            reply.admitted.extend(["bob", "cyd"])
            reply.retiring.append("bob")
        return reply

    async def retire(self, request: wire.RetireRequest) -> wire.RetireReply:
        self._note(request)
        heron = wire.CertifierLine(
            key=HERON, name="slow-heron", handle="slow-heron", last_vote_slot=12, last_vote_ms=1, connected=True
        )
        dan = wire.CertifierLine(key=HEAD, name="\x1b[2Jdan", handle="29292929")
        if not request.preview:
            heron.retirement_signatures = dan.retirement_signatures = 1
        return wire.RetireReply(
            retired=[heron, dan], remaining=["quiet-otter"], signatures_needed=1, stalled=True, peers_connected=2
        )

    async def adopt(self, request: wire.AdoptRequest) -> wire.AdoptReply:
        self._note(request)
        return self.adopt_reply

    async def leave_swarm(self, request: wire.LeaveSwarmRequest) -> wire.LeaveSwarmReply:
        self._note(request)
        return wire.LeaveSwarmReply()

    async def pause(self, request: wire.PauseRequest) -> wire.PauseReply:
        self._note(request)
        return wire.PauseReply()

    async def resume(self, request: wire.ResumeRequest) -> wire.ResumeReply:
        self._note(request)
        return wire.ResumeReply()

    async def finish(self, request: wire.FinishRequest) -> wire.FinishReply:
        self._note(request)
        return wire.FinishReply()

    async def stop(self, request: wire.StopRequest) -> wire.StopReply:
        self._note(request)
        self.stopped.set()
        return wire.StopReply(pid=os.getpid())


@contextlib.asynccontextmanager
async def serving(home: Home, view: FakeNode) -> AsyncIterator[ControlServer]:
    """A home on which a daemon runs, as far as the commands can tell."""
    home.create()
    with home.locked():
        socket = home.make_runtime_dir() / "control.sock"
        token = access_token.create_token(home.token_file)
        server = ControlServer(view, socket, token, remember=home.path / last_status.FILE_NAME)
        await server.start()
        home.write_run(RunInfo(pid=os.getpid(), socket=str(socket), token_file=str(home.token_file), started_at_ms=1))
        try:
            yield server
        finally:
            await server.stop()
            home.clear_run()


def set_up(home: Home) -> None:
    """A home that looks set up: the commands look at the presence of these files, the daemon at their content."""
    home.create()
    home.identity_file.write_bytes(b"key")
    home.identity_file.chmod(0o600)
    home.genesis_file.write_bytes(b"genesis")


async def main(home: Path) -> None:
    """A process that is a node until it is told to stop."""
    view = FakeNode()
    async with serving(Home(home), view):
        await view.stopped.wait()

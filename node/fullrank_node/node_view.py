"""What the owner sees of a running node and may ask of it: the daemon's side of the control service."""

import secrets
from typing import TYPE_CHECKING

from fullrank_node.adopting import adopt
from fullrank_node.api import control_pb2 as wire
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.people import member_line, name_of_member, note_last_vote
from fullrank_node.retiring import retire, revoke
from fullrank_node.root_actions import require_root, submit_or_explain
from fullrank_node.round_lines import contribution_line, history_of_round, round_lines, switch_line
from fullrank_node.status_reply import status_reply
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.link import Link
from fullrank_protocol.membership import (
    ROLE_CERTIFY,
    ROLE_CONTRIBUTE,
    make_grant,
    make_leave,
    root_action_id,
)
from fullrank_protocol.wire import objects_pb2

if TYPE_CHECKING:
    from fullrank_node.node import Node
    from fullrank_node.runner import Runner

MAX_LINK_PEERS = 6
"""Entrances named in a link: any of them suffices, and a link should fit into a message."""

HISTORY_LINES = 50


class DaemonView:
    """Implements `api.view.NodeView` for a `Node`."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    # ---- reading ---------------------------------------------------------------------------------

    async def status(self, request: wire.StatusRequest) -> wire.StatusReply:
        """What the node is doing and why."""
        del request
        return status_reply(self._node)

    async def history(self, request: wire.HistoryRequest) -> wire.HistoryReply:
        """Rounds and own contributions, or one round with everybody's."""
        runner = self._runner()
        if request.HasField("round"):
            return history_of_round(runner, request.round)
        limit = request.limit or HISTORY_LINES
        own = self._node.store.contributions(runner.key.public_key, limit=limit)
        lines = [contribution_line(row, runner) for row in reversed(own)]
        switches = [switch_line(row, runner) for row in self._node.store.switches(limit)]
        return wire.HistoryReply(rounds=round_lines(runner, limit=limit), contributions=lines, switches=switches)

    async def peers(self, request: wire.PeersRequest) -> wire.PeersReply:
        """Peers that are connected."""
        del request
        runner = self._node.runner
        members = runner.state.tree.head().members if runner is not None else None
        reply = wire.PeersReply()
        for info in self._node.network.peers():
            line = reply.peers.add(
                key=info.key,
                name=name_of_member(info.key, members),
                addresses=info.addresses,
                connected=info.connected,
                outbound=info.outbound,
                latency_ms=info.latency_ms or 0.0,
                last_seen_ms=info.last_seen_ms,
                head_slot=runner.exchange.head_slots.get(info.key, 0) if runner is not None else 0,
                member=members.is_member(info.key) if members is not None else False,
                certifier=info.key in members.certifiers if members is not None else False,
                archive=runner is not None and info.key in runner.exchange.archives,
            )
            if runner is not None:
                note_last_vote(line, info.key, runner.state.tree)
        return reply

    async def members(self, request: wire.MembersRequest) -> wire.MembersReply:
        """Members and invites as of the head."""
        del request
        runner = self._runner()
        members = runner.state.tree.head().members
        reply = wire.MembersReply()
        for key in sorted({*members.members, *members.former, *members.revoked, *members.excluded}):
            reply.members.append(member_line(key, runner))
        for grant in members.grants.values():
            reply.invites.add(
                grant=grant.id,
                invite_key=grant.invite_key,
                count=grant.count,
                used=grant.used,
                not_after_ms=grant.not_after_ms,
                certifies=bool(grant.roles & ROLE_CERTIFY),
                revoked=grant.revoked,
            )
        return reply

    # ---- membership ------------------------------------------------------------------------------

    async def invite(self, request: wire.InviteRequest) -> wire.InviteReply:
        """Grant an invite; needs this node's key to be a root key."""
        runner = self._runner()
        require_root(runner)
        invite = SigningKey.from_seed(secrets.token_bytes(32))
        roles = ROLE_CONTRIBUTE | (ROLE_CERTIFY if request.certify else 0)
        grant = make_grant(
            runner.key,
            swarm=runner.genesis.swarm,
            invite_key=invite.public_key,
            roles=roles,
            count=request.count,
            not_after_ms=runner.clock.now_ms() + request.valid_for_ms,
        )
        runner.submit(grant)
        if runner.genesis.membership.root_threshold > 1:
            note = f"{runner.genesis.membership.root_threshold} root keys must sign the same grant before it counts."
        else:
            note = "" if self._node.network.addresses() else "Nobody can dial this node: give another node's address."
        action = root_action_id(swarm=grant.swarm, type=objects_pb2.GRANT, payload=grant.payload)
        return wire.InviteReply(link=str(make_link(self._node, invite=invite.seed)), grant=action, note=note)

    async def revoke(self, request: wire.RevokeRequest) -> wire.RevokeReply:
        """Take a member's or an invite's rights away; needs this node's key to be a root key."""
        return revoke(self._runner(), request)

    async def retire(self, request: wire.RetireRequest) -> wire.RetireReply:
        """Retire certifiers that are gone for good; needs this node's key to be a root key."""
        return retire(self._runner(), request)

    async def adopt(self, request: wire.AdoptRequest) -> wire.AdoptReply:
        """Choose between two conflicting histories with a root key, or follow the root's choice."""
        return adopt(self._runner(), request)

    async def leave_swarm(self, request: wire.LeaveSwarmRequest) -> wire.LeaveSwarmReply:
        """Sign and publish that this member leaves."""
        runner = self._runner()
        if not runner.state.tree.head().members.is_member(runner.key.public_key):
            raise NodeError("this node is no member of the swarm", exit_code=ExitCode.CONFIG)
        envelope = make_leave(
            runner.key,
            swarm=runner.genesis.swarm,
            issued_at_ms=runner.clock.now_ms(),
            certifier_role_only=request.certifier_role_only,
        )
        submit_or_explain(runner, envelope)
        return wire.LeaveSwarmReply(note="It takes effect with the next checkpoint; keep the node running until then.")

    # ---- running ---------------------------------------------------------------------------------

    async def pause(self, request: wire.PauseRequest) -> wire.PauseReply:
        """Stop training; the node goes on serving and certifying."""
        await self._node.pause(for_ms=request.for_ms)
        return wire.PauseReply(note="Training is paused; the node goes on serving and certifying.")

    async def resume(self, request: wire.ResumeRequest) -> wire.ResumeReply:
        """Train again."""
        del request
        self._node.resume()
        return wire.ResumeReply(note="" if self._node.config.data.path else "This node has no data to train on.")

    async def finish(self, request: wire.FinishRequest) -> wire.FinishReply:
        """End after the delta in the making."""
        del request
        self._node.finish()
        return wire.FinishReply(note="The daemon ends after the delta in the making is published.")

    async def stop(self, request: wire.StopRequest) -> wire.StopReply:
        """Begin an orderly end."""
        import os

        del request
        self._node.stop.set()
        return wire.StopReply(pid=os.getpid())

    # ---- inside ----------------------------------------------------------------------------------

    def _runner(self) -> "Runner":
        runner = self._node.runner
        if runner is None:
            raise NodeError(
                f"the node is not ready yet: {self._node.phase}",
                hint="Try again in some seconds; `fullrank status` tells how far it is.",
                exit_code=ExitCode.RETRY,
            )
        return runner


def make_link(node: "Node", *, invite: bytes | None) -> Link:
    """The link to this swarm: own addresses first, then neighbours', with the newest final checkpoint pinned."""
    addresses = [*node.network.addresses(), *(a for info in node.network.peers() for a in info.addresses)]
    peers = tuple(dict.fromkeys(addresses))[:MAX_LINK_PEERS]
    final = node.runner.state.tree.final.checkpoint if node.runner is not None else None
    if final == node.genesis.swarm:
        final = None
    return Link(swarm=node.genesis.swarm, peers=peers, invite=invite, final=final)

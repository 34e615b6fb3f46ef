"""What the control service needs from the daemon, and nothing more.

Every method takes the request as it came (sizes bounded, fields unchecked) and returns the reply. A
request that cannot be met raises NodeError, whose message, hint and exit code reach the person.
"""

from typing import Protocol

from fullrank_node.api import control_pb2 as wire


class NodeView(Protocol):
    """A running node, as its owner sees and steers it. Methods run in the daemon's loop and return quickly."""

    async def status(self, request: wire.StatusRequest) -> wire.StatusReply:
        """What the node is doing and why; reads memory only, since it is asked every second."""
        ...

    async def history(self, request: wire.HistoryRequest) -> wire.HistoryReply:
        """Rounds and own contributions, or one round with everybody's contributions."""
        ...

    async def peers(self, request: wire.PeersRequest) -> wire.PeersReply:
        """Peers that are connected or were seen."""
        ...

    async def members(self, request: wire.MembersRequest) -> wire.MembersReply:
        """Members and invites as of the head."""
        ...

    async def invite(self, request: wire.InviteRequest) -> wire.InviteReply:
        """Grants an invite and returns the link to pass on; NodeError where this node holds no root key."""
        ...

    async def revoke(self, request: wire.RevokeRequest) -> wire.RevokeReply:
        """Takes a member's or an invite's rights away; NodeError where the subject is unknown or ambiguous."""
        ...

    async def retire(self, request: wire.RetireRequest) -> wire.RetireReply:
        """Takes certifiers out of the count; NodeError where one is unknown, or nobody would be left."""
        ...

    async def adopt(self, request: wire.AdoptRequest) -> wire.AdoptReply:
        """Ends a conflict of two final checkpoints; NodeError where the root has not chosen and this node cannot."""
        ...

    async def leave_swarm(self, request: wire.LeaveSwarmRequest) -> wire.LeaveSwarmReply:
        """Signs and publishes the record that this member leaves."""
        ...

    async def pause(self, request: wire.PauseRequest) -> wire.PauseReply:
        """Stops training, for a time or until resumed; the node goes on serving and certifying."""
        ...

    async def resume(self, request: wire.ResumeRequest) -> wire.ResumeReply:
        """Trains again."""
        ...

    async def finish(self, request: wire.FinishRequest) -> wire.FinishReply:
        """Ends the daemon after the current delta has been published."""
        ...

    async def stop(self, request: wire.StopRequest) -> wire.StopReply:
        """Begins an orderly end and returns at once."""
        ...

"""`fullrank members`: who belongs to the swarm and who may certify, as of the head."""

from fullrank_node.api import control_pb2 as wire
from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, JsonOption, home_of
from fullrank_node.cli.votes import last_vote_text


def members(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the swarm's members, who certifies and everybody's last vote, and the invites."""
    from fullrank_node.api.client import connect
    from fullrank_node.clock import SystemClock

    with connect(home_of(home)) as client:
        reply = client.members()
    if as_json:
        render.print_json(render.plain(reply))
        return
    now_ms = SystemClock().now_ms()
    columns = ("name", "key", "state", "roles", ">since slot", ">merged", ">refused", ">last round", "last vote")
    render.print_table("members", columns, [_member_cells(member, now_ms) for member in reply.members])
    if reply.invites:
        invite_columns = ("invite", ">used", ">of", "roles", "state")
        render.print_table("\ninvites", invite_columns, [_invite_cells(invite, now_ms) for invite in reply.invites])


def _member_cells(member: wire.MemberLine, now_ms: int) -> list[str]:
    roles = [
        word
        for held, word in ((member.root, "root"), (member.contributes, "trains"), (member.certifies, "certifies"))
        if held
    ]
    return [
        member.name + (" (this node)" if member.me else ""),
        render.short(member.key),
        member.standing,
        ", ".join(roles),
        str(member.admitted_slot),
        str(member.accepted),
        str(member.refused),
        str(member.last_round) if member.HasField("last_round") else "",
        last_vote_text(member, now_ms=now_ms) or ("none known" if member.certifies else ""),
    ]


def _invite_cells(invite: wire.InviteLine, now_ms: int) -> list[str]:
    left_ms = invite.not_after_ms - now_ms
    standing = "expired" if left_ms <= 0 else f"valid for {render.duration_text(left_ms)}"
    return [
        render.short(invite.invite_key),
        str(invite.used),
        str(invite.count),
        "trains, certifies" if invite.certifies else "trains",
        "revoked" if invite.revoked else standing,
    ]

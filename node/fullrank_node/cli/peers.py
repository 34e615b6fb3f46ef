"""`fullrank peers`: who is connected, and how."""

import typer

from fullrank_node.api import control_pb2 as wire
from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, JsonOption, home_of
from fullrank_node.cli.votes import last_vote_text


def peers(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show connected and known peers."""
    from fullrank_node.api.client import connect
    from fullrank_node.clock import SystemClock

    with connect(home_of(home)) as client:
        reply = client.peers()
    if as_json:
        render.print_json(render.plain(reply))
        return
    if not reply.peers:
        typer.echo("no peers yet; pass on a link from `fullrank invite`, or see `fullrank status` for what was tried")
        return
    now_ms = SystemClock().now_ms()
    ordered = sorted(reply.peers, key=lambda peer: (not peer.connected, peer.name, peer.key))
    columns = ("name", "key", "state", "role", ">latency", ">slot", "last vote", "seen", "address")
    render.print_table("peers", columns, [_cells(peer, now_ms) for peer in ordered])


def _cells(peer: wire.PeerLine, now_ms: int) -> list[str]:
    role = "certifier" if peer.certifier else "member" if peer.member else "reader"
    seen = f"{render.duration_text(max(0, now_ms - peer.last_seen_ms))} ago" if peer.last_seen_ms else ""
    state = ("dialled" if peer.outbound else "dialled us") if peer.connected else "away"
    return [
        peer.name,
        render.short(peer.key),
        state,
        role + (", archive" if peer.archive else ""),
        f"{peer.latency_ms:.0f} ms" if peer.latency_ms else "",
        str(peer.head_slot),
        last_vote_text(peer, now_ms=now_ms),
        "now" if peer.connected else seen,
        peer.addresses[0] if peer.addresses else "",
    ]

"""When a certifier voted last, as people read it: the first thing to look at when finality is missing."""

from fullrank_node.api import control_pb2 as wire
from fullrank_node.cli.render import duration_text


def last_vote_text(line: wire.CertifierLine | wire.MemberLine | wire.PeerLine, *, now_ms: int) -> str:
    """The slot that somebody voted for last, and how long ago it ended; empty where no vote is known."""
    if not line.HasField("last_vote_slot"):
        return ""
    return f"slot {line.last_vote_slot}, {duration_text(max(0, now_ms - line.last_vote_ms))} ago"

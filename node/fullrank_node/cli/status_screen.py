"""What `status` shows: a status reply in, labelled lines out. Every state has its reason."""

from fullrank_node.api import control_pb2 as wire
from fullrank_node.cli.render import Line, bytes_text, clean, duration_text, plural
from fullrank_node.cli.votes import last_vote_text

_GAP = "   "

_STATE_WORDS = {
    wire.NODE_STATE_UNSPECIFIED: "unknown",
    wire.NODE_STARTING: "starting",
    wire.NODE_SYNCING: "syncing",
    wire.NODE_TRAINING: "training",
    wire.NODE_WAITING: "waiting",
    wire.NODE_PAUSED: "paused",
    wire.NODE_NO_PEERS: "no peers",
    wire.NODE_FINISHING: "finishing",
    wire.NODE_STOPPING: "stopping",
    wire.NODE_TROUBLED: "in trouble",
}

ID_DIGITS = 12
"""Digits of a checkpoint's id, as `fullrank adopt` takes them."""

MAX_ADVICE_CHARACTERS = 600
"""Names of many missing certifiers fit into a command."""

DIGEST_DIGITS = 16
"""Digits of a model digest as shown: enough to compare two screens by eye."""


def status_lines(status: wire.StatusReply) -> list[Line]:
    """The screen, line by line; lines about which nothing is known are left out."""
    lines = [
        ("", _headline(status)),
        ("device", _device(status)),
        ("loss", _loss(status)),
        ("peers", _peers(status)),
        ("mine", _mine(status)),
        ("model", _model(status)),
        ("update", _rank(status)),
        ("final", _finality(status)),
        *_stall(status),
        *_conflict(status),
        ("disk", _disk(status)),
    ]
    lines += [("trouble", f"cannot reach {clean(f.address)}: {clean(f.detail)}") for f in status.connection_failures]
    lines += [("warning", clean(warning)) for warning in status.warnings if warning != status.reason]
    return [(label, text) for label, text in lines if text]


def state_text(status: wire.StatusReply) -> str:
    """The state in words, with its reason where it has one."""
    words = _STATE_WORDS.get(status.state, "unknown")
    return f"{words} ({clean(status.reason)})" if status.reason else words


def _headline(status: wire.StatusReply) -> str:
    training = status.training
    parts = [
        f"{clean(status.node_name)}  {state_text(status)}",
        f"swarm {clean(status.swarm_name)}" if status.swarm_name else "",
        f"round {status.round}",
    ]
    if status.state in (wire.NODE_TRAINING, wire.NODE_FINISHING) and training.of:
        parts.append(f"step {training.step}/{training.of}")
        parts.append(f"about {duration_text(training.ends_in_ms)} left" if training.ends_in_ms else "")
    elif status.slot_ends_in_ms:
        parts.append(f"slot {status.slot} ends in {duration_text(status.slot_ends_in_ms)}")
    return _joined(parts)


def _device(status: wire.StatusReply) -> str:
    device = status.device
    if not device.name:
        return ""
    name = clean(device.name)
    if device.memory_total_bytes:
        name += f" {bytes_text(device.memory_total_bytes)}"
    if device.memory_used_bytes:
        name += f", {bytes_text(device.memory_used_bytes)} used"
    threads = plural(device.threads, "thread") if device.threads else ""
    limits = "limits  " + ", ".join(clean(limit) for limit in status.limits_acting) if status.limits_acting else ""
    return _joined([name, threads, limits])


def _loss(status: wire.StatusReply) -> str:
    training, parts = status.training, []
    if training.HasField("loss_last"):
        start = f" (start {training.loss_first:.3f})" if training.HasField("loss_first") else ""
        parts.append(f"{training.loss_last:.3f}{start}")
    if status.HasField("held_out_loss_base"):
        now = f" -> {status.held_out_loss_now:.3f}" if status.HasField("held_out_loss_now") else ""
        parts.append(f"held-out, shared model {status.held_out_loss_base:.3f}{now}")
    return _joined(parts)


def _peers(status: wire.StatusReply) -> str:
    parts = [f"{status.peers_connected} connected"]
    if status.peers_known:
        parts.append(f"{status.peers_known} known")
    if status.reachability:
        parts.append(clean(status.reachability))
    members = ""
    if status.members:
        members = f"swarm of {plural(status.members, 'member')}, {plural(status.certifiers, 'certifier')}"
        role = "certifier" if status.certifier else "member" if status.member else "not admitted yet"
        members += f" (this node: {role})"
    return _joined([", ".join(parts), members])


def _mine(status: wire.StatusReply) -> str:
    mine = status.mine
    total = mine.accepted + mine.refused + mine.late + mine.pending
    counts = [
        f"{count} {word}"
        for count, word in (
            (mine.accepted, "accepted"),
            (mine.pending, "pending"),
            (mine.late, "late"),
            (mine.refused, "refused"),
        )
        if count
    ]
    text = plural(total, "delta") + (": " + ", ".join(counts) if counts else "")
    if mine.refused and mine.last_refusal:
        text += f" ({clean(mine.last_refusal)})"
    share = status.training.share_of_time
    training = f"{100 * share:.0f} % of the time training" if share > 0 else ""
    return _joined([text, f"up {bytes_text(status.bytes_up)}  down {bytes_text(status.bytes_down)}", training])


def _model(status: wire.StatusReply) -> str:
    head, final = status.head, status.final
    if not head.id:
        return ""
    if final.id == head.id:
        text = f"round {head.round} final ({_votes(status)})"
    elif final.round == head.round:
        # An empty checkpoint after the final one changes no weights: what people train and pull is final.
        text = f"round {head.round} final"
    else:
        is_between = final.round < status.justified.round
        justified = f"justified to round {status.justified.round}, " if is_between else ""
        text = f"round {head.round}, {justified}final to round {final.round}"
    parts = [text + (f", digest {head.digest.hex()[:DIGEST_DIGITS]}…" if head.digest else "")]
    return _joined(parts)


def _rank(status: wire.StatusReply) -> str:
    """How much room the accumulated update fills; of which round, where that is not the head's."""
    rank = status.rank
    if not rank.of:
        return ""
    when = f" in round {rank.round}" if rank.round != status.head.round else ""
    sampled = f" ({rank.sampled} of {plural(rank.matrices, 'module')} sampled)" if rank.sampled < rank.matrices else ""
    return f"effective rank {rank.effective:.0f} of {rank.of}{when}{sampled}"


def _finality(status: wire.StatusReply) -> str:
    if not status.head.id or status.final.round == status.head.round or status.HasField("stall"):
        return ""
    return clean(status.finality.reason) or f"{_votes(status)} have voted for the head"


def _stall(status: wire.StatusReply) -> list[Line]:
    """Who is there where finality is long missing, what stands so far, and what can be done."""
    if not status.HasField("stall"):
        return []
    stall = status.stall
    ago = duration_text(max(0, status.now_ms - stall.since_ms))
    there = ", ".join(clean(line.name) for line in stall.present) or "nobody"
    num_all = len(stall.present) + len(stall.missing)
    missing = ", ".join(f"{clean(line.name)} ({_last_vote(line, status.now_ms)})" for line in stall.missing)
    provisional = stall.provisional
    so_far = (
        f"round {provisional.round} of slot {provisional.slot} is provisionally final: `fullrank pull --provisional`"
    )
    return [
        (
            "STALLED",
            f"nothing has become final since slot {stall.since_slot}, {ago} ago: "
            f"{len(stall.present)} of {plural(num_all, 'certifier')} are there ({there})",
        ),
        ("missing", missing),
        ("so far", so_far if provisional.id else "nothing is provisionally final"),
        ("what now", clean(stall.advice, limit=MAX_ADVICE_CHARACTERS)),
    ]


def _last_vote(line: wire.CertifierLine, now_ms: int) -> str:
    vote = last_vote_text(line, now_ms=now_ms)
    return f"last vote: {vote}" if vote else "no vote known"


def _conflict(status: wire.StatusReply) -> list[Line]:
    """The two final checkpoints that contradict each other, and what can be done."""
    if not status.HasField("conflict"):
        return []
    conflict = status.conflict
    return [
        ("CONFLICT", "two final checkpoints contradict each other; this node neither votes nor proposes"),
        ("here", conflict_text(conflict.ours)),
        ("other", conflict_text(conflict.theirs)),
        ("what now", clean(conflict.advice, limit=MAX_ADVICE_CHARACTERS)),
    ]


def conflict_text(line: wire.ConflictLine) -> str:
    """A conflicting checkpoint in a line, with who voted for it."""
    checkpoint = line.checkpoint
    voters = ", ".join(map(clean, line.voters)) or "nobody known here"
    return (
        f"{checkpoint.id.hex()[:ID_DIGITS]} of slot {checkpoint.slot}, round {checkpoint.round}, voted for by {voters}"
    )


def _votes(status: wire.StatusReply) -> str:
    return f"{status.finality.votes} of {plural(status.certifiers, 'certifier')}"


def _disk(status: wire.StatusReply) -> str:
    if not status.disk_used_bytes:
        return ""
    limit = f" of {bytes_text(status.disk_limit_bytes)}" if status.disk_limit_bytes else ""
    limit += " (archive)" if status.archive else ""
    free = f", {bytes_text(status.disk_free_bytes)} free" if status.disk_free_bytes else ""
    up = f"running for {duration_text(status.uptime_ms)}" if status.uptime_ms else ""
    return _joined([f"{bytes_text(status.disk_used_bytes)} used{limit}{free}", up])


def _joined(parts: list[str]) -> str:
    return _GAP.join(part for part in parts if part)

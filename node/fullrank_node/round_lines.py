"""Rounds and contributions as `history` shows them."""

from typing import TYPE_CHECKING

from fullrank_node.api import control_pb2 as wire
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.history import ContributionRow, RoundRow, SwitchRow
from fullrank_node.people import name_of_member
from fullrank_protocol.chain import ChainState, common_ancestor, is_ancestor
from fullrank_protocol.checkpoint import CheckpointKind
from fullrank_protocol.errors import Rule

if TYPE_CHECKING:
    from fullrank_node.runner import Runner


def round_lines(runner: "Runner", *, limit: int) -> list[wire.RoundLine]:
    """The newest checkpoints this node has seen, oldest first."""
    return [round_line(row, runner) for row in runner.store.rounds(limit)]


def round_line(row: RoundRow, runner: "Runner") -> wire.RoundLine:
    """One checkpoint with its standing now."""
    line = wire.RoundLine(
        checkpoint=wire.CheckpointLine(id=row.checkpoint, slot=row.slot, round=row.round, digest=row.digest),
        kind=CheckpointKind(row.kind).name.lower(),
        standing="side",
        accepted=row.num_accepted,
        adopted_at_ms=row.received_at_ms,
    )
    if row.effective_rank is not None:
        line.effective_rank = row.effective_rank
    if row.heldout_loss is not None:
        line.held_out_loss = row.heldout_loss
    node = runner.state.tree.nodes.get(row.checkpoint)
    if node is None or node.checkpoint is None:
        return line
    checkpoint = node.checkpoint
    line.standing = standing(node.state, runner)
    line.proposer = checkpoint.proposer
    line.proposer_name = name_of_member(checkpoint.proposer, node.state.members)
    line.refused = len(checkpoint.refused)
    line.num_tokens = sum(accepted.contribution.num_tokens for accepted in checkpoint.accepted)
    line.num_bytes = sum(accepted.contribution.blob.num_bytes for accepted in checkpoint.accepted)
    line.update_norm = checkpoint.update_norm.value()
    return line


def standing(state: ChainState, runner: "Runner") -> str:
    """How sure a checkpoint is: final, justified, head (on the head's chain), or side."""
    tree = runner.state.tree
    if tree.is_final(state):
        return "final"
    if not is_ancestor(state.here, tree.head(), lookup=tree.lookup):
        return "side"
    return "justified" if tree.is_justified(state.id) else "head"


def contribution_line(row: ContributionRow, runner: "Runner") -> wire.ContributionLine:
    """One contribution with the verdict on it."""
    tree = runner.state.tree
    base = tree.lookup(row.base_checkpoint)
    line = wire.ContributionLine(
        id=row.contribution_id,
        member=row.member,
        member_name=name_of_member(row.member, tree.head().members),
        base_round=base.round if base is not None else 0,
        slot=row.base_slot + 1,
        verdict=row.status,
        rule=Rule(row.rule).name.lower() if row.rule else "",
        detail=row.detail,
        weight=row.weight.value() if row.weight is not None else 0.0,
        num_tokens=row.num_tokens,
        num_steps=row.num_steps,
        loss_first=row.loss_first_micro / 1e6,
        loss_last=row.loss_last_micro / 1e6,
        num_bytes=row.num_bytes,
        created_at_ms=row.created_at_ms,
        mine=row.member == runner.key.public_key,
    )
    if row.round is not None:
        line.round = row.round
    return line


def switch_line(row: SwitchRow, runner: "Runner") -> wire.SwitchLine:
    """A branch that this node left, and how much of its training the head's chain has by now."""
    rows = runner.store.verdicts_on(row.contributions)
    kept = [each for each in rows if each.status == "accepted"]
    waiting = [each for each in rows if each.status == "pending" and _may_still_come(each, runner)]
    return wire.SwitchLine(
        at_ms=row.at_ms,
        left_round=row.left_round,
        fork_round=row.fork_round,
        deltas=len(row.contributions),
        deltas_kept=len(kept),
        deltas_waiting=len(waiting),
        tokens=sum(each.num_tokens for each in rows),
        tokens_kept=sum(each.num_tokens for each in kept),
    )


def _may_still_come(row: ContributionRow, runner: "Runner") -> bool:
    tree = runner.state.tree
    base, head = tree.lookup(row.base_checkpoint), tree.head()
    if base is None:
        return False
    age = head.round - common_ancestor(base, head, lookup=tree.lookup).round
    return age <= tree.genesis.rule.max_staleness_rounds


def history_of_round(runner: "Runner", number: int) -> wire.HistoryReply:
    """One round on the head's chain with everybody's contributions.

    Raises:
        NodeError: There is no such round.
    """
    tree = runner.state.tree
    node = next((n for n in tree.chain(tree.head().id) if n.checkpoint and n.checkpoint.round == number), None)
    if node is None or node.checkpoint is None:
        raise NodeError(f"there is no round {number}: the head is round {tree.head().round}", exit_code=ExitCode.USAGE)
    rows = {row.contribution_id: row for row in runner.store.contributions(limit=100_000)}
    decided = [a.contribution.id for a in node.checkpoint.accepted] + [
        r.contribution.id for r in node.checkpoint.refused
    ]
    row_of_round = next((row for row in runner.store.rounds(100_000) if row.checkpoint == node.state.id), None)
    return wire.HistoryReply(
        rounds=[round_line(row_of_round, runner)] if row_of_round is not None else [],
        contributions=[contribution_line(rows[i], runner) for i in decided if i in rows],
    )

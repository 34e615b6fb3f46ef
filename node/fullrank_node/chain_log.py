"""Writes down what became of contributions and checkpoints, for `history` and `status`.

Verdicts are those of the head's chain: when the head moves to another branch, the verdicts of the branch that
it left are taken back, and what can be accepted on no later checkpoint any more is late.
"""

import logging

from fullrank_node.clock import Clock
from fullrank_node.history import ContributionRow, RoundRow, SwitchRow
from fullrank_node.store import Store
from fullrank_protocol.chain import ChainState, common_ancestor
from fullrank_protocol.checkpoint import Checkpoint, contributions
from fullrank_protocol.contribution import Contribution, open_contribution
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import ProtocolError, Rule
from fullrank_protocol.fork_choice import Node
from fullrank_protocol.round_state import RoundState

log = logging.getLogger(__name__)


class ChainLog:
    """Keeps the history of one node in its store."""

    def __init__(self, *, store: Store, state: RoundState, key: bytes, clock: Clock) -> None:
        self._store = store
        self._state = state
        self._key = key
        self._clock = clock
        self._noted = self._start()

    def note_contribution(self, envelope: Envelope) -> None:
        """A valid contribution arrived; what becomes of it follows."""
        self._note(open_contribution(envelope, self._state.genesis), status="pending")

    def note_drop(self, envelope: Envelope, *, rule: Rule | None, detail: str) -> None:
        """A contribution was not taken; its author reads why."""
        try:
            contribution = open_contribution(envelope, self._state.genesis)
        except ProtocolError:
            return
        status = "late" if rule in (None, Rule.STALE) else "refused"
        self._note(contribution, status=status, rule=rule, detail=detail)
        self._store.record_verdict(contribution.id, status=status, rule=rule or 0, detail=detail)

    def note_chain(self, head: bytes) -> None:
        """Write down the head's chain as far as it differs from the one written down before."""
        tree = self._state.tree
        old, new = tree.state(self._noted), tree.state(head)
        fork = common_ancestor(old, new, lookup=tree.lookup)
        left = [_checkpoint(node) for node in tree.chain(old.id, above_slot=fork.slot)]
        taken = [_checkpoint(node) for node in tree.chain(new.id, above_slot=fork.slot)]
        for checkpoint in left:
            for contribution in contributions(checkpoint):
                self._store.record_verdict(contribution.id, status="pending")
        for checkpoint in taken:
            self._note_checkpoint(checkpoint)
        self._note_switch(old, fork, left, taken)
        self._noted = head
        self._note_late(new)

    def _note_switch(self, old: ChainState, fork: ChainState, left: list[Checkpoint], taken: list[Checkpoint]) -> None:
        """Training that only the branch just left had accepted; where a rival merged the same, nothing was lost."""
        ours, theirs = ([a.contribution.id for c in side for a in c.accepted] for side in (left, taken))
        if set(ours) <= set(theirs):
            return
        self._store.note_switch(
            SwitchRow(
                at_ms=self._clock.now_ms(),
                left_checkpoint=old.id,
                left_round=old.round,
                fork_round=fork.round,
                contributions=tuple(ours),
            )
        )
        log.info(
            "Went over to a heavier branch at round %d: %d of %d deltas of the one left are in it, the rest is offered "
            "again.",
            fork.round,
            len(set(ours) & set(theirs)),
            len(ours),
        )

    def _start(self) -> bytes:
        """Everything up to the last final checkpoint was written down in an earlier life."""
        final = self._store.final()
        return final if final is not None and final in self._state.tree.nodes else self._state.genesis.swarm

    def _note_checkpoint(self, checkpoint: Checkpoint) -> None:
        self._store.note_round(
            RoundRow(
                checkpoint=checkpoint.id,
                slot=checkpoint.slot,
                round=checkpoint.round,
                kind=checkpoint.kind,
                digest=checkpoint.model_digest,
                num_accepted=len(checkpoint.accepted),
                received_at_ms=self._clock.now_ms(),
            )
        )
        for accepted in checkpoint.accepted:
            self._note(accepted.contribution, status="pending")
            self._store.record_verdict(
                accepted.contribution.id,
                status="accepted",
                weight=accepted.weight,
                checkpoint=checkpoint.id,
                round=checkpoint.round,
            )
        for refused in checkpoint.refused:
            self._note(refused.contribution, status="pending")
            self._store.record_verdict(
                refused.contribution.id,
                status="refused",
                rule=refused.rule,
                detail=refused.detail,
                checkpoint=checkpoint.id,
                round=checkpoint.round,
            )

    def _note_late(self, head: ChainState) -> None:
        """Own contributions that wait in vain: too many rounds have passed since their base."""
        tree = self._state.tree
        most = self._state.genesis.rule.max_staleness_rounds
        for row in self._store.contributions(self._key, limit=2 * most + 2):
            base = tree.lookup(row.base_checkpoint)
            if row.status != "pending" or base is None:
                continue
            rounds = head.round - common_ancestor(base, head, lookup=tree.lookup).round
            if rounds > most:
                detail = f"is {rounds} rounds old, at most {most} are accepted"
                self._store.record_verdict(row.contribution_id, status="late", rule=Rule.STALE, detail=detail)

    def _note(self, contribution: Contribution, *, status: str, rule: Rule | None = None, detail: str = "") -> None:
        self._store.note_contribution(
            ContributionRow(
                contribution_id=contribution.id,
                member=contribution.member,
                base_checkpoint=contribution.base_checkpoint,
                base_slot=contribution.base_slot,
                num_tokens=contribution.num_tokens,
                num_steps=contribution.num_steps,
                loss_first_micro=contribution.loss_first_micro,
                loss_last_micro=contribution.loss_last_micro,
                num_bytes=contribution.blob.num_bytes,
                created_at_ms=contribution.created_at_ms,
                status=status,
                rule=rule or 0,
                detail=detail,
            )
        )


def _checkpoint(node: Node) -> Checkpoint:
    assert node.checkpoint is not None
    return node.checkpoint

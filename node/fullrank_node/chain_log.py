"""Writes down what became of contributions and checkpoints, for `history` and `status`."""

from fullrank_node.clock import Clock
from fullrank_node.history import ContributionRow, RoundRow
from fullrank_node.store import Store
from fullrank_protocol.contribution import Contribution, open_contribution
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import ProtocolError, Rule
from fullrank_protocol.round_state import RoundState


class ChainLog:
    """Keeps the history of one node in its store."""

    def __init__(self, *, store: Store, state: RoundState, key: bytes, clock: Clock) -> None:
        self._store = store
        self._state = state
        self._key = key
        self._clock = clock
        self._noted: set[bytes] = {state.genesis.swarm}

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
        """Write down every checkpoint on the head's chain that is not written down on it yet."""
        tree = self._state.tree
        new = []
        node = tree.nodes[head]
        while node.state.id not in self._noted and node.checkpoint is not None:
            new.append(node)
            node = tree.nodes[node.checkpoint.parent]
        for node in reversed(new):
            checkpoint = node.checkpoint
            assert checkpoint is not None
            self._noted.add(checkpoint.id)
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

"""A node as a file of vectors describes it: what it was told, what its deltas and merges come to, and what it holds."""

from typing import Any

from chains import Story
from hostile.lies import Context, Outcome
from machines import Machine, some
from swarms import Swarm, seed_of

from fullrank_protocol import round_io as io
from fullrank_protocol.envelope import Envelope, open_envelope
from fullrank_protocol.errors import Rule
from fullrank_protocol.genesis import open_genesis
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.intake import receive
from fullrank_protocol.scaled import Scaled

Found = tuple[Outcome, Rule | None, str]
"""What is said, by which rule, with which words."""


def described(context: Context) -> dict[str, Any]:
    """A context as a file holds it; `merges` are added by the receiver that was asked for them."""
    genesis = context.tale.swarm.genesis
    return {
        "name": context.name,
        "genesis": genesis.envelope.encode().hex(),
        "base_digest": Machine(context.tale).state.base_digest.hex(),
        "node_seed": seed_of(context.node).hex(),
        "now_ms": genesis.slot_start_ms(context.slot) + genesis.timing.slot_window_ms // 2,
        "told": [envelope.encode().hex() for envelope in context.told],
        "faulty_deltas": [
            {"contribution": contribution.hex(), "rule": int(rule), "detail": detail}
            for contribution, (rule, detail) in context.faulty.items()
        ],
        "not_finite": sorted(each.hex() for each in context.spoils),
    }


class Receiver(Machine):
    """The node of a context, which has been told everything and has done what was due."""

    def __init__(
        self, context: dict[str, Any], *, learns_merges: bool = False, weights: dict[bytes, Scaled] | None = None
    ) -> None:
        genesis = open_genesis(bytes.fromhex(context["genesis"]))
        super().__init__(Story(Swarm(genesis)))
        self.key = SigningKey.from_seed(bytes.fromhex(context["node_seed"]))
        self.state.key = self.key.public_key
        self.state.base_digest = bytes.fromhex(context["base_digest"])
        self.merges: list[dict[str, Any]] = [] if learns_merges else context["merges"]
        self._learns = learns_merges
        self._weights = weights or {}
        self._not_finite = {bytes.fromhex(each) for each in context["not_finite"]}
        for each in context["faulty_deltas"]:
            contribution = bytes.fromhex(each["contribution"])
            self.verdicts[contribution] = io.DeltaChecked(
                contribution_id=contribution, rule=Rule(each["rule"]), detail=each["detail"]
            )
        self.now_ms = context["now_ms"]
        told = (open_envelope(bytes.fromhex(data), swarm=genesis.swarm) for data in context["told"])
        for envelope in told:  # As after a start: taken in from the store, then acted upon.
            for _ in receive(self.state, envelope, self.now_ms):
                pass
        self.feed(io.Tick())

    def told(self, envelope: Envelope) -> Found:
        """Hand an object in; whether its sender is to blame is noted."""
        self.blames_sender = False
        actions = self.feed(io.ObjectReceived(envelope=envelope))
        for drop in some(io.Drop, actions):
            if drop.envelope.id == envelope.id:
                self.blames_sender = drop.blames_sender
                outcome = Outcome.IGNORED if drop.rule is None else Outcome.REFUSED
                return outcome, drop.rule, drop.detail
        for refusal in some(io.SignRefusal, actions):
            return Outcome.DOES_NOT_HOLD, refusal.rule, refusal.detail
        if self.state.parked.holds(envelope.id):
            return Outcome.WAITS, None, ""
        if envelope.id in self.state.left_behind and any(each.envelope == envelope for each in some(io.Keep, actions)):
            return Outcome.LEFT_BEHIND, None, ""
        if actions and (some(io.SignEvidence, actions) or envelope.id in self.state.evidence):
            return Outcome.EVIDENCE, None, ""
        if [type(action) for action in actions] == [io.Keep]:
            return Outcome.KEPT, None, ""
        assert not actions, f"nothing is said and yet something is done: {actions}"
        return Outcome.NOTHING, None, ""

    def merged(self, merge: io.Merge) -> io.Merged | io.MergeFailed:  # type: ignore[override]
        """What the context says that merging these gives."""
        if any(each in self._not_finite for each in merge.key.contribution_ids):
            return io.MergeFailed(key=merge.key, rule=Rule.NON_FINITE, detail="makes up.weight not finite")
        if self._learns:
            self._learn(super().merged(merge))
        wanted = (merge.key.parent.hex(), [each.hex() for each in merge.key.contribution_ids])
        found = next(each for each in self.merges if (each["parent"], each["contributions"]) == wanted)
        return io.Merged(
            key=merge.key,
            weights=tuple(Scaled(mantissa=m, exponent=e) for m, e in found["weights"]),
            update_norm=Scaled(mantissa=found["update_norm"][0], exponent=found["update_norm"][1]),
            model_digest=bytes.fromhex(found["model_digest"]),
        )

    def _learn(self, merged: io.Merged) -> None:
        pairs = zip(merged.key.contribution_ids, merged.weights, strict=True)
        weights = [self._weights.get(contribution, weight) for contribution, weight in pairs]
        self.merges.append(
            {
                "parent": merged.key.parent.hex(),
                "contributions": [each.hex() for each in merged.key.contribution_ids],
                "weights": [[each.mantissa, each.exponent] for each in weights],
                "update_norm": [merged.update_norm.mantissa, merged.update_norm.exponent],
                "model_digest": merged.model_digest.hex(),
            }
        )

    def holdings(self) -> dict[str, object]:
        """Everything that this node believes in, builds on or will act upon."""
        state, tree = self.state, self.state.tree
        return {
            "head": tree.head(),
            "final": tree.final,
            "conflict": tree.conflict,
            "checkpoints": {each: (node.verdict, tuple(node.children)) for each, node in tree.nodes.items()},
            "votes": {each: frozenset(node.voters) for each, node in tree.nodes.items()},
            "justified": {each for each, node in tree.nodes.items() if node.is_justified},
            "candidates": {each: (c.status, c.rule) for each, c in state.candidates.items()},
            "records": set(state.records),
            "evidence": set(state.evidence),
            "own votes": set(state.own_votes),
            "refusals": {each: frozenset(authors) for each, authors in state.refused_by.items()},
            "chosen": tree.chosen,
            "snapshots": {author: hint.id for author, hint in state.arrival.snapshots.items()},
            "waiting": {each: [e.id for e in state.parked.waiting_for(each)] for each in state.parked},
            "turns": {turn: frozenset(ids) for turn, ids in state.in_turn.items() if ids},
            "open": set(state.unverified),
            "kept": [envelope.id for envelope in self.kept],
        }

"""Lies about votes, places, contributions, numbers, evidence and hints."""

from collections.abc import Iterator
from typing import Any

from chains import Story, key, swarm_with
from hostile.lies import FOUR, Context, Outcome, objects_of
from swarms import id_of, key_of

from fullrank_protocol.blob import BlobRef
from fullrank_protocol.chain import ChainState
from fullrank_protocol.checkpoint import (
    AcceptedContribution,
    CheckpointKind,
    CorrectedContribution,
    RefusedContribution,
    make_checkpoint,
)
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import Rule
from fullrank_protocol.membership import make_revocation
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.snapshot import make_snapshot
from fullrank_protocol.vote import make_choice, make_refusal
from fullrank_protocol.wire import objects_pb2 as wire


def _seal(tale: Story, by: str, **fields: Any) -> Envelope:
    return make_checkpoint(key_of(by), swarm=tale.swarm.id, **fields)


# ---- votes, places, numbers ------------------------------------------------------------------------


def _votes_and_numbers() -> Context:
    """Four certifiers; checkpoints of slots 1, 2 and 3, the first final and the second justified; one beside them."""
    tale = Story(swarm_with(*FOUR))
    one = tale.round_of(tale.genesis, slot=1)
    wrong = tale.contribution("cyd")
    two = tale.grow(
        one,
        slot=2,
        by="bob",
        accepted=[tale.contribution("bob")],
        refused=[wrong],
        votes=tale.votes("ada bob cyd", one),
    )
    three = tale.grow(two, slot=3, by="cyd", votes=tale.votes("ada bob cyd", two))
    rival = tale.grow(tale.genesis, slot=2, by="dan")
    snapshot = make_snapshot(
        key_of("ada"), swarm=tale.swarm.id, checkpoint=two.id, slot=2, blob=BlobRef(id=id_of("snapshot"), num_bytes=9)
    )
    loose = tale.contribution("dan", three)
    told = [*objects_of(tale, one, two, three, rival), tale.vote("dan", two).envelope, snapshot, loose.envelope]
    context = Context(name="three checkpoints", tale=tale, node="bob", slot=4, told=told)
    context.faulty[wrong.id] = (Rule.RANK, "is too high")
    _lying_votes(context, one, two, three, rival)
    _lying_places(context, three)
    _lying_contributions(context, three, wrong)
    _lying_numbers(context, three)
    _lying_hints(context, two, three, snapshot)
    return context


def _lying_votes(context: Context, one: ChainState, two: ChainState, three: ChainState, rival: ChainState) -> None:
    tale, swarm = context.tale, context.tale.swarm
    to_three: dict[str, Any] = {"target": three.id, "target_slot": 3}
    lies = {
        "a vote whose source is the genesis": swarm.vote("ada", **to_three),
        "a vote whose source is an older justified checkpoint": swarm.vote(
            "ada", **to_three, source=one.id, source_slot=1
        ),
        "a vote with another slot of its source": swarm.vote("ada", **to_three, source=two.id, source_slot=1),
        "a vote whose source is nowhere": swarm.vote("ada", **to_three, source=id_of("nowhere"), source_slot=2),
        "a vote with another slot of its target": swarm.vote(
            "ada", target=three.id, target_slot=4, source=two.id, source_slot=2
        ),
        "a vote with the slot of another target": swarm.vote("ada", target=one.id, target_slot=2),
        "a vote of a stranger": tale.vote("zoe", three),
    }
    for what, vote in lies.items():
        context.add(what, Rule.VOTE, vote)
    unknown = swarm.vote("ada", target=id_of("unknown"), target_slot=4, source=three.id, source_slot=3)
    context.add("a vote for something unknown", Outcome.WAITS, unknown)
    context.add("a vote sent again", Outcome.NOTHING, context.told[4])
    carried = {
        **lies,
        "a vote for a checkpoint beside its chain": tale.vote("ada", rival),
        "a vote for something unknown": swarm.vote("ada", target=id_of("unknown"), target_slot=3),
        "a vote for what is final": tale.vote("dan", one),
    }
    for what, vote in carried.items():
        context.add(f"a checkpoint that carries {what}", Rule.VOTE, context.next(three, slot=5, votes=[vote]))
    again = context.next(three, slot=4, votes=tale.votes("ada", two))
    context.add("a checkpoint that carries a vote again", Rule.DUPLICATE, again)
    good_and_bad = [tale.vote("dan", two), lies["a vote of a stranger"], *tale.votes("ada bob cyd", three)]
    mixed = context.next(three, slot=4, votes=good_and_bad)
    context.add("a checkpoint with one bad vote among good ones", Rule.VOTE, mixed)


def _lying_places(context: Context, three: ChainState) -> None:
    tale = context.tale
    mine = [tale.contribution("ada", three)]
    context.add("a checkpoint in the slot of its parent", Rule.SLOT, context.next(three, slot=3))
    context.add("a checkpoint in an earlier slot than its parent", Rule.SLOT, context.next(three, slot=2))
    context.add("an empty checkpoint with the next round", Rule.ROUND, context.next(three, slot=4, round=3))
    context.add("an empty checkpoint with an earlier round", Rule.ROUND, context.next(three, slot=4, round=1))
    same = context.next(three, slot=4, accepted=mine, round=2)
    context.add("a normal checkpoint with its parent's round", Rule.ROUND, same)
    after_next = context.next(three, slot=4, accepted=mine, round=4)
    context.add("a normal checkpoint that skips a round", Rule.ROUND, after_next)
    context.add("a checkpoint of a stranger", Rule.MEMBERSHIP, context.next(three, slot=4, by="zoe"))
    corrected = [CorrectedContribution(contribution_id=id_of("old"), weight=Scaled.of(1.0))]
    correction: dict[str, Any] = {
        "kind": CheckpointKind.CORRECTION,
        "corrected": corrected,
        "update_norm": Scaled.of(1.0),
    }
    context.add("a correction", Rule.POLICY, context.next(three, slot=4, **correction))
    changed = context.next(three, slot=4, model_digest=id_of("another"))
    context.add("an empty checkpoint that changes the model", Rule.DIGEST, changed)
    beside = context.next(tale.genesis, slot=4, model_digest=id_of("another"))
    context.add("a checkpoint that branches off below what is final", Outcome.LEFT_BEHIND, beside)
    orphan = tale.swarm.checkpoint("ada", kind=CheckpointKind.EMPTY, parent=id_of("unknown"), slot=4)
    context.add("a checkpoint whose parent is unknown", Outcome.WAITS, orphan)
    for what, other in (("vote", context.told[4]), ("contribution", tale.contribution("ada"))):
        named = tale.swarm.checkpoint("ada", kind=CheckpointKind.EMPTY, parent=other.id, slot=4)
        context.add(f"a checkpoint whose parent is a {what}", Rule.PARENT, named)
        vote = tale.swarm.vote("ada", target=other.id, target_slot=4)
        context.add(f"a vote whose target is a {what}", Rule.VOTE, vote)
    context.add("a checkpoint sent again", Outcome.NOTHING, context.told[1])
    early = context.next(three, slot=30)
    context.add("a checkpoint of a slot to come", Outcome.WAITS, early)
    later = next(name for name in FOUR if name != context.first(three, 4))
    hasty = context.next(three, slot=4, by=later)
    context.add("a checkpoint before its signer's turn", Outcome.WAITS, hasty)
    false = context.next(three, slot=4, by=later, model_digest=id_of("another"))
    context.add("a faulty checkpoint before its signer's turn", Rule.DIGEST, false)
    strange = context.next(three, slot=30, by="zoe")
    context.add("a stranger's checkpoint of a slot to come", Outcome.IGNORED, strange)


def _lying_contributions(context: Context, three: ChainState, wrong: Contribution) -> None:
    tale = context.tale

    def both(what: str, outcome: Outcome | Rule, contribution: Contribution) -> None:
        accepting = context.next(three, slot=4, accepted=[contribution])
        context.add(f"a checkpoint that accepts {what}", outcome, accepting)
        refusing = context.next(three, slot=4, refused=[contribution])
        context.add(f"a checkpoint that refuses {what}", outcome, refusing)

    def all_three(what: str, rule: Rule, contribution: Contribution) -> None:
        context.add(what, rule, contribution, elsewhere=rule is Rule.DUPLICATE)
        both(what, rule, contribution)

    both("a contribution that was accepted before", Rule.DUPLICATE, tale.contribution("ada"))
    both("a contribution that was refused before", Rule.DUPLICATE, wrong)
    again = "another contribution of a member on a base that it has contributed on"
    all_three(again, Rule.DUPLICATE, tale.contribution("ada", num_tokens=7))
    all_three("a contribution with another slot of its base", Rule.SLOT, tale.contribution("ada", three, base_slot=2))
    both("a contribution of a stranger", Rule.MEMBERSHIP, tale.contribution("zoe", three))
    context.add("a contribution of a stranger", Outcome.WAITS, tale.contribution("zoe", three))
    nowhere = tale.swarm.contribution("ada", base_checkpoint=id_of("nowhere"), base_slot=2)
    both("a contribution on something unknown", Outcome.WAITS, nowhere)
    context.add("a contribution on something unknown", Outcome.WAITS, nowhere)
    second = tale.contribution("dan", three, num_tokens=7)
    context.add("a second contribution on a base, while the first waits", Rule.DUPLICATE, second, elsewhere=True)


def _lying_numbers(context: Context, three: ChainState) -> None:
    tale = context.tale
    good, bad, huge = (tale.contribution(name, three) for name in ("ada", "bob", "cyd"))
    context.faulty[bad.id] = (Rule.SCALE, "has scale exponent 9, required -40 to 0")
    context.spoils.add(huge.id)
    right = wire.Checkpoint.FromString(context.next(three, slot=4, accepted=[good]).envelope.payload)

    def numbers(what: str, rule: Rule, *, weight: Scaled | None = None, **fields: Any) -> None:
        entry = AcceptedContribution(contribution=good, weight=weight or Scaled.of(1.0))
        given: dict[str, Any] = {
            "kind": CheckpointKind.NORMAL,
            "parent": three.id,
            "slot": 4,
            "round": 3,
            "model_digest": right.model_digest,
            "update_norm": Scaled.of(1.0),
            "accepted": [entry],
        }
        context.recomputed(what, rule, _seal(tale, context.first(three, 4), **(given | fields)))

    one_bit, twice = Scaled(mantissa=129, exponent=-7), Scaled(mantissa=128, exponent=-6)
    dan = tale.contribution("dan", three)
    context.weights[dan.id] = Scaled.of(2.0)
    exchanged = {good.id: Scaled.of(2.0), dan.id: Scaled.of(1.0)}
    both = context.next(three, slot=4, accepted=[good, dan])
    pair = [AcceptedContribution(contribution=each, weight=exchanged[each.id]) for each in (good, dan)]
    numbers("two weights exchanged", Rule.WEIGHTS, accepted=pair, model_digest=both.model_digest)
    flipped = bytes([right.model_digest[0] ^ 1]) + right.model_digest[1:]
    numbers("a weight that differs in its last bit", Rule.WEIGHTS, weight=one_bit)
    numbers("a weight that differs in its exponent", Rule.WEIGHTS, weight=twice)
    numbers("a weight of zero", Rule.WEIGHTS, weight=Scaled.of(0.0))
    numbers("a norm that differs in its last bit", Rule.WEIGHTS, update_norm=one_bit)
    numbers("a norm of zero", Rule.WEIGHTS, update_norm=Scaled.of(0.0))
    numbers("a digest that differs in one bit", Rule.DIGEST, model_digest=flipped)
    numbers("the parent's digest after an update", Rule.DIGEST, model_digest=three.model_digest)
    accepts = context.next(three, slot=4, accepted=[bad])
    context.recomputed("a checkpoint that accepts a delta that breaks a rule", Rule.SCALE, accepts)
    sound = context.next(three, slot=4, refused=[good])
    context.recomputed("a checkpoint that refuses a delta that holds", Rule.POLICY, sound)
    entry = RefusedContribution(contribution=bad, rule=Rule.SHAPE, detail="has another shape")
    empty: dict[str, Any] = {"kind": CheckpointKind.EMPTY, "parent": three.id, "slot": 4, "round": 2}
    empty |= {"model_digest": three.model_digest, "update_norm": Scaled.of(0.0)}
    another = _seal(tale, context.first(three, 4), **empty, refused=[entry])
    context.recomputed("a checkpoint that refuses by another rule than the broken one", Rule.POLICY, another)
    infinite = context.next(three, slot=4, accepted=[huge])
    context.recomputed("a checkpoint whose weights are not finite", Rule.NON_FINITE, infinite)


def _lying_hints(context: Context, two: ChainState, three: ChainState, snapshot: Envelope) -> None:
    tale = context.tale
    blob = BlobRef(id=id_of("another snapshot"), num_bytes=9)

    def hint(by: str, at: ChainState, slot: int, checkpoint: bytes = b"") -> Envelope:
        swarm = tale.swarm.id
        return make_snapshot(key_of(by), swarm=swarm, checkpoint=checkpoint or at.id, slot=slot, blob=blob)

    def refusal(by: str, checkpoint: bytes) -> Envelope:
        swarm = tale.swarm.id
        return make_refusal(key_of(by), swarm=swarm, checkpoint=checkpoint, rule=Rule.DIGEST, detail="differs")

    context.add("a refusal by a stranger", Rule.MEMBERSHIP, refusal("zoe", three.id))
    context.add("a refusal of something unknown", Outcome.WAITS, refusal("ada", id_of("unknown")))
    context.add("a snapshot with another slot of its checkpoint", Rule.SLOT, hint("ada", three, 2))
    context.add("a snapshot of a stranger", Rule.MEMBERSHIP, hint("zoe", three, 3))
    context.add("a second snapshot of one checkpoint", Rule.DUPLICATE, hint("ada", two, 2), elsewhere=True)
    context.add("a snapshot of something unknown", Outcome.WAITS, hint("ada", three, 3, id_of("unknown")))
    context.add("a snapshot sent again", Outcome.NOTHING, snapshot)
    at_ms: dict[str, Any] = {"swarm": tale.swarm.id, "issued_at_ms": 50}
    elsewhen = make_choice(key_of("ada"), checkpoint=three.id, slot=2, **at_ms)
    context.add("a choice with another slot of its checkpoint", Rule.SLOT, elsewhen)
    nowhere = make_choice(key_of("ada"), checkpoint=id_of("unknown"), slot=3, **at_ms)
    context.add("a choice of something unknown", Outcome.WAITS, nowhere)
    stolen = make_choice(key_of("bob"), checkpoint=three.id, slot=3, **at_ms)
    carried = context.next(three, slot=4, records=[stolen])
    context.add("a checkpoint that carries a choice that is not the root's", Rule.RECORD, carried)
    votes = [tale.swarm.vote("zoe", target=id_of(name), target_slot=3) for name in ("x", "y")]
    context.add(
        "evidence against somebody who was never a member", Rule.EVIDENCE, tale.evidence(*votes), elsewhere=True
    )
    carried = context.next(three, slot=4, evidence=[tale.evidence(*votes)])
    context.add("a checkpoint with evidence against somebody unknown", Rule.EVIDENCE, carried)
    double = [tale.swarm.vote("dan", target=id_of(name), target_slot=3) for name in ("x", "y")]
    pieces = [tale.evidence(*double, by=name) for name in ("ada", "cyd")]
    twice = context.next(three, slot=4, evidence=pieces)
    context.add("a checkpoint with two pieces of evidence against one key", Rule.DUPLICATE, twice)
    others = [tale.swarm.vote("cyd", target=id_of(name), target_slot=3) for name in ("x", "y")]
    both = context.next(three, slot=4, evidence=[tale.evidence(*double), tale.evidence(*others)])
    context.add("a checkpoint whose evidence removes two certifiers", Rule.CERTIFIERS, both)


def _stale() -> Context:
    """Two rounds after the genesis in a swarm that takes deltas of the last one only."""
    tale = Story(swarm_with(*FOUR, rule={"max_staleness_rounds": 1}))
    one = tale.round_of(tale.genesis, slot=1)
    two = tale.round_of(one, slot=2)
    context = Context(name="two rounds", tale=tale, node="bob", slot=3, told=objects_of(tale, one, two))
    beside = context.next(tale.genesis, slot=3, model_digest=id_of("another"))
    context.recomputed("an empty checkpoint on the genesis with another model", Rule.DIGEST, beside)
    late = tale.contribution("cyd")
    context.add("a contribution that is too stale", Rule.STALE, late, elsewhere=True)
    accepting = context.next(two, slot=3, accepted=[late])
    context.add("a checkpoint that accepts a contribution that is too stale", Rule.STALE, accepting)
    refusing = context.next(two, slot=3, refused=[late])
    context.add("a checkpoint that refuses a contribution that is too stale", Rule.STALE, refusing)
    return context


def _open() -> Context:
    """An open swarm with one place for strangers; hal was revoked."""
    tale = Story(swarm_with(*FOUR, policy=wire.OPEN, rule={"max_contributions": 5}))
    revocation = make_revocation(key_of("ada"), swarm=tale.swarm.id, subject=key("hal"), issued_at_ms=30)
    one = tale.grow(tale.genesis, slot=1, records=[revocation])
    context = Context(name="an open swarm", tale=tale, node="bob", slot=2, told=objects_of(tale, one))
    yan, zoe = (tale.contribution(name, one) for name in ("yan", "zoe"))
    both = context.next(one, slot=2, accepted=[yan, zoe])
    context.add("a checkpoint that accepts more strangers than fit", Rule.POLICY, both)
    mixed = context.next(one, slot=2, accepted=[yan], refused=[zoe])
    context.add("a checkpoint that holds more strangers than fit, one refused", Rule.POLICY, mixed)
    refused = context.next(one, slot=2, refused=[yan, zoe])
    context.add("a checkpoint that refuses more strangers than fit", Rule.POLICY, refused)
    hal = tale.contribution("hal", one)
    context.add("a contribution of the revoked in an open swarm", Rule.MEMBERSHIP, hal, elsewhere=True)
    accepting = context.next(one, slot=2, accepted=[hal])
    context.add("a checkpoint that accepts the revoked in an open swarm", Rule.MEMBERSHIP, accepting)
    return context


# ---- what was refused, and turns ----------------------------------------------------------------------


def _refused() -> Context:
    """A checkpoint was recomputed and refused."""
    tale = Story(swarm_with(*FOUR))
    wrong = tale.grow(tale.genesis, slot=1, by="cyd", model_digest=id_of("wrong"))
    told = objects_of(tale, wrong)
    context = Context(name="a refused checkpoint", tale=tale, node="bob", slot=2, told=told)
    child = context.next(wrong, slot=2, by="dan")
    context.add("a checkpoint that follows a refused one", Rule.PARENT, child, elsewhere=True)
    context.add("a refused checkpoint sent again", Outcome.NOTHING, told[0])
    return context


def _turn() -> Context:
    """Four checkpoints of one certifier for one slot."""
    tale = Story(swarm_with(*FOUR))
    made = [tale.contribution("dan", num_tokens=1 + number) for number in range(5)]
    told = [tale.checkpoint(tale.genesis, slot=1, by="dan", accepted=[each]).envelope for each in made[:4]]
    context = Context(name="a full turn", tale=tale, node="bob", slot=2, told=told)
    fifth = context.next(tale.genesis, slot=1, by="dan", accepted=made[4:])
    context.add("a fifth checkpoint of one certifier for one slot", Outcome.IGNORED, fifth)
    return context


def chain_contexts() -> Iterator[Context]:
    """All of them."""
    for make in (_votes_and_numbers, _stale, _open, _refused, _turn):
        yield make()

"""Lies that are well formed and in their place: offences, votes for what does not hold, and one too many of a kind."""

from collections.abc import Iterator
from typing import Any

from chains import Story, swarm_with
from hostile.lies import FOUR, Context, Outcome, objects_of
from swarms import id_of, key_of

from fullrank_protocol.blob import BlobRef
from fullrank_protocol.chain import ChainState
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import Rule
from fullrank_protocol.snapshot import make_snapshot
from fullrank_protocol.vote import Vote, make_choice, make_refusal


def _refusal(tale: Story, by: str, checkpoint: bytes) -> Envelope:
    return make_refusal(
        key_of(by), swarm=tale.swarm.id, checkpoint=checkpoint, rule=Rule.DIGEST, detail="found 1, required 2"
    )


def _double(tale: Story, name: str, slot: int) -> list[Vote]:
    """Two votes for one slot, for targets that nobody knows."""
    return [tale.swarm.vote(name, target=id_of(target), target_slot=slot) for target in ("x", "y")]


# ---- offences ----------------------------------------------------------------------------------------


def _offences() -> Context:
    """Three checkpoints on one chain, two beside it; dan has voted for the later one, cyd is convicted."""
    tale = Story(swarm_with(*FOUR))
    one = tale.round_of(tale.genesis, slot=1)
    for_one = tale.votes("ada bob cyd", one)
    two = tale.grow(one, slot=2, by="bob", votes=for_one)
    three = tale.grow(two, slot=3, by="cyd", votes=tale.votes("ada bob cyd", two))
    rival = tale.grow(one, slot=3, by="dan", votes=for_one)
    wide = tale.grow(one, slot=4, by="dan", votes=for_one)
    votes = [tale.vote("ada", three), tale.vote("dan", wide), tale.vote("cyd", three), tale.vote("cyd", rival)]
    told = [*objects_of(tale, one, two, three, rival, wide), *(vote.envelope for vote in votes)]
    told.append(tale.evidence(*votes[2:]).envelope)
    context = Context(name="two branches", tale=tale, node="bob", slot=6, told=told)
    context.add("a second vote for one slot", Outcome.EVIDENCE, tale.vote("ada", rival))
    context.add("a vote around another of its author", Outcome.EVIDENCE, tale.vote("ada", wide))
    context.add("a vote inside another of its author", Outcome.EVIDENCE, tale.vote("dan", three))
    context.add("one more offence of somebody convicted", Outcome.KEPT, tale.vote("cyd", wide))
    return context


def _convicted() -> Context:
    """A piece of evidence waits to be carried."""
    tale = Story(swarm_with(*FOUR))
    one = tale.round_of(tale.genesis, slot=1)
    evidence = tale.evidence(*_double(tale, "cyd", 1))
    told = [*objects_of(tale, one), evidence.envelope]
    context = Context(name="evidence that waits", tale=tale, node="zoe", slot=3, told=told)
    same = tale.evidence(evidence.first, evidence.second, by="bob")
    context.add("the same evidence, signed by another", Outcome.IGNORED, same)
    another = tale.evidence(*_double(tale, "cyd", 2))
    context.add("a second piece of evidence against one key", Outcome.IGNORED, another)
    context.add("evidence sent again", Outcome.NOTHING, evidence)
    context.add("evidence against another key", Outcome.EVIDENCE, tale.evidence(*_double(tale, "dan", 1)))
    return context


# ---- what does not hold, or is left ------------------------------------------------------------------


def _for_the_refused() -> Context:
    """A checkpoint does not hold; two of four have voted for it, and cyd has refused it."""
    tale = Story(swarm_with(*FOUR))
    wrong = tale.grow(tale.genesis, slot=1, by="cyd", model_digest=id_of("wrong"))
    votes = [vote.envelope for vote in tale.votes("ada cyd", wrong)]
    told = [*objects_of(tale, wrong), *votes, _refusal(tale, "cyd", wrong.id)]
    context = Context(name="votes for a refused checkpoint", tale=tale, node="zoe", slot=3, told=told)
    context.add("a vote that justifies a refused checkpoint", Outcome.KEPT, tale.vote("dan", wrong))
    context.add("a second refusal of one certifier", Rule.DUPLICATE, _second_refusal(tale, wrong), elsewhere=True)
    chosen: dict[str, Any] = {"swarm": tale.swarm.id, "checkpoint": wrong.id, "slot": 1}
    context.add("a choice of a refused checkpoint", Outcome.KEPT, make_choice(key_of("ada"), **chosen, issued_at_ms=50))
    hint = make_snapshot(key_of("dan"), **chosen, blob=BlobRef(id=id_of("snapshot"), num_bytes=9))
    context.add("a snapshot of a refused checkpoint", Outcome.KEPT, hint)
    return context


def _second_refusal(tale: Story, at: ChainState) -> Envelope:
    return make_refusal(
        key_of("cyd"), swarm=tale.swarm.id, checkpoint=at.id, rule=Rule.WEIGHTS, detail="found 2, required 1"
    )


def _for_the_left() -> Context:
    """Three checkpoints, the first of them final without dan; one that branches off below it."""
    tale = Story(swarm_with(*FOUR))
    one = tale.round_of(tale.genesis, slot=1)
    line = [one, *tale.line(one, (2, 3), "ada bob cyd")]
    beside = tale.grow(tale.genesis, slot=4, by="dan", model_digest=id_of("wrong"))
    told = objects_of(tale, *line, beside)
    context = Context(name="a checkpoint that is left behind", tale=tale, node="bob", slot=6, told=told)
    context.add("a vote for a checkpoint that is left behind", Outcome.KEPT, tale.vote("dan", beside))
    around = "a vote for a checkpoint that is left behind, around others of its author"
    context.add(around, Outcome.EVIDENCE, tale.vote("ada", beside))
    return context


# ---- who certifies no more, and who never did -----------------------------------------------------------


def _not_certifying() -> Context:
    """Dan has left the role in slot 1, gus was admitted in it and never had one; all of it final."""
    tale = Story(swarm_with(*FOUR, "eve"))
    grant = tale.grant(roles=1)
    records = [grant, tale.admission("gus", grant, roles=1), tale.leave("dan", certifier_role_only=True)]
    one = tale.grow(tale.genesis, slot=1, records=records)
    line = [one, *tale.line(one, (2, 3, 4, 5, 6), "ada bob cyd eve")]
    head = line[-1]
    context = Context(name="members that do not certify", tale=tale, node="bob", slot=7, told=objects_of(tale, *line))
    for name, who in (("dan", "a member that certifies no more"), ("gus", "a member that never certified")):
        context.add(f"a vote of {who}", Rule.VOTE, tale.vote(name, head))
        carried = context.next(head, slot=7, votes=[tale.vote(name, head)])
        context.add(f"a checkpoint that carries a vote of {who}", Rule.VOTE, carried)
        context.add(f"a checkpoint of {who}", Rule.MEMBERSHIP, context.next(head, slot=7, by=name))
        context.add(f"a refusal of {who}", Rule.MEMBERSHIP, _refusal(tale, name, head.id))
        context.add(f"evidence against {who}", Outcome.EVIDENCE, tale.evidence(*_double(tale, name, 5)))
    return context


# ---- one too many ----------------------------------------------------------------------------------------


def _many_refusals() -> Context:
    """Sixteen of eighteen certifiers refuse a checkpoint."""
    names = ["ada", *(f"founder {number}" for number in range(2, 19))]
    tale = Story(swarm_with(*names))
    wrong = tale.grow(tale.genesis, slot=1, by=names[0], model_digest=id_of("wrong"))
    told = [*objects_of(tale, wrong), *(_refusal(tale, name, wrong.id) for name in names[1:17])]
    context = Context(name="sixteen refusals", tale=tale, node="zoe", slot=3, told=told)
    last = _refusal(tale, names[17], wrong.id)
    context.add("a seventeenth refusal of one checkpoint", Rule.DUPLICATE, last, elsewhere=True)
    return context


def _many_refused() -> Context:
    """Four checkpoints of dan were refused within this slot of the clock."""
    tale = Story(swarm_with(*FOUR))
    told = [tale.checkpoint(tale.genesis, slot=slot, by="dan", round=1).envelope for slot in (1, 2, 3, 4)]
    context = Context(name="four refused within a slot", tale=tale, node="bob", slot=7, told=told)
    good = tale.checkpoint(tale.genesis, slot=5, by="dan")
    context.add("a checkpoint of one of whom four were refused in this slot", Outcome.IGNORED, good)
    return context


def _far_beside() -> Context:
    """Six rounds are final, and deltas count for three; dan has shown one checkpoint that parted after the first."""
    tale = Story(swarm_with(*FOUR))
    line = [tale.round_of(tale.genesis, slot=1)]
    for slot in range(2, 9):
        line.append(tale.round_of(line[-1], slot=slot, votes=tale.votes("ada bob cyd", line[-1])))
    mine = [tale.contribution("dan", line[0], num_tokens=1 + number) for number in range(3)]
    first, second, third = (
        tale.checkpoint(line[0], slot=slot, by="dan", accepted=[each])
        for slot, each in zip((3, 3, 4), mine, strict=True)
    )
    told = [*objects_of(tale, *line), first.envelope]
    context = Context(name="far beside the chain", tale=tale, node="zoe", slot=12, told=told)
    context.add("a second checkpoint far beside, of one certifier for one slot", Outcome.IGNORED, second)
    context.add("a checkpoint far beside, of one certifier for another slot", Outcome.LEFT_BEHIND, third)
    return context


def vote_contexts() -> Iterator[Context]:
    """All of them."""
    for make in (
        _offences,
        _convicted,
        _for_the_refused,
        _for_the_left,
        _not_certifying,
        _many_refusals,
        _many_refused,
        _far_beside,
    ):
        yield make()

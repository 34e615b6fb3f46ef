"""Lies about membership: records that do not apply, sets that change too fast, and what the shut out still send."""

from collections.abc import Iterator
from typing import Any

from chains import Story, key, swarm_with
from hostile.lies import FOUR, Context, Outcome, objects_of
from swarms import id_of, key_of, seed_of, swarm_of

from fullrank_protocol.blob import BlobRef
from fullrank_protocol.chain import ChainState
from fullrank_protocol.envelope import MESSAGE_OF_TYPE, Envelope, seal
from fullrank_protocol.errors import Rule
from fullrank_protocol.membership import grant_id, make_admission, make_ejection, make_readmission, make_revocation
from fullrank_protocol.snapshot import make_snapshot
from fullrank_protocol.vote import Evidence

# ---- records ---------------------------------------------------------------------------------------


def _records() -> Context:
    """Eve, fay and gus admitted in slot 1, gus to contribute only; dan certifies no more, eve does from slot 4 on."""
    tale = Story(swarm_with(*FOUR))
    grants = {
        "invite": tale.grant(),
        "small": tale.grant("small", count=1),
        "narrow": tale.grant("narrow", roles=1),
        "brief": tale.grant("brief", not_after_ms=tale.swarm.genesis.slot_end_ms(4)),
        "dead": tale.grant("dead"),
    }
    admissions = [tale.admission(name, grants["invite"]) for name in ("eve", "fay")]
    admissions.append(tale.admission("gus", grants["small"], "small", 1))
    dead = make_revocation(key_of("ada"), swarm=tale.swarm.id, subject=key("dead"), issued_at_ms=30)
    leave = tale.leave("dan", certifier_role_only=True)
    one = tale.grow(tale.genesis, slot=1, records=[*grants.values(), *admissions, dead, leave])
    two = tale.grow(one, slot=2, by="bob", votes=tale.votes("ada bob cyd dan", one))
    three = tale.grow(two, slot=3, by="cyd", votes=tale.votes("ada bob cyd dan", two))
    change = tale.grow(three, slot=4, records=[tale.take_up("eve")])
    told = objects_of(tale, one, two, three, change)
    context = Context(name="a change of certifiers that is not final", tale=tale, node="bob", slot=5, told=told)
    swarm = tale.swarm.id
    for what, rule, record in _lying_records(tale, grants):
        loose = Outcome.WAITS if rule is Rule.MEMBERSHIP else rule
        forged = ("not the root's", "another invite's signature", "somebody else signed")
        elsewhere = all(words not in what for words in forged)  # After another head, all others may be sound.
        context.add(what, Outcome.NOTHING if record is grants["invite"] else loose, record, elsewhere=elsewhere)
        context.add(f"a checkpoint that carries {what}", rule, context.next(three, slot=5, records=[record]))
    for what, rule, records in (
        ("two certifiers that join", Rule.CERTIFIERS, [tale.take_up("eve"), tale.take_up("fay")]),
        (
            "one certifier that joins and one that leaves",
            Rule.CERTIFIERS,
            [tale.take_up("fay"), tale.leave("cyd", certifier_role_only=True)],
        ),
        ("an admission before its grant", Rule.MEMBERSHIP, _admission_before_grant(tale)),
        ("an admission for which its own checkpoint has no place left", Rule.RECORD, _one_too_many(tale)),
        ("a member that leaves twice", Rule.MEMBERSHIP, [tale.leave("gus", 20), tale.leave("gus", 21)]),
    ):
        context.add(f"a checkpoint with {what}", rule, context.next(three, slot=5, records=records))
    for what, record in (
        ("joins", tale.take_up("fay")),
        ("leaves", tale.leave("cyd", certifier_role_only=True)),
        ("is retired", tale.retirement("cyd")),
    ):
        early = context.next(change, slot=5, records=[record])
        context.add(f"a certifier that {what} before the last change is final", Rule.CERTIFIERS, early)
    double = [tale.swarm.vote("cyd", target=id_of(name), target_slot=3) for name in ("x", "y")]
    early = context.next(change, slot=5, evidence=[tale.evidence(*double)])
    context.add("a certifier that is excluded before the last change is final", Rule.CERTIFIERS, early)
    evidence: dict[str, Any] = {"evidence": [tale.evidence(*double)], "records": [tale.take_up("fay")]}
    mixed = context.next(three, slot=5, **evidence)
    context.add("a certifier that joins beside one that is excluded", Rule.CERTIFIERS, mixed)
    context.add(
        "a checkpoint of a member that does not certify", Rule.MEMBERSHIP, context.next(change, slot=5, by="gus")
    )
    context.add("a checkpoint of one who certifies no more", Rule.MEMBERSHIP, context.next(change, slot=5, by="dan"))
    context.add("a vote of a member that does not certify", Rule.VOTE, tale.vote("gus", change))
    context.add("a vote of a certifier whose role is not final yet", Rule.VOTE, tale.vote("eve", change))
    carried = context.next(change, slot=5, votes=[tale.vote("eve", change)])
    context.add("a checkpoint that carries a vote of a certifier whose role is not final yet", Rule.VOTE, carried)
    blob = BlobRef(id=id_of("snapshot"), num_bytes=9)
    early_hint = make_snapshot(key_of("hal"), swarm=swarm, checkpoint=three.id, slot=3, blob=blob)
    context.add("a snapshot of one who is no member there", Rule.MEMBERSHIP, early_hint)
    return context


def _lying_records(tale: Story, grants: dict[str, Envelope]) -> Iterator[tuple[str, Rule, Envelope]]:
    """Records that are not valid after slot 3, with the rule of each."""
    swarm, ada, bob = tale.swarm.id, key_of("ada"), key_of("bob")
    grant = grants["invite"]
    unknown = tale.grant("unknown")
    over = tale.grant("over", not_after_ms=tale.swarm.genesis.slot_end_ms(4))
    yield "a grant that was carried before", Rule.DUPLICATE, grant
    yield "a second grant for one invite key", Rule.RECORD, tale.grant(count=2)
    yield "a grant that is over", Rule.RECORD, over
    yield "a grant that is not the root's", Rule.RECORD, _by(tale, "bob", grant)
    yield "an admission by an unknown grant", Rule.MEMBERSHIP, tale.admission("hal", unknown, "unknown")
    for name, words in (("small", "is used up"), ("brief", "is over"), ("dead", "was revoked")):
        yield f"an admission by an invite that {words}", Rule.RECORD, tale.admission("hal", grants[name], name)
    yield "an admission with another invite's signature", Rule.RECORD, tale.admission("hal", grant, "unknown")
    wide = tale.admission("hal", grants["narrow"], "narrow")
    yield "an admission with more roles than the invite gives", Rule.RECORD, wide
    yield "an admission of a member with the roles that it has", Rule.RECORD, _admission(tale, "fay", grant, roles=1)
    yield "an admission that somebody else signed", Rule.RECORD, _by(tale, "hal", tale.admission("ivy", grant))
    yield "a take-up by a stranger", Rule.MEMBERSHIP, tale.take_up("hal")
    yield "a take-up without the right to certify", Rule.MEMBERSHIP, tale.take_up("gus")
    yield "a take-up by a certifier", Rule.RECORD, tale.take_up("cyd")
    yield "a take-up older than the last request", Rule.RECORD, tale.take_up("dan", at_ms=20)
    yield "a leave by a stranger", Rule.MEMBERSHIP, tale.leave("hal")
    yield (
        "a leave from a role that the member does not have",
        Rule.MEMBERSHIP,
        tale.leave("gus", certifier_role_only=True),
    )
    yield "a retirement of nobody", Rule.MEMBERSHIP, tale.retirement("gus")
    yield "a retirement that is not the root's", Rule.RECORD, _by(tale, "bob", tale.retirement("cyd"))
    tree = make_revocation(ada, swarm=swarm, subject=key("gus"), issued_at_ms=30, whole_tree=True)
    yield "a revocation of the tree of a member", Rule.MEMBERSHIP, tree
    stolen = make_revocation(bob, swarm=swarm, subject=key("gus"), issued_at_ms=30)
    yield "a revocation that is not the root's", Rule.RECORD, stolen
    back = make_readmission(ada, swarm=swarm, member=key("gus"), roles=1, issued_at_ms=30)
    yield "a readmission of a member", Rule.RECORD, back
    yield (
        "an ejection that is not the root's",
        Rule.RECORD,
        make_ejection(bob, swarm=swarm, member=key("gus"), since_round=1, issued_at_ms=30),
    )


def _by(tale: Story, name: str, record: Envelope) -> Envelope:
    """What a record says, signed by somebody else."""
    message = MESSAGE_OF_TYPE[record.type].FromString(record.payload)
    return seal(key_of(name), swarm=tale.swarm.id, type=record.type, message=message)


def _admission(tale: Story, name: str, grant: Envelope, *, roles: int) -> Envelope:
    return make_admission(
        key_of(name),
        swarm=tale.swarm.id,
        invite_seed=seed_of("invite"),
        grant_id=grant_id(grant),
        roles=roles,
        name=name,
    )


def _admission_before_grant(tale: Story) -> list[Envelope]:
    grant = tale.grant("third")
    return [tale.admission("hal", grant, "third"), grant]


def _one_too_many(tale: Story) -> list[Envelope]:
    grant = tale.grant("third", count=1)
    return [grant, tale.admission("hal", grant, "third"), tale.admission("ivy", grant, "third")]


# ---- the shut out ----------------------------------------------------------------------------------


def _shut_out_story() -> tuple[Story, list[ChainState], Evidence]:
    """Dan excluded by evidence, hal revoked and gus gone in slot 2; all of it final."""
    tale = Story(swarm_with(*FOUR, "eve"))
    grant = tale.grant()
    one = tale.grow(tale.genesis, slot=1, records=[grant, tale.admission("gus", grant), tale.admission("hal", grant)])
    double = [tale.swarm.vote("dan", target=id_of(name), target_slot=1) for name in ("x", "y")]
    evidence = tale.evidence(*double)
    revocation = make_revocation(key_of("ada"), swarm=tale.swarm.id, subject=key("hal"), issued_at_ms=30)
    two = tale.grow(one, slot=2, by="bob", records=[revocation, tale.leave("gus")], evidence=[evidence])
    states = [one, two, *tale.line(two, (3, 4, 5, 6), "ada bob cyd eve")]
    return tale, states, evidence


def _shut_out() -> Context:
    """What the excluded, the revoked and the gone still send, and more evidence against the excluded."""
    tale, states, evidence = _shut_out_story()
    head = states[-1]
    context = Context(name="somebody shut out", tale=tale, node="bob", slot=7, told=objects_of(tale, *states))
    later = [tale.swarm.vote("dan", target=id_of(name), target_slot=5) for name in ("x", "y")]
    context.add(
        "the evidence again, signed by another",
        Outcome.IGNORED,
        tale.evidence(evidence.first, evidence.second, by="cyd"),
    )
    context.add("more evidence against the excluded", Outcome.IGNORED, tale.evidence(*later))
    for name, who, outcome in (("hal", "the revoked", Outcome.IGNORED), ("gus", "one who has left", Outcome.EVIDENCE)):
        double = [tale.swarm.vote(name, target=id_of(target), target_slot=5) for target in ("x", "y")]
        context.add(f"evidence against {who}", outcome, tale.evidence(*double))
    again = context.next(head, slot=7, evidence=[tale.evidence(*later)])
    context.add("a checkpoint with evidence against the excluded", Rule.DUPLICATE, again)
    same = context.next(head, slot=7, evidence=[evidence])
    context.add("a checkpoint with evidence that was carried before", Rule.DUPLICATE, same)
    context.add("a vote of the excluded", Rule.VOTE, tale.vote("dan", head))
    context.add("a checkpoint of the excluded", Rule.MEMBERSHIP, context.next(head, slot=7, by="dan"))
    for name, who in (("dan", "the excluded"), ("hal", "the revoked")):
        contribution = tale.contribution(name, head)
        context.add(f"a contribution of {who}", Rule.MEMBERSHIP, contribution, elsewhere=True)
        accepting = context.next(head, slot=7, accepted=[contribution])
        context.add(f"a checkpoint that accepts a contribution of {who}", Rule.MEMBERSHIP, accepting)
        admission = tale.admission(name, tale.grant(), roles=1)
        context.add(f"an admission of {who} by a good invite", Rule.RECORD, admission, elsewhere=True)
        carried = context.next(head, slot=7, records=[admission])
        context.add(f"a checkpoint that carries an admission of {who}", Rule.RECORD, carried)
        context.add(f"a take-up of {who}", Outcome.WAITS, tale.take_up(name))
    gone = tale.contribution("gus", head)
    context.add("a contribution of one who has left", Outcome.WAITS, gone)
    accepting = context.next(head, slot=7, accepted=[gone])
    context.add("a checkpoint that accepts a contribution of one who has left", Rule.MEMBERSHIP, accepting)
    refusing = context.next(head, slot=7, refused=[gone])
    context.add("a checkpoint that refuses a contribution of one who has left", Rule.MEMBERSHIP, refusing)
    old = make_readmission(key_of("ada"), swarm=tale.swarm.id, member=key("hal"), roles=1, issued_at_ms=29)
    context.add("a readmission older than the revocation", Rule.RECORD, old, elsewhere=True)
    carried = context.next(head, slot=7, records=[old])
    context.add("a checkpoint that carries a readmission older than the revocation", Rule.RECORD, carried)
    return context


def _pardoned() -> Context:
    """The same, and the root has let dan back."""
    tale, states, evidence = _shut_out_story()
    pardon = make_readmission(key_of("ada"), swarm=tale.swarm.id, member=key("dan"), roles=3, issued_at_ms=40)
    head = tale.grow(states[-1], slot=7, records=[pardon])
    told = objects_of(tale, *states, head)
    context = Context(name="somebody forgiven", tale=tale, node="bob", slot=8, told=told)
    other = tale.evidence(evidence.first, evidence.second, by="cyd")
    context.add("evidence of what is forgiven", Rule.EVIDENCE, other, elsewhere=True)
    carried = context.next(head, slot=8, evidence=[other])
    context.add("a checkpoint with evidence of what is forgiven", Rule.EVIDENCE, carried)
    twice = context.next(head, slot=8, records=[pardon])
    context.add("a checkpoint with a readmission that was carried before", Rule.DUPLICATE, twice)
    again = make_readmission(key_of("ada"), swarm=tale.swarm.id, member=key("dan"), roles=3, issued_at_ms=41)
    context.add("a second readmission", Rule.RECORD, again, elsewhere=True)
    return context


def _alone() -> Context:
    """A swarm with one certifier, which cannot go."""
    tale = Story(swarm_with("ada"))
    grant = tale.grant()
    one = tale.grow(tale.genesis, slot=1, records=[grant, tale.admission("bob", grant)])
    context = Context(name="one certifier", tale=tale, node="zoe", slot=2, told=objects_of(tale, one))
    double = [tale.swarm.vote("ada", target=id_of(name), target_slot=1) for name in ("x", "y")]
    evidence = tale.evidence(*double)
    context.add("evidence against the last certifier", Rule.CERTIFIERS, evidence, elsewhere=True)
    carried = context.next(one, slot=2, evidence=[evidence])
    context.add("a checkpoint with evidence against the last certifier", Rule.CERTIFIERS, carried)
    revocation = make_revocation(key_of("ada"), swarm=tale.swarm.id, subject=key("ada"), issued_at_ms=30)
    for what, record in (
        ("the leave of the last certifier", tale.leave("ada")),
        ("the retirement of the last certifier", tale.retirement("ada")),
        ("the revocation of the last certifier", revocation),
    ):
        context.add(what, Rule.CERTIFIERS, record, elsewhere=True)
        carried = context.next(one, slot=2, records=[record])
        context.add(f"a checkpoint that carries {what}", Rule.CERTIFIERS, carried)
    return context


def _stalled() -> Context:
    """Seven certifiers, of whom four vanished; the root has retired fay and gus in a stall, dan and eve may follow."""
    tale = Story(swarm_with(*FOUR, "eve", "fay", "gus", timing={"stall_slots": 4}))
    grant = tale.grant()
    one = tale.grow(tale.genesis, slot=1, records=[grant, tale.admission("hal", grant)])
    three = tale.grow(one, slot=3)
    stalled = tale.grow(one, slot=6, records=[tale.retirement("fay"), tale.retirement("gus")])
    told = objects_of(tale, one, three, stalled)
    context = Context(name="a stall", tale=tale, node="bob", slot=7, told=told)
    retired = [tale.retirement("dan"), tale.retirement("eve")]
    haste = context.next(one, slot=3, by="cyd", records=retired)
    context.add("a checkpoint that retires two before the stall", Rule.CERTIFIERS, haste)
    joined = context.next(stalled, slot=7, records=[*retired, tale.take_up("hal")])
    context.add("a checkpoint in a stall with one that joins beside those retired", Rule.CERTIFIERS, joined)
    left = context.next(stalled, slot=7, records=[*retired, tale.leave("cyd", certifier_role_only=True)])
    context.add("a checkpoint in a stall with one that leaves beside those retired", Rule.CERTIFIERS, left)
    double = [tale.swarm.vote("cyd", target=id_of(name), target_slot=3) for name in ("x", "y")]
    excluded = context.next(stalled, slot=7, records=retired, evidence=[tale.evidence(*double)])
    context.add("a checkpoint in a stall with one excluded beside those retired", Rule.CERTIFIERS, excluded)
    two_leave = [tale.leave(name, certifier_role_only=True) for name in ("dan", "eve")]
    context.add("two that leave in a stall", Rule.CERTIFIERS, context.next(three, slot=7, records=two_leave))
    everybody = [tale.retirement(name) for name in ("ada", "bob", "cyd", "dan", "eve")]
    nobody = context.next(stalled, slot=7, records=everybody)
    context.add("a checkpoint in a stall that retires everybody", Rule.CERTIFIERS, nobody)
    context.add("a vote of one retired in a stall", Rule.VOTE, tale.vote("fay", stalled))
    carried = context.next(stalled, slot=7, votes=[tale.vote("fay", stalled)])
    context.add("a checkpoint that carries a vote of one retired in a stall", Rule.VOTE, carried)
    return context


def _two_roots() -> Context:
    """A swarm whose root acts by two of three keys; two have signed a grant, and one another."""
    tale = Story(swarm_of(founders=FOUR, roots=("ada", "bob", "cyd"), root_threshold=2))
    grant, lonely = tale.grant(), tale.grant("lonely")
    one = tale.grow(tale.genesis, slot=1, records=[grant, _by(tale, "bob", grant), lonely])
    context = Context(name="two roots of three", tale=tale, node="bob", slot=2, told=objects_of(tale, one))
    for what, rule, record in (
        ("a third signature under a grant in force", Rule.DUPLICATE, _by(tale, "cyd", grant)),
        ("a signature that was carried before", Rule.DUPLICATE, lonely),
        ("a grant by no root key", Rule.RECORD, _by(tale, "dan", lonely)),
        (
            "an admission by a grant that one root key has signed",
            Rule.MEMBERSHIP,
            tale.admission("eve", lonely, "lonely"),
        ),
    ):
        loose = Outcome.WAITS if rule is Rule.MEMBERSHIP else rule
        elsewhere = "no root key" not in what
        context.add(what, Outcome.NOTHING if record is lonely else loose, record, elsewhere=elsewhere)
        carried = context.next(one, slot=2, records=[record])
        context.add(f"a checkpoint that carries {what}", rule, carried)
    return context


def member_contexts() -> Iterator[Context]:
    """All of them."""
    for make in (_records, _shut_out, _pardoned, _alone, _stalled, _two_roots):
        yield make()

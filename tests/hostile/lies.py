"""Lying objects: well formed, and not so, in the light of a chain that their receiver knows (protocol sections 4 to 8).

A context is what the receiver was told before. Each lie is one object that comes then, with what becomes of it there.
"""

import enum
from dataclasses import dataclass, field
from typing import Any

from chains import Story, key

from fullrank_protocol.chain import ChainState
from fullrank_protocol.checkpoint import (
    Checkpoint,
)
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import Rule
from fullrank_protocol.proposing import proposer_order
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.vote import Evidence, Vote

FOUR = ("ada", "bob", "cyd", "dan")


class Outcome(enum.StrEnum):
    """What becomes of a lie."""

    REFUSED = "refused"
    """It is dropped by a rule."""
    IGNORED = "ignored"
    """It is dropped, and nobody is to blame."""
    WAITS = "waits"
    """It is set aside: what it refers to is not known, and may be sound."""
    DOES_NOT_HOLD = "does not hold"
    """It has a place in the tree, is recomputed, and is refused there by a rule."""
    LEFT_BEHIND = "left behind"
    """It has a place in the tree below what is final, and nobody looks at its numbers."""
    KEPT = "kept"
    """It is in order, kept and counted, and nothing else comes of it."""
    EVIDENCE = "evidence"
    """It is in order and kept, and it convicts somebody: evidence of that is kept, too."""
    NOTHING = "nothing"
    """Nothing is said about it."""


@dataclass(frozen=True, kw_only=True)
class Lie:
    """One object.

    Attributes:
        what: In words.
        outcome: What becomes of it.
        rule: By which it is refused; None where it is not.
        envelope: The object.
        blames_sender: It is wrong wherever it is looked at, so that whoever passes it on has not looked or lies.
    """

    what: str
    outcome: Outcome
    rule: Rule | None
    envelope: Envelope
    blames_sender: bool


@dataclass
class Context:
    """What a node knows, and what it is told then.

    Attributes:
        name: For people.
        node: Whose machine it is.
        slot: The slot in which the lies arrive; half of it has passed.
        told: Objects in the order in which they came before.
        faulty: Contributions whose delta breaks a rule; all others hold.
        spoils: Contributions that make the weights not finite when they are merged.
        weights: Of contributions that merging does not weigh with 1.
        lies: What comes then; each alone.
    """

    name: str
    tale: Story
    node: str
    slot: int
    told: list[Envelope]
    faulty: dict[bytes, tuple[Rule, str]] = field(default_factory=dict)
    spoils: set[bytes] = field(default_factory=set)
    weights: dict[bytes, Scaled] = field(default_factory=dict)
    lies: list[Lie] = field(default_factory=list)

    def first(self, parent: ChainState, slot: int) -> str:
        """Who may propose first: a checkpoint of anybody else would wait for its turn."""
        order = proposer_order(parent, swarm=self.tale.swarm.id, slot=slot)
        return next(name for name in (*FOUR, "eve", "fay", "gus") if key(name) == order[0])

    def next(self, parent: ChainState, *, slot: int, **fields: Any) -> Checkpoint:
        """A checkpoint after `parent` by the first in turn, unless `by` says otherwise."""
        return self.tale.checkpoint(parent, slot=slot, **({"by": self.first(parent, slot)} | fields))

    def add(
        self,
        what: str,
        outcome: Outcome | Rule,
        thing: Envelope | Checkpoint | Vote | Evidence | Contribution,
        *,
        elsewhere: bool = False,
    ) -> None:
        """Note a lie; a rule alone stands for a refusal by it. What is refused may be sound `elsewhere`."""
        rule = outcome if isinstance(outcome, Rule) else None
        outcome = Outcome.REFUSED if isinstance(outcome, Rule) else outcome
        envelope = thing if isinstance(thing, Envelope) else thing.envelope
        blames = outcome is Outcome.REFUSED and not elsewhere
        self.lies.append(Lie(what=what, outcome=outcome, rule=rule, envelope=envelope, blames_sender=blames))

    def recomputed(self, what: str, rule: Rule, thing: Envelope | Checkpoint) -> None:
        """Note a checkpoint that is refused after it has been recomputed."""
        envelope = thing if isinstance(thing, Envelope) else thing.envelope
        outcome = Outcome.DOES_NOT_HOLD
        self.lies.append(Lie(what=what, outcome=outcome, rule=rule, envelope=envelope, blames_sender=False))


def objects_of(tale: Story, *states: ChainState) -> list[Envelope]:
    """The envelopes of these checkpoints."""
    found = []
    for state in states:
        checkpoint = tale.tree.nodes[state.id].checkpoint
        assert checkpoint is not None
        found.append(checkpoint.envelope)
    return found

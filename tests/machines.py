"""One round machine, fed by hand: a test sets the clock, hands events in and reads the actions.

Everything slow is played by the test: deltas hold unless `verdicts` says otherwise, merging is hashing (the very
hash that `chains.Story` writes into its checkpoints), and signatures come back at once, as in a daemon. With
`by_hand` nothing is carried out: the test answers each action itself.
"""

from collections.abc import Iterator
from typing import TypeVar

from chains import BASE_DIGEST, Story, digest_after, key
from swarms import key_of

from fullrank_protocol import round_io as io
from fullrank_protocol.chain import ChainState
from fullrank_protocol.checkpoint import Checkpoint, open_checkpoint
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.envelope import Envelope, seal
from fullrank_protocol.membership import make_take_up
from fullrank_protocol.proposing import opens_ms
from fullrank_protocol.round import restore, step
from fullrank_protocol.round_state import new_state
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.vote import Evidence, Vote, make_evidence, make_refusal, make_vote
from fullrank_protocol.wire import objects_pb2 as wire

ActionT = TypeVar("ActionT")
Thing = Envelope | Checkpoint | Contribution | Vote | Evidence | ChainState


class Machine:
    """The machine of one named node; `tale` is what the others do."""

    def __init__(
        self, tale: Story, name: str = "ada", *, trains: bool = False, certifies: bool = True, by_hand: bool = False
    ) -> None:
        self.tale = tale
        self.key = key_of(name)
        self.by_hand = by_hand
        self.verdicts: dict[bytes, io.Event | None] = {}
        self.kept: list[Envelope] = []
        self.known_verdicts: dict[bytes, bool] = {}
        self.believed: set[bytes] = set()
        self.adopted: bytes | None = None
        self.state = new_state(
            tale.swarm.genesis,
            key=key(name),
            base_digest=BASE_DIGEST,
            wants_certify=certifies,
            trains=trains,
        )
        self.now_ms = tale.swarm.genesis.slot_start_ms(0)

    # ---- events in -------------------------------------------------------------------------------

    def at(self, slot: int, after_ms: int = 0) -> list[io.Action]:
        """Set the clock to a time in a slot and look at it."""
        self.now_ms = self.tale.swarm.genesis.slot_start_ms(slot) + after_ms
        return self.feed(io.Tick())

    def receive(self, *things: Thing, early: bool = False) -> list[io.Action]:
        """Objects that neighbours send, one after another.

        Once its slot has ended, a checkpoint comes when its proposer's turn has come, except `early`.
        """
        actions = []
        for thing in things:
            envelope = self.envelope_of(thing)
            if envelope.type == wire.CHECKPOINT and not early:
                self._wait_for_turn(open_checkpoint(envelope, self.state.genesis))
            actions += self.feed(io.ObjectReceived(envelope=envelope))
        return actions

    def _wait_for_turn(self, checkpoint: Checkpoint) -> None:
        parent, genesis = self.tale.tree.lookup(checkpoint.parent), self.state.genesis
        if parent is not None and genesis.slot_end_ms(checkpoint.slot) <= self.now_ms:
            self.now_ms = max(self.now_ms, opens_ms(checkpoint, parent, genesis=genesis))

    def feed(self, event: io.Event) -> list[io.Action]:
        """All that comes of an event, and of what this node does about it."""
        done: list[io.Action] = []
        events = [event]
        while events:
            _, actions = step(self.state, events.pop(0), self.now_ms)
            done += actions
            for action in actions:
                self._note(action)
                if not self.by_hand:
                    events += self._carry_out(action)
        return done

    def restarted(self) -> "Machine":
        """The same node after a kill: it has what it kept and the verdicts, and nothing else."""
        again = Machine(self.tale, trains=self.state.trains, certifies=self.state.wants_certify)
        again.key, again.now_ms, again.by_hand = self.key, self.now_ms, self.by_hand
        again.state.key = self.state.key
        again.kept, again.known_verdicts, again.verdicts = list(self.kept), dict(self.known_verdicts), self.verdicts
        again.believed, again.adopted = set(self.believed), self.adopted
        restore(
            again.state,
            iter(again.kept),
            again.known_verdicts,
            self.now_ms,
            believed=frozenset(again.believed),
            adopted=again.adopted,
        )
        return again

    def envelope_of(self, thing: Thing) -> Envelope:
        """The signed bytes of anything."""
        if isinstance(thing, ChainState):
            checkpoint = self.tale.tree.nodes[thing.id].checkpoint
            assert checkpoint is not None
            return checkpoint.envelope
        return thing if isinstance(thing, Envelope) else thing.envelope

    # ---- what the daemon would do ------------------------------------------------------------------

    def merged(self, merge: io.Merge) -> io.Merged:
        """What merging gives on every node of these tests: weights and norm 1, and the story's digest."""
        return io.Merged(
            key=merge.key,
            weights=(Scaled.of(1.0),) * len(merge.entries),
            update_norm=Scaled.of(1.0),
            model_digest=digest_after(merge.key.parent, merge.key.contribution_ids),
        )

    def _note(self, action: io.Action) -> None:
        if isinstance(action, io.Keep):
            self.kept.append(action.envelope)
        if isinstance(action, io.Settled) and self.state.adopting is not None:
            self.adopted = self.state.adopting
        if isinstance(action, io.Verified):
            self.known_verdicts[action.checkpoint] = action.holds
            self.believed |= {action.checkpoint} if action.believed else set()

    def _carry_out(self, action: io.Action) -> Iterator[io.Event]:
        swarm = self.tale.swarm.id
        match action:
            case io.CheckDelta(contribution=contribution):
                event = self.verdicts.get(contribution.id, io.DeltaChecked(contribution_id=contribution.id))
                if event is not None:
                    yield event
            case io.Merge():
                yield self.merged(action)
            case io.SignCheckpoint(checkpoint=message):
                yield io.ObjectReceived(envelope=seal(self.key, swarm=swarm, type=wire.CHECKPOINT, message=message))
            case io.CastVote():
                yield io.ObjectReceived(envelope=self.cast(action))
            case io.SignRefusal(checkpoint=checkpoint, rule=rule, detail=detail):
                yield io.ObjectReceived(
                    envelope=make_refusal(self.key, swarm=swarm, checkpoint=checkpoint, rule=rule, detail=detail)
                )
            case io.SignEvidence(first=first, second=second):
                yield io.ObjectReceived(envelope=make_evidence(self.key, swarm=swarm, one=first, other=second))
            case io.SignTakeUp():
                yield io.ObjectReceived(envelope=make_take_up(self.key, swarm=swarm, issued_at_ms=self.now_ms))
            case _:
                pass

    def cast(self, action: io.CastVote) -> Envelope:
        """The vote that the action asks for."""
        return make_vote(
            self.key,
            swarm=self.tale.swarm.id,
            source=action.source.checkpoint,
            source_slot=action.source.slot,
            target=action.target.checkpoint,
            target_slot=action.target.slot,
        )

    # ---- reading -----------------------------------------------------------------------------------

    @property
    def head(self) -> ChainState:
        return self.state.tree.head()

    @property
    def final(self) -> int:
        """Slot of what is final here."""
        return self.state.tree.final.slot

    def proposed(self, actions: list[io.Action]) -> Checkpoint:
        """The one checkpoint that these actions sign."""
        message = only(io.SignCheckpoint, actions).checkpoint
        envelope = seal(self.key, swarm=self.tale.swarm.id, type=wire.CHECKPOINT, message=message)
        return open_checkpoint(self.tale.swarm.opened(envelope), self.tale.swarm.genesis)


def some(kind: type[ActionT], actions: list[io.Action]) -> list[ActionT]:
    """The actions of one kind."""
    return [action for action in actions if isinstance(action, kind)]


def only(kind: type[ActionT], actions: list[io.Action]) -> ActionT:
    """The single action of one kind."""
    (found,) = some(kind, actions)
    return found

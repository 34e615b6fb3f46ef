"""Chains for tests: checkpoints, votes and records of named members, placed in a tree one after another."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from swarms import CREATED_AT_MS, WINDOW_MS, Swarm, genesis_message, id_of, key_of, seed_of

from fullrank_protocol.chain import ChainState, Lookup
from fullrank_protocol.checkpoint import (
    AcceptedContribution,
    Checkpoint,
    CheckpointKind,
    RefusedContribution,
    make_checkpoint,
    open_checkpoint,
)
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import Rule
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.genesis import create_genesis
from fullrank_protocol.membership import (
    ALL_ROLES,
    grant_id,
    make_admission,
    make_grant,
    make_leave,
    make_retirement,
    make_take_up,
)
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.vote import Evidence, Vote, make_evidence, open_evidence
from fullrank_protocol.wire import objects_pb2 as wire

BASE_DIGEST = id_of("digest of the base")
NEVER_MS = CREATED_AT_MS + 1_000 * WINDOW_MS


def key(name: str) -> bytes:
    """The public key that belongs to a name."""
    return key_of(name).public_key


def digest_after(parent: bytes, contribution_ids: Iterable[bytes]) -> bytes:
    """Stands for the digest of the model that these contributions make of the parent's."""
    return hashlib.sha256(b"merged" + parent + b"".join(contribution_ids)).digest()


def swarm_with(
    *founders: str,
    policy: int = wire.INVITE,
    rule: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None,
    timing: dict[str, Any] | None = None,
    roots: Sequence[str] = ("ada",),
    root_threshold: int = 1,
) -> Swarm:
    """A swarm of these founders, with fields of its rule, training, limits and timing as given."""
    message = genesis_message(founders=founders or ("ada",), policy=policy, roots=roots, root_threshold=root_threshold)
    parts = (message.rule, rule), (message.training, training), (message.limits, limits), (message.timing, timing)
    for part, given in parts:
        for name, value in (given or {}).items():
            setattr(part, name, value)
    return Swarm(create_genesis(key_of("ada"), message))


class Story:
    """A tree that grows by checkpoints of named members; every checkpoint holds unless said otherwise."""

    def __init__(self, swarm: Swarm) -> None:
        self.swarm = swarm
        self.tree = Tree(swarm.genesis)

    @property
    def genesis(self) -> ChainState:
        return self.tree.root

    @property
    def lookup(self) -> Lookup:
        return self.tree.lookup

    # ---- what members sign -----------------------------------------------------------------------

    def contribution(self, name: str, base: ChainState | None = None, **fields: Any) -> Contribution:
        """A contribution on a checkpoint."""
        base = base or self.genesis
        return self.swarm.contribution(name, **({"base_checkpoint": base.id, "base_slot": base.slot} | fields))

    def vote(self, name: str, target: ChainState) -> Vote:
        """A vote with the source that its target fixes."""
        source = target.justified
        return self.swarm.vote(
            name, target=target.id, target_slot=target.slot, source=source.checkpoint, source_slot=source.slot
        )

    def votes(self, names: str, target: ChainState) -> list[Vote]:
        """Votes of several, by their names."""
        return [self.vote(name, target) for name in names.split()]

    def evidence(self, one: Vote, other: Vote, *, by: str = "ada") -> Evidence:
        """Two votes that are an offence together."""
        return open_evidence(self.swarm.opened(make_evidence(key_of(by), swarm=self.swarm.id, one=one, other=other)))

    def grant(self, invite: str = "invite", **fields: Any) -> Envelope:
        """An invite by ada."""
        given: dict[str, Any] = {"roles": ALL_ROLES, "count": 9, "not_after_ms": NEVER_MS}
        return make_grant(key_of("ada"), swarm=self.swarm.id, invite_key=key(invite), **(given | fields))

    def admission(self, name: str, grant: Envelope, invite: str = "invite", roles: int = ALL_ROLES) -> Envelope:
        """A new member's admission by an invite."""
        return make_admission(
            key_of(name),
            swarm=self.swarm.id,
            invite_seed=seed_of(invite),
            grant_id=grant_id(grant),
            roles=roles,
            name=name,
        )

    def take_up(self, name: str, at_ms: int = 10) -> Envelope:
        """A member asks to certify."""
        return make_take_up(key_of(name), swarm=self.swarm.id, issued_at_ms=at_ms)

    def leave(self, name: str, at_ms: int = 20, *, certifier_role_only: bool = False) -> Envelope:
        """A member goes."""
        return make_leave(
            key_of(name), swarm=self.swarm.id, issued_at_ms=at_ms, certifier_role_only=certifier_role_only
        )

    def retirement(self, name: str, at_ms: int = 30) -> Envelope:
        """The root retires a certifier."""
        return make_retirement(key_of("ada"), swarm=self.swarm.id, certifier=key(name), issued_at_ms=at_ms)

    # ---- checkpoints -----------------------------------------------------------------------------

    def checkpoint(
        self,
        parent: ChainState,
        *,
        slot: int,
        by: str = "ada",
        accepted: Iterable[Contribution] = (),
        weights: Sequence[float] = (),
        refused: Iterable[Contribution] = (),
        votes: Sequence[Vote] = (),
        records: Sequence[Envelope] = (),
        evidence: Sequence[Evidence] = (),
        **fields: Any,
    ) -> Checkpoint:
        """A checkpoint after `parent`: normal when it accepts something, else empty; weights are 1 unless given."""
        accepted = list(accepted)
        weights = weights or [1.0] * len(accepted)
        given: dict[str, Any] = {
            "kind": CheckpointKind.NORMAL if accepted else CheckpointKind.EMPTY,
            "parent": parent.id,
            "slot": slot,
            "round": parent.round + bool(accepted),
            "model_digest": digest_after(parent.id, sorted(c.id for c in accepted))
            if accepted
            else parent.model_digest or BASE_DIGEST,
            "update_norm": Scaled.of(1.0 if accepted else 0.0),
            "accepted": [
                AcceptedContribution(contribution=c, weight=Scaled.of(weight))
                for c, weight in zip(accepted, weights, strict=True)
            ],
            "refused": [RefusedContribution(contribution=c, rule=Rule.RANK, detail="is too high") for c in refused],
            "votes": votes,
            "records": records,
            "evidence": evidence,
        }
        envelope = make_checkpoint(key_of(by), swarm=self.swarm.id, **(given | fields))
        return open_checkpoint(self.swarm.opened(envelope), self.swarm.genesis)

    def grow(self, parent: ChainState, *, slot: int, holds: bool | None = True, **fields: Any) -> ChainState:
        """Place a checkpoint after `parent`, recomputed here with that outcome; None leaves it open."""
        checkpoint = self.checkpoint(parent, slot=slot, **fields)
        state, _ = self.tree.add(checkpoint)
        if holds is not None:
            self.tree.set_verdict(checkpoint.id, holds=holds)
        return state

    def round_of(self, parent: ChainState, *, slot: int, **fields: Any) -> ChainState:
        """A normal checkpoint with a contribution of ada on the parent."""
        return self.grow(parent, slot=slot, **({"accepted": [self.contribution("ada", parent)]} | fields))

    def line(self, parent: ChainState, slots: Iterable[int], voters: str) -> list[ChainState]:
        """Empty checkpoints of these slots one after another, each carrying all votes for its parent."""
        line = []
        for slot in slots:
            votes = self.votes(voters, parent) if parent.parent is not None else []
            parent = self.grow(parent, slot=slot, votes=votes)
            line.append(parent)
        return line


def altered(checkpoint: Checkpoint, **fields: Any) -> Checkpoint:
    """The same checkpoint with fields replaced, as if it had been signed so."""
    return dataclasses.replace(checkpoint, **fields)

"""What the root signs from a node: records that several root keys sign alike (protocol section 4).

Where a swarm needs more than one root key, each holder runs the same command. A record says when it was issued, so
the second holder has to sign the very bytes of the first: an action that waits for signatures is found and signed
again, and a new one is made only where there is none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fullrank_node.errors import ExitCode, NodeError
from fullrank_protocol.envelope import MESSAGE_OF_TYPE, Envelope, decode_payload, seal
from fullrank_protocol.errors import RejectError
from fullrank_protocol.membership import Members
from fullrank_protocol.proposing import RECORD_ORDER
from fullrank_protocol.records import root_action_id

if TYPE_CHECKING:
    from fullrank_node.runner import Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class RootAction:
    """Something that root keys have signed, and that is not in force yet.

    Attributes:
        id: The same whichever key signed.
        message: What is signed.
        signers: Root keys under it, carried or waiting to be.
    """

    id: bytes
    message: Any
    signers: frozenset[bytes]


def require_root(runner: "Runner") -> None:
    """Raises NodeError unless this node's key is a root key of the swarm."""
    if runner.key.public_key not in runner.genesis.membership.root_keys:
        raise NodeError(
            "this needs a root key of the swarm, and this node's key is none",
            hint="Ask the founder: such commands work on the founding node.",
            exit_code=ExitCode.PERMISSION,
        )


def pending_actions(runner: "Runner", kind: int, *, since_slot: int = 0) -> list[RootAction]:
    """Root actions of one type of record that still lack signatures or wait to be carried, the newest first.

    Args:
        runner: Of this node.
        kind: Type of the record.
        since_slot: Records that were carried up to this slot are not looked for.
    """
    tree = runner.state.tree
    head = tree.head()
    carried = (
        record
        for node in tree.chain(head.id, above_slot=since_slot)
        if node.checkpoint is not None
        for record in node.checkpoint.records
        if record.type == kind
    )
    waiting = [record for record in runner.state.records.values() if record.type == kind]
    signers: dict[bytes, set[bytes]] = {}
    messages: dict[bytes, Any] = {}
    for record in [*carried, *waiting]:
        action = root_action_id(swarm=record.swarm, type=record.type, payload=record.payload)
        if action in head.members.enacted:
            continue
        signers.setdefault(action, set(head.members.approvals.get(action, ()))).add(record.public_key)
        messages[action] = decode_payload(record, MESSAGE_OF_TYPE[kind])
    actions = [RootAction(id=i, message=messages[i], signers=frozenset(signers[i])) for i in messages]
    return sorted(actions, key=lambda action: (-getattr(action.message, "issued_at_ms", 0), action.id))


def sign_or_join(
    runner: "Runner", kind: int, *, about: bytes, says: Callable[[Any], bool], make: Callable[[], Envelope]
) -> RootAction:
    """Sign what other root keys have signed, or sign a new record; the action with this node's signature under it.

    Args:
        runner: Of this node, whose key is a root key.
        kind: Type of the record.
        about: The key that it is about: what is older than the newest record about it comes to nothing.
        says: Whether a pending record says what is meant.
        make: Signs a new one.

    Raises:
        NodeError: The swarm would refuse it.
    """
    me, to_be = runner.key.public_key, members_to_be(runner)
    for action in pending_actions(runner, kind):
        is_late = getattr(action.message, "issued_at_ms", 0) <= to_be.root_times.get(about, 0)
        if not says(action.message) or (is_late and action.id not in to_be.enacted):
            continue
        if me in action.signers or action.id in to_be.enacted:
            return action
        submit_or_explain(runner, seal(runner.key, swarm=runner.genesis.swarm, type=kind, message=action.message))
        return RootAction(id=action.id, message=action.message, signers=action.signers | {me})
    envelope = make()
    submit_or_explain(runner, envelope)
    action_id = root_action_id(swarm=envelope.swarm, type=kind, payload=envelope.payload)
    message = decode_payload(envelope, MESSAGE_OF_TYPE[kind])
    return RootAction(id=action_id, message=message, signers=frozenset({me}))


def submit_or_explain(runner: "Runner", envelope: Envelope) -> None:
    """Hand a record of our own to the round machine.

    Raises:
        NodeError: The swarm would refuse it.
    """
    error = why_refused(runner, envelope)
    if error is not None:
        raise NodeError(f"the swarm would refuse this: {error.detail}")
    runner.submit(envelope)


def why_refused(runner: "Runner", envelope: Envelope) -> RejectError | None:
    """What keeps a record from taking effect after those that wait already; None where nothing does."""
    head = runner.state.tree.head()
    slot = max(runner.genesis.slot_at(runner.clock.now_ms()), head.slot + 1)
    try:
        members_to_be(runner).apply(envelope, slot=slot, genesis=runner.genesis)
    except RejectError as error:
        return error
    return None


def members_to_be(runner: "Runner") -> Members:
    """The membership once everything that waits to be carried is, in the order in which it will be."""
    head = runner.state.tree.head()
    slot = max(runner.genesis.slot_at(runner.clock.now_ms()), head.slot + 1)
    members = head.members
    for record in sorted(runner.state.records.values(), key=lambda r: (RECORD_ORDER.index(r.type), r.id)):
        try:
            members = members.apply(record, slot=slot, genesis=runner.genesis)
        except RejectError:
            continue
    return members


def missing_signatures(signatures: int, needed: int, *, command: str) -> str:
    """What holders of other root keys still have to do; empty where it is enough."""
    if signatures >= needed:
        return ""
    return f"{signatures} of {needed} root signatures: another holder of a root key runs `{command}`, too"


def newer_than_all(runner: "Runner", key: bytes) -> int:
    """A time of issue that no record about a key in force or on its way has reached: now, if the clock is right."""
    members = members_to_be(runner)
    return max(runner.clock.now_ms(), members.root_times.get(key, 0) + 1)

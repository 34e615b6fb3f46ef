"""What the store remembers: the round machine's state, and snapshots."""

import logging

from fullrank_node.node_keys import ADOPTED_KEY, BELIEVED, PINNED_KEY, verdict_key
from fullrank_node.store import Store
from fullrank_protocol.envelope import Envelope, open_envelope
from fullrank_protocol.errors import RejectError
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.round import restore
from fullrank_protocol.round_state import RoundState, new_state
from fullrank_protocol.snapshot import Snapshot, open_snapshot
from fullrank_protocol.wire import objects_pb2 as wire

log = logging.getLogger(__name__)


def restored_state(
    genesis: Genesis,
    store: Store,
    *,
    key: bytes,
    base_digest: bytes,
    wants_certify: bool = False,
    trust_verdicts: bool = True,
    now_ms: int,
) -> RoundState:
    """A state that holds every stored object, and every own vote even where its object was lost.

    What does not open is dropped: what was stored had been checked, so the disk has spoilt it.

    Args:
        genesis: Of the swarm.
        store: Of this node.
        key: This node's public key.
        base_digest: Model digest of the genesis masters.
        wants_certify: Take up the certifier role where the grant allows it.
        trust_verdicts: Believe what was recomputed here before; False to recompute everything.
        now_ms: The node's clock.
    """
    state = new_state(genesis, key=key, base_digest=base_digest, wants_certify=wants_certify, trains=False)
    verdicts: dict[bytes, bool] = {}
    believed: set[bytes] = set()
    envelopes: list[Envelope] = []
    for data in [*store.objects(), *store.own_votes()]:
        try:
            envelope = open_envelope(data, swarm=genesis.swarm)
        except RejectError as error:
            log.warning("An object in the log is damaged on this disk and comes from peers again: %s.", error.detail)
            store.drop_damaged(data)
            continue
        envelopes.append(envelope)
        if trust_verdicts and envelope.type in (wire.CHECKPOINT, wire.SNAPSHOT):
            verdict = store.get_meta(verdict_key(envelope.id))
            if verdict == BELIEVED:
                believed.add(envelope.id)
            elif verdict is not None:
                verdicts[envelope.id] = verdict == b"\x01"
    state.arrival.pinned = store.get_meta(PINNED_KEY)
    found = store.blobs.survey()
    state.arrival.blobs_here = frozenset(blob for blob, held in found.items() if held.is_whole)
    broken_off = found.keys() - state.arrival.blobs_here
    state.arrival.partly_here = {blob: store.blobs.partial_bytes(blob) for blob in broken_off}
    return restore(
        state, iter(envelopes), verdicts, now_ms, believed=frozenset(believed), adopted=store.get_meta(ADOPTED_KEY)
    )


def stored_snapshots(store: Store, genesis: Genesis) -> list[Snapshot]:
    """Hints in the store whose blobs are here, in the order in which they came."""
    hints = (open_envelope(data, swarm=genesis.swarm) for data in store.objects(type=wire.SNAPSHOT))
    found = (open_snapshot(hint, genesis) for hint in hints)
    return [snapshot for snapshot in found if store.blobs.has(snapshot.blob.id)]

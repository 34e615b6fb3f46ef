"""The round machine's state as the store remembers it."""

from fullrank_node.node_keys import BELIEVED, verdict_key
from fullrank_node.store import Store
from fullrank_protocol.envelope import Envelope, open_envelope
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.round import restore
from fullrank_protocol.round_state import RoundState, new_state
from fullrank_protocol.wire import objects_pb2 as wire


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
        envelope = open_envelope(data, swarm=genesis.swarm)
        envelopes.append(envelope)
        if trust_verdicts and envelope.type in (wire.CHECKPOINT, wire.SNAPSHOT):
            verdict = store.get_meta(verdict_key(envelope.id))
            if verdict == BELIEVED:
                believed.add(envelope.id)
            elif verdict is not None:
                verdicts[envelope.id] = verdict == b"\x01"
    state.arrival.blobs_here = frozenset(store.blobs.ids())
    return restore(state, iter(envelopes), verdicts, now_ms, believed=frozenset(believed))

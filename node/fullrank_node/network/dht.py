"""The DHT under our rules: hivemind's DHTNode with bounded unpacking, storage and waiting (protocol section 9).

Imports hivemind: only `PeerNetwork.start` brings this module in.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.p2p import P2P, PeerID
from hivemind.utils import MSGPackSerializer
from hivemind.utils.timed_storage import ValueWithExpiration

from fullrank_node.network.control import peer_id_bytes
from fullrank_node.network.packed import check_packed
from fullrank_node.network.records import (
    MAX_AUTHORS_PER_SHARD,
    Audience,
    audience_of,
    sign_record,
    strip_signature,
    unpack_binary,
)
from fullrank_node.network.validator import RecordRules
from fullrank_protocol.identity import SigningKey

logger = logging.getLogger(__name__)

MAX_KEYS = 4096
"""Dictionaries that one node holds: kinds times shards times the slots of a few hours."""

MAX_RECORDS = 65_536
"""Records that one node holds, about 80 MB; strangers get at most half of it."""

RPC_TIMEOUT_S = 3.0
"""hivemind's own bound for one question to one DHT node."""

GREET_TIMEOUT_S = 10.0
LOOKUP_TIMEOUT_S = 10.0
STORE_TIMEOUT_S = 20.0
"""A store asks several nodes, each for up to 3 s, where some are frozen (6 s measured)."""

_SHUTDOWN_TIMEOUT_S = 1.0
_COUNT_EVERY = 256

IsMember = Callable[[bytes], bool]


def forgive_forgotten_waits(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop not report tasks that did nothing but wait for an event when they were forgotten.

    hivemind's traversal leaves such a task behind for every question that runs when a search is broken off by its time
    limit, as many are after a standstill. Nothing is lost with them, and asyncio would log an error for each.
    """

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        task = context.get("task")
        if isinstance(task, asyncio.Task) and getattr(task.get_coro(), "__qualname__", "") == "Event.wait":
            logger.debug("%s: %r", context.get("message"), task)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(report)


class Directory:
    """Stores and finds records among the DHT nodes that this one knows."""

    def __init__(self, node: Any) -> None:
        self._node = node

    @classmethod
    async def create(
        cls, p2p: P2P, *, key: SigningKey, swarm: bytes, rules: RecordRules, is_member: IsMember | None, client: bool
    ) -> "Directory":
        """Joins nobody yet; `greet` does.

        Args:
            p2p: The running p2pd.
            key: Signs this node's records; the node's place in the DHT follows from it and the swarm.
            swarm: Swarm id.
            rules: What is accepted.
            is_member: Whether a key may use the members' dictionaries; None: not known, everybody may.
            client: Ask only, serve nobody: for a node that others cannot dial.
        """
        forgive_forgotten_waits(asyncio.get_running_loop())
        node = await DHTNode.create(
            p2p=p2p,
            node_id=DHTID.generate(source=swarm + key.public_key),
            record_validator=_Validator(key, rules),
            client_mode=client,
            wait_timeout=RPC_TIMEOUT_S,
            # A cache would answer from memory what others have renewed meanwhile.
            cache_locally=False,
            cache_on_store=False,
            cache_refresh_before_expiry=0,
            reuse_get_requests=False,
        )
        protocol = node.protocol
        protocol.serializer = _BoundedSerializer
        protocol.storage = _BoundedStorage(is_member)
        protocol.cache = _BoundedStorage(is_member)
        protocol.call_find = _honest_expiry(protocol.call_find)
        return cls(node)

    @property
    def num_neighbours(self) -> int:
        """DHT nodes in the routing table."""
        return len(self._node.protocol.routing_table.uid_to_peer_id)

    async def greet(self, peer: bytes) -> bool:
        """Learns of a connected peer's place in the DHT, and of the peers it knows; whether it answered."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GREET_TIMEOUT_S):
                if await self._node.protocol.call_ping(PeerID(peer_id_bytes(peer)), strict=False) is None:
                    return False
                await self._node.find_nearest_nodes([self._node.node_id])
                return True
        return False

    async def store(self, dht_key: bytes, *, subkey: bytes, value: bytes, expiration_s: float) -> bool:
        """Stores one record; False when nobody took it in time. True proves little: whoever took it may be gone."""
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                return bool(await self._node.store(dht_key, value, expiration_s, subkey=subkey))
        except TimeoutError:
            return False

    async def find(self, dht_keys: Sequence[bytes]) -> list[bytes]:
        """Values of all records under `dht_keys`, checked by the rules; those found in time."""
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                found = await self._node.get_many(dht_keys, sufficient_expiration_time=float("inf"))
        except TimeoutError:
            return []
        dictionaries = [item.value for item in found.values() if item is not None and isinstance(item.value, dict)]
        return [item.value for dictionary in dictionaries for item in dictionary.values()]

    def adopt_storage(self, older: "Directory") -> None:
        """Takes over what an earlier directory of this node held, after p2pd was replaced."""
        self._node.protocol.storage = older._node.protocol.storage

    async def close(self, *, alive: bool) -> None:
        """Stops answering. With p2pd dead there is nobody to sign off from: hivemind would wait for ever."""
        self._node.is_alive = False
        if not alive:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SHUTDOWN_TIMEOUT_S):
                await self._node.shutdown()


class _Validator(RecordValidatorBase):  # type: ignore[misc] # hivemind is untyped.
    """hivemind's questions, answered by our rules."""

    def __init__(self, key: SigningKey, rules: RecordRules) -> None:
        self._key = key
        self._rules = rules

    def validate(self, record: DHTRecord) -> bool:
        return self._rules.accepts(
            dht_id=record.key, subkey=record.subkey, value=record.value, expiration_s=record.expiration_time
        )

    def sign_value(self, record: DHTRecord) -> bytes:
        return sign_record(
            self._key,
            dht_id=record.key,
            subkey=record.subkey,
            value=record.value,
            expiration_s=record.expiration_time,
        )

    def strip_value(self, record: DHTRecord) -> bytes:
        return strip_signature(record.value)


class _BoundedSerializer(MSGPackSerializer):  # type: ignore[misc]
    """Unpacks only what has been measured."""

    @classmethod
    def loads(cls, buf: bytes) -> object:
        check_packed(buf)
        return MSGPackSerializer.loads(buf)


class _BoundedStorage(DHTLocalStorage):  # type: ignore[misc]
    """What a DHT node holds for others, bounded in dictionaries, authors and records."""

    def __init__(self, is_member: IsMember | None) -> None:
        super().__init__(maxsize=MAX_KEYS)
        self._is_member = is_member
        self._num_records = 0
        self._num_admitted = 0  # Since the records were counted last.

    def store_subkey(self, key: Any, subkey: Any, value: bytes, expiration_time: float) -> bool:
        held = self.data.get(key)
        authors = held.value.data if held is not None and isinstance(held.value, DictionaryDHTValue) else {}
        if subkey not in authors and not self._admits(subkey, value, num_authors=len(authors)):
            return False
        return bool(super().store_subkey(key, subkey, value, expiration_time))

    def _admits(self, author: bytes, value: bytes, *, num_authors: int) -> bool:
        """Whether one more record may be held; the value has passed the rules."""
        audience = audience_of(unpack_binary(strip_signature(value)))
        if audience == Audience.MEMBERS and self._is_member is not None and not self._is_member(author):
            return False
        share = 1 if audience == Audience.MEMBERS else 2
        admits = num_authors < MAX_AUTHORS_PER_SHARD and self._count() < MAX_RECORDS // share
        self._num_admitted += admits
        return admits

    def _count(self) -> int:
        """Records held, at most; counted anew when enough have come to make a difference."""
        if self._num_admitted >= _COUNT_EVERY or self._num_records + self._num_admitted >= MAX_RECORDS // 2:
            dictionaries = (item.value for item in self.data.values())
            self._num_records = sum(len(d.data) for d in dictionaries if isinstance(d, DictionaryDHTValue))
            self._num_admitted = 0
        return self._num_records + self._num_admitted


def _honest_expiry(call_find: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a search so that a dictionary lives no longer than its longest record.

    The expiry beside a dictionary is the answerer's bare word; infinity would end the search at once, with whatever
    that answerer chose to give.
    """

    async def find(peer: Any, keys: Any) -> Any:
        found = await call_find(peer, keys)
        for key, (item, nearest) in (found or {}).items():
            if item is None:
                continue
            expiries = (
                [entry.expiration_time for _, entry in item.value.items()]
                if isinstance(item.value, DictionaryDHTValue)
                else []
            )
            honest = ValueWithExpiration(item.value, max(expiries)) if expiries else None
            found[key] = honest, nearest
        return found

    return find

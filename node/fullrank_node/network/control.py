"""Commands to p2pd over its control socket: dial, list, hang up, open a stream.

hivemind's own client leaves its socket open when a call is cancelled; here every call has a timeout
and always closes. Imports hivemind: only `PeerNetwork.start` brings this module in.
"""

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hivemind.p2p.p2p_daemon_bindings.utils import read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from fullrank_node.network.asking import Stream
from fullrank_node.network.interface import DialError, OtherSwarm, PeerUnreachable

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 5.0
"""For commands that p2pd answers by itself, in milliseconds when it is well."""

_PEER_ID_PREFIX = bytes.fromhex("002408011220")  # Identity multihash of an Ed25519 key.

_NOT_SERVED = "protocols not supported"

_EXPLANATIONS = (
    (_NOT_SERVED, "the peer does not serve this swarm"),
    ("failed to negotiate protocol", "the peer does not serve this swarm"),
    ("peer id mismatch", "somebody else answers at this address"),
    ("connection refused", "nothing listens there"),
    ("no route to host", "no route to this address"),
    ("network is unreachable", "no route to this address"),
    ("dial backoff", "it failed a moment ago, and p2pd pauses before it tries again"),
    ("i/o timeout", "no answer from this address"),
    ("context deadline exceeded", "no answer from this address"),
    ("dial to self attempted", "this is our own address"),
    ("failed to find any peer in table", "no address of the peer is known"),
    ("routing: not found", "no address of the peer is known"),
    ("no addresses", "no address of the peer is known"),
    ("no good addresses", "no usable address of the peer is known"),
)


def peer_id_bytes(key: bytes) -> bytes:
    """The binary peer id of a key."""
    return _PEER_ID_PREFIX + key


def key_of_peer_id(data: bytes) -> bytes | None:
    """The key in a binary peer id; None for ids of other kinds of keys."""
    key = data.removeprefix(_PEER_ID_PREFIX)
    return key if len(key) == 32 and len(data) == 38 else None


def explain(message: str) -> str:
    """What p2pd says, in words for people."""
    lowered = message.lower()
    for fragment, explanation in _EXPLANATIONS:
        if fragment in lowered:
            return explanation
    return message.removeprefix("Connect failed. msg=").strip()[:200]


class Control:
    """Commands to one p2pd."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path

    async def identify(self) -> list[str]:
        """Where p2pd listens, as multiaddresses without peer id."""
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY)
        response = await self._call(request, timeout_s=CALL_TIMEOUT_S)
        return _to_text(response.identify.addrs)

    async def list_peers(self) -> dict[bytes, list[str]]:
        """Keys of the peers with an open connection, and its remote address."""
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS)
        response = await self._call(request, timeout_s=CALL_TIMEOUT_S)
        peers = {key_of_peer_id(peer.id): _to_text(peer.addrs) for peer in response.peers}
        return {key: addresses for key, addresses in peers.items() if key is not None}

    async def connect(self, key: bytes, addresses: Iterable[str], *, timeout_s: float) -> None:
        """Dials a peer at all of `addresses` (without peer id) at once.

        Raises:
            DialError: None answered as that peer.
            PeerUnreachable: Not within `timeout_s`.
        """
        binary = [_to_binary(address) for address in addresses]
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.CONNECT,
            connect=p2pd_pb2.ConnectRequest(peer=peer_id_bytes(key), addrs=binary, timeout=max(1, int(timeout_s))),
        )
        await self._call(request, timeout_s=timeout_s)

    async def disconnect(self, key: bytes) -> None:
        """Hangs up."""
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.DISCONNECT, disconnect=p2pd_pb2.DisconnectRequest(peer=peer_id_bytes(key))
        )
        await self._call(request, timeout_s=CALL_TIMEOUT_S)

    async def open_stream(self, key: bytes, protocol: str, *, timeout_s: float) -> Stream:
        """Opens a stream to a peer, dialling it where its address is known.

        Raises:
            PeerUnreachable: No such peer, or it does not serve `protocol`.
        """
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.STREAM_OPEN,
            streamOpen=p2pd_pb2.StreamOpenRequest(peer=peer_id_bytes(key), proto=[protocol]),
        )
        stream = await self._connect()
        try:
            await self._exchange(stream, request, timeout_s=timeout_s)
        except BaseException:
            stream[1].close()
            raise
        return stream

    async def _call(self, request: Any, *, timeout_s: float) -> Any:
        stream = await self._connect()
        try:
            return await self._exchange(stream, request, timeout_s=timeout_s)
        finally:
            stream[1].close()

    async def _connect(self) -> Stream:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await asyncio.open_unix_connection(str(self._socket_path))
        except (OSError, TimeoutError) as error:
            raise PeerUnreachable("the network process (p2pd) of this node is down") from error

    async def _exchange(self, stream: Stream, request: Any, *, timeout_s: float) -> Any:
        response = p2pd_pb2.Response()
        try:
            async with asyncio.timeout(timeout_s):
                await write_pbmsg(stream[1], request)
                await read_pbmsg_safe(stream[0], response)
        except TimeoutError as error:
            raise PeerUnreachable(f"no answer within {timeout_s:g} s") from error
        except (OSError, asyncio.IncompleteReadError) as error:
            raise PeerUnreachable("the network process (p2pd) of this node went down") from error
        if response.type == p2pd_pb2.Response.ERROR:
            message = response.error.msg
            if _NOT_SERVED in message.lower():  # The protocol's name holds the swarm's id.
                raise OtherSwarm(explain(message))
            backs_off = "dial backoff" in message
            raise DialError(explain(message), by_address=_reasons(message), again_soon=backs_off)
        return response


def _to_binary(address: str) -> bytes:
    try:
        return bytes(Multiaddr(address).to_bytes())
    except Exception as error:  # hivemind's parser raises what its codecs do: KeyError, ValueError…
        raise PeerUnreachable(f"{address!r} is no address that p2pd understands") from error


def _to_text(addresses: Sequence[bytes]) -> list[str]:
    texts = []
    for address in addresses:
        try:
            texts.append(str(Multiaddr(address)))
        except Exception as error:  # noqa: BLE001 - hivemind's parser raises what its codecs do: KeyError, ValueError…
            logger.debug("Left out an address that cannot be shown (%s): %s", address.hex(), error)
    return texts


def _reasons(message: str) -> dict[str, str]:
    return {address: explain(reason) for address, reason in re.findall(r"\* \[([^\]]+)\] (.+)", message)}

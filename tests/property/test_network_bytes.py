"""Whatever strangers send, the network's parsers refuse it in one way only."""

import asyncio
from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from swarms import id_of

from fullrank_node.addresses import parse_address
from fullrank_node.network.frames import FrameTooLargeError, MalformedFrameError, read_message
from fullrank_node.network.packed import MAX_NESTING, check_packed
from fullrank_node.network.records import open_record, pack_binary, unpack_binary
from fullrank_protocol.errors import RejectError
from fullrank_protocol.wire import peer_pb2

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary() | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(st.binary())
def test_packed_bytes_pass_or_are_refused(data: bytes) -> None:
    try:
        check_packed(data)
    except RejectError:
        return
    msgpack.unpackb(data, raw=True, strict_map_key=False, ext_hook=lambda _, content: content)


def depth(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 0


@given(VALUES)
def test_whatever_is_packed_passes_unless_it_is_deep(value: Any) -> None:
    data = msgpack.packb(value)
    if depth(value) <= MAX_NESTING:
        check_packed(data)


@given(st.binary(max_size=70_000))
def test_byte_strings_are_packed_in_one_way(data: bytes) -> None:
    if len(data) < 1 << 16:
        assert pack_binary(data) == msgpack.packb(data)
        assert unpack_binary(pack_binary(data)) == data


@given(st.binary(), st.binary(), st.binary(), st.floats())
def test_a_record_opens_or_is_refused(dht_id: bytes, subkey: bytes, value: bytes, expiration_s: float) -> None:
    try:
        open_record(swarm=id_of("swarm"), dht_id=dht_id, subkey=subkey, value=value, expiration_s=expiration_s)
    except RejectError:
        return
    raise AssertionError("nobody signs by chance")


@given(st.text() | st.from_regex(r"/ip4/[0-9.]{1,9}/tcp/[0-9]{1,6}/p2p/12D3KooW[1-9A-HJ-NP-Za-km-z]{1,50}"))
def test_an_address_parses_or_is_a_value_error(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert parse_address(str(address)) == address


@given(st.binary(max_size=200))
def test_a_frame_is_read_or_refused(data: bytes) -> None:
    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        await read_message(reader, peer_pb2.Request, max_bytes=100)

    try:
        asyncio.run(read())
    except (FrameTooLargeError, MalformedFrameError, asyncio.IncompleteReadError):
        return

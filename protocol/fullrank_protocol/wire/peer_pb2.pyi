from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Request(_message.Message):
    __slots__ = ("protocol_version", "swarm", "get_genesis", "inventory", "get_objects", "offer", "get_blob", "has_blobs", "get_chain")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SWARM_FIELD_NUMBER: _ClassVar[int]
    GET_GENESIS_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_FIELD_NUMBER: _ClassVar[int]
    GET_OBJECTS_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    GET_BLOB_FIELD_NUMBER: _ClassVar[int]
    HAS_BLOBS_FIELD_NUMBER: _ClassVar[int]
    GET_CHAIN_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    swarm: bytes
    get_genesis: GetGenesis
    inventory: Inventory
    get_objects: GetObjects
    offer: Offer
    get_blob: GetBlob
    has_blobs: HasBlobs
    get_chain: GetChain
    def __init__(self, protocol_version: _Optional[int] = ..., swarm: _Optional[bytes] = ..., get_genesis: _Optional[_Union[GetGenesis, _Mapping]] = ..., inventory: _Optional[_Union[Inventory, _Mapping]] = ..., get_objects: _Optional[_Union[GetObjects, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., get_blob: _Optional[_Union[GetBlob, _Mapping]] = ..., has_blobs: _Optional[_Union[HasBlobs, _Mapping]] = ..., get_chain: _Optional[_Union[GetChain, _Mapping]] = ...) -> None: ...

class Response(_message.Message):
    __slots__ = ("failure", "objects", "inventory", "blob_header", "blobs_present", "received")
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_FIELD_NUMBER: _ClassVar[int]
    BLOB_HEADER_FIELD_NUMBER: _ClassVar[int]
    BLOBS_PRESENT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    failure: Failure
    objects: Objects
    inventory: Inventory
    blob_header: BlobHeader
    blobs_present: BlobsPresent
    received: Received
    def __init__(self, failure: _Optional[_Union[Failure, _Mapping]] = ..., objects: _Optional[_Union[Objects, _Mapping]] = ..., inventory: _Optional[_Union[Inventory, _Mapping]] = ..., blob_header: _Optional[_Union[BlobHeader, _Mapping]] = ..., blobs_present: _Optional[_Union[BlobsPresent, _Mapping]] = ..., received: _Optional[_Union[Received, _Mapping]] = ...) -> None: ...

class GetGenesis(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Inventory(_message.Message):
    __slots__ = ("from_slot", "head", "head_slot", "final", "final_slot", "object_ids", "addresses", "archive")
    FROM_SLOT_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    HEAD_SLOT_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    FINAL_SLOT_FIELD_NUMBER: _ClassVar[int]
    OBJECT_IDS_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ARCHIVE_FIELD_NUMBER: _ClassVar[int]
    from_slot: int
    head: bytes
    head_slot: int
    final: bytes
    final_slot: int
    object_ids: _containers.RepeatedScalarFieldContainer[bytes]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    archive: bool
    def __init__(self, from_slot: _Optional[int] = ..., head: _Optional[bytes] = ..., head_slot: _Optional[int] = ..., final: _Optional[bytes] = ..., final_slot: _Optional[int] = ..., object_ids: _Optional[_Iterable[bytes]] = ..., addresses: _Optional[_Iterable[str]] = ..., archive: _Optional[bool] = ...) -> None: ...

class GetObjects(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ids: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GetChain(_message.Message):
    __slots__ = ("after_slot",)
    AFTER_SLOT_FIELD_NUMBER: _ClassVar[int]
    after_slot: int
    def __init__(self, after_slot: _Optional[int] = ...) -> None: ...

class Objects(_message.Message):
    __slots__ = ("envelopes", "more")
    ENVELOPES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    envelopes: _containers.RepeatedScalarFieldContainer[bytes]
    more: bool
    def __init__(self, envelopes: _Optional[_Iterable[bytes]] = ..., more: _Optional[bool] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("envelopes",)
    ENVELOPES_FIELD_NUMBER: _ClassVar[int]
    envelopes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, envelopes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Received(_message.Message):
    __slots__ = ("num_new", "refused")
    NUM_NEW_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    num_new: int
    refused: _containers.RepeatedCompositeFieldContainer[RefusedObject]
    def __init__(self, num_new: _Optional[int] = ..., refused: _Optional[_Iterable[_Union[RefusedObject, _Mapping]]] = ...) -> None: ...

class RefusedObject(_message.Message):
    __slots__ = ("id", "rule", "detail")
    ID_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    rule: int
    detail: str
    def __init__(self, id: _Optional[bytes] = ..., rule: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class GetBlob(_message.Message):
    __slots__ = ("id", "first_chunk", "num_chunks")
    ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    NUM_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    first_chunk: int
    num_chunks: int
    def __init__(self, id: _Optional[bytes] = ..., first_chunk: _Optional[int] = ..., num_chunks: _Optional[int] = ...) -> None: ...

class BlobHeader(_message.Message):
    __slots__ = ("num_bytes", "chunk_sha256")
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SHA256_FIELD_NUMBER: _ClassVar[int]
    num_bytes: int
    chunk_sha256: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, num_bytes: _Optional[int] = ..., chunk_sha256: _Optional[_Iterable[bytes]] = ...) -> None: ...

class HasBlobs(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ids: _Optional[_Iterable[bytes]] = ...) -> None: ...

class BlobsPresent(_message.Message):
    __slots__ = ("present",)
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    present: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, present: _Optional[_Iterable[bool]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "detail", "protocol_version")
    class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CODE_UNSPECIFIED: _ClassVar[Failure.Code]
        NOT_FOUND: _ClassVar[Failure.Code]
        WRONG_SWARM: _ClassVar[Failure.Code]
        WRONG_VERSION: _ClassVar[Failure.Code]
        TOO_LARGE: _ClassVar[Failure.Code]
        BUSY: _ClassVar[Failure.Code]
        MALFORMED: _ClassVar[Failure.Code]
        SHUT_OUT: _ClassVar[Failure.Code]
    CODE_UNSPECIFIED: Failure.Code
    NOT_FOUND: Failure.Code
    WRONG_SWARM: Failure.Code
    WRONG_VERSION: Failure.Code
    TOO_LARGE: Failure.Code
    BUSY: Failure.Code
    MALFORMED: Failure.Code
    SHUT_OUT: Failure.Code
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    code: Failure.Code
    detail: str
    protocol_version: int
    def __init__(self, code: _Optional[_Union[Failure.Code, str]] = ..., detail: _Optional[str] = ..., protocol_version: _Optional[int] = ...) -> None: ...

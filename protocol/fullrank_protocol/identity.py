"""Ed25519 keys: who signs, and what counts as a signature (protocol section 2).

One key is a node's member key, its signing key and its libp2p identity. Verification is strict, because every
node must come to the same answer: keys of small order, keys and scalars that are not in canonical form are refused
before the library sees them, and the library compares the recomputed R byte for byte (no cofactor).
"""

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.limits import KEY_BYTES, SIGNATURE_BYTES

FIELD_PRIME: Final = 2**255 - 19
"""Coordinates of curve points are integers below it (RFC 8032 section 5.1)."""

GROUP_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
"""Order of the base point; the scalar S of a signature is below it (RFC 8032 section 5.1.7)."""

_ORDER_8_Y: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7

SMALL_ORDER_Y: Final = frozenset({0, 1, FIELD_PRIME - 1, _ORDER_8_Y, FIELD_PRIME - _ORDER_8_Y})
"""The y coordinates of the eight points whose order divides 8. One signature would fit many messages under them."""

_IDENTITY_FILE_PREFIX: Final = bytes.fromhex("08011240")  # libp2p PrivateKey {type: Ed25519, data: 64 bytes}
_PEER_ID_PREFIX: Final = bytes.fromhex("002408011220")  # identity multihash of libp2p PublicKey {Ed25519, 32 bytes}
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_MAX_PEER_ID_CHARS: Final = 64


class SigningKey:
    """A secret Ed25519 key. Its text form shows the public half only.

    Attributes:
        public_key: 32 bytes; the name of its owner everywhere in the protocol.
    """

    __slots__ = ("_private", "public_key")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private: Final = private
        self.public_key: Final[bytes] = private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> "SigningKey":
        """A new key from the system's own randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> "SigningKey":
        """The key that belongs to a 32-byte seed.

        Raises:
            ValueError: The seed has another length.
        """
        if len(seed) != KEY_BYTES:
            raise ValueError(f"a key seed has {len(seed)} bytes, {KEY_BYTES} required")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes."""
        return self._private.private_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """The 64-byte signature of `data`; the same data always gives the same signature."""
        return self._private.sign(data)

    def __repr__(self) -> str:
        return f"SigningKey(public_key={self.public_key.hex()})"


def check_public_key(public_key: bytes, *, what: str = "public key") -> bytes:
    """Returns `public_key` when it may stand in a signed object: right length, canonical, not of small order.

    Raises:
        RejectError: SIGNATURE, with what is wrong about it.
    """
    if len(public_key) != KEY_BYTES:
        raise RejectError(Rule.SIGNATURE, f"{what} has {len(public_key)} bytes, {KEY_BYTES} required")
    y = int.from_bytes(public_key, "little") & (2**255 - 1)
    if y >= FIELD_PRIME:
        raise RejectError(Rule.SIGNATURE, f"{what} {public_key.hex()} is not in canonical form")
    if y in SMALL_ORDER_Y:
        raise RejectError(Rule.SIGNATURE, f"{what} {public_key.hex()} has small order")
    return public_key


def verify(public_key: bytes, data: bytes, signature: bytes) -> bool:
    """Whether `signature` is the strict Ed25519 signature of `data` by `public_key`. Never raises."""
    try:
        check_public_key(public_key)
    except RejectError:
        return False
    if len(signature) != SIGNATURE_BYTES or int.from_bytes(signature[32:], "little") >= GROUP_ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def libp2p_identity_file(seed: bytes, public_key: bytes) -> bytes:
    """The 68 bytes that p2pd reads as its identity: 08 01 12 40, seed, public key.

    Raises:
        ValueError: The two do not belong together.
    """
    if SigningKey.from_seed(seed).public_key != public_key:
        raise ValueError("the public key does not belong to the seed")
    return _IDENTITY_FILE_PREFIX + seed + public_key


def peer_id(public_key: bytes) -> str:
    """The libp2p peer id of a key, e.g. "12D3KooW…": base58 of a multihash that holds the key itself."""
    if len(public_key) != KEY_BYTES:
        raise ValueError(f"a public key has {len(public_key)} bytes, {KEY_BYTES} required")
    number = int.from_bytes(_PEER_ID_PREFIX + public_key, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    return "1" + "".join(reversed(digits))  # One leading "1" for the multihash's one leading zero byte.


def public_key_of_peer_id(text: str) -> bytes:
    """The Ed25519 key inside a libp2p peer id.

    Raises:
        RejectError: SCHEMA, when it is no peer id of an acceptable Ed25519 key.
    """
    if len(text) > _MAX_PEER_ID_CHARS or not text.startswith("1") or any(c not in _BASE58 for c in text):
        raise RejectError(Rule.SCHEMA, f"{text[:_MAX_PEER_ID_CHARS]!r} is not a libp2p peer id of an Ed25519 key")
    number = 0
    for character in text:
        number = number * 58 + _BASE58.index(character)
    size = len(_PEER_ID_PREFIX) + KEY_BYTES
    try:
        data = number.to_bytes(size, "big")
    except OverflowError:
        data = b""
    key = data[len(_PEER_ID_PREFIX) :]
    if not data.startswith(_PEER_ID_PREFIX) or peer_id(key) != text:
        raise RejectError(Rule.SCHEMA, f"{text!r} is not a libp2p peer id of an Ed25519 key")
    return check_public_key(key, what="the key in the peer id")

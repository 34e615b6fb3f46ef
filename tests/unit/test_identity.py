"""Keys and signatures: what everybody must accept, and what everybody must refuse."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from ed25519 import holds_times_cofactor, with_torsion
from swarms import key_of, seed_of

from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.identity import (
    FIELD_PRIME,
    GROUP_ORDER,
    SMALL_ORDER_Y,
    SigningKey,
    check_public_key,
    libp2p_identity_file,
    peer_id,
    public_key_of_peer_id,
    verify,
)

# RFC 8032 section 7.1: seed, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24"
        "655141438e7a100b",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28d"
        "c027beceea1ec40a",
    ),
]

CURVE_D = -121665 * pow(121666, -1, FIELD_PRIME) % FIELD_PRIME


def points_with_y(y: int) -> list[tuple[int, int]]:
    """The points of the curve -x^2 + y^2 = 1 + d x^2 y^2 with that y."""
    square = (y * y - 1) * pow(CURVE_D * y * y + 1, -1, FIELD_PRIME) % FIELD_PRIME
    x = pow(square, (FIELD_PRIME + 3) // 8, FIELD_PRIME)
    if x * x % FIELD_PRIME != square:
        x = x * pow(2, (FIELD_PRIME - 1) // 4, FIELD_PRIME) % FIELD_PRIME
    assert x * x % FIELD_PRIME == square, "no such point"
    return [(x, y), (-x % FIELD_PRIME, y)]


def double(point: tuple[int, int]) -> tuple[int, int]:
    """Twice a point (RFC 8032 section 5.1.4, in affine coordinates)."""
    x, y = point
    product = CURVE_D * x * x * y * y
    return (
        2 * x * y * pow(1 + product, -1, FIELD_PRIME) % FIELD_PRIME,
        (y * y + x * x) * pow(1 - product, -1, FIELD_PRIME) % FIELD_PRIME,
    )


@pytest.mark.parametrize(("seed", "public_key", "message", "signature"), RFC_8032)
def test_signatures_are_those_of_rfc_8032(seed: str, public_key: str, message: str, signature: str) -> None:
    key = SigningKey.from_seed(bytes.fromhex(seed))
    assert key.public_key.hex() == public_key
    assert key.seed.hex() == seed
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert verify(key.public_key, bytes.fromhex(message), bytes.fromhex(signature))


def test_a_signature_fits_one_message_and_one_key() -> None:
    key = key_of("ada")
    signature = key.sign(b"yes")
    assert verify(key.public_key, b"yes", signature)
    assert not verify(key.public_key, b"no", signature)
    assert not verify(key_of("bob").public_key, b"yes", signature)
    assert not verify(key.public_key, b"yes", signature[:-1])
    assert not verify(key.public_key, b"yes", signature + b"\0")
    assert not verify(key.public_key[:-1], b"yes", signature)


def test_a_scalar_above_the_group_order_is_refused() -> None:
    key = key_of("ada")
    signature = key.sign(b"yes")
    scalar = int.from_bytes(signature[32:], "little")
    assert scalar < GROUP_ORDER
    same_point = signature[:32] + (scalar + GROUP_ORDER).to_bytes(32, "little")
    assert not verify(key.public_key, b"yes", same_point)


def test_a_signature_that_holds_only_times_the_cofactor_is_refused() -> None:
    """Batch verification with a cofactor would take it, and nodes would disagree."""
    ada = key_of("ada")
    signature = with_torsion(ada.seed, b"one message")
    assert holds_times_cofactor(ada.public_key, b"one message", signature)
    assert holds_times_cofactor(ada.public_key, b"one message", ada.sign(b"one message"))
    assert not holds_times_cofactor(ada.public_key, b"another message", signature)
    assert not verify(ada.public_key, b"one message", signature)


def test_the_eight_small_order_points_are_exactly_those_that_are_refused() -> None:
    points = {point for y in SMALL_ORDER_Y for point in points_with_y(y)}
    assert len(points) == 8
    for point in points:
        assert double(double(double(point))) == (0, 1), "the order does not divide 8"


@pytest.mark.parametrize("y", sorted(SMALL_ORDER_Y))
@pytest.mark.parametrize("sign", [0, 1])
def test_small_order_keys_are_refused(y: int, sign: int) -> None:
    key = (y | sign << 255).to_bytes(32, "little")
    with pytest.raises(RejectError, match="small order") as caught:
        check_public_key(key)
    assert caught.value.rule is Rule.SIGNATURE


def test_the_signature_of_anything_under_the_neutral_key_is_refused() -> None:
    neutral = (1).to_bytes(32, "little")
    forged = neutral + bytes(32)  # R = neutral, S = 0: 0 * B = R + h * neutral, whatever the message.
    Ed25519PublicKey.from_public_bytes(neutral).verify(forged, b"anything")
    assert not verify(neutral, b"anything", forged)


@pytest.mark.parametrize("y", [FIELD_PRIME, FIELD_PRIME + 1, FIELD_PRIME + 3, 2**255 - 1])
@pytest.mark.parametrize("sign", [0, 1])
def test_keys_that_are_not_canonical_are_refused(y: int, sign: int) -> None:
    key = (y | sign << 255).to_bytes(32, "little")
    with pytest.raises(RejectError, match="canonical form"):
        check_public_key(key)
    assert not verify(key, b"", bytes(64))


def test_a_key_that_is_no_point_verifies_nothing() -> None:
    y = next(y for y in range(2, 100) if not is_on_curve(y))
    assert not verify(y.to_bytes(32, "little"), b"", bytes(64))


def is_on_curve(y: int) -> bool:
    """Whether a point has that y."""
    square = (y * y - 1) * pow(CURVE_D * y * y + 1, -1, FIELD_PRIME) % FIELD_PRIME
    return square == 0 or pow(square, (FIELD_PRIME - 1) // 2, FIELD_PRIME) == 1


def test_a_seed_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="31 bytes, 32 required"):
        SigningKey.from_seed(bytes(31))


def test_new_keys_differ() -> None:
    assert SigningKey.generate().public_key != SigningKey.generate().public_key


def test_a_key_does_not_show_its_secret() -> None:
    key = key_of("ada")
    assert key.seed.hex() not in repr(key)
    assert key.public_key.hex() in repr(key)


def test_the_identity_file_and_the_peer_id_are_those_of_the_libp2p_specification() -> None:
    # github.com/libp2p/specs, peer-ids/peer-ids.md, test vectors: private and public key of type Ed25519.
    private = bytes.fromhex(
        "080112407e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d"
        "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
    )
    seed, public_key = private[4:36], private[36:]
    assert libp2p_identity_file(seed, public_key) == private
    assert len(private) == 68
    assert public_key_of_peer_id(peer_id(public_key)) == public_key


def test_an_identity_file_needs_both_halves_of_one_key() -> None:
    with pytest.raises(ValueError, match="does not belong"):
        libp2p_identity_file(seed_of("ada"), key_of("bob").public_key)


def test_peer_ids_begin_as_libp2p_users_know_them() -> None:
    for name in ("ada", "bob", "cyd"):
        text = peer_id(key_of(name).public_key)
        assert text.startswith("12D3KooW")
        assert len(text) == 52
        assert public_key_of_peer_id(text) == key_of(name).public_key


def test_the_example_peer_id_of_the_specification_reads() -> None:
    text = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"
    assert peer_id(public_key_of_peer_id(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "12D3KooW",
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # an RSA key's hash
        "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5S0",  # 0 is no base58 digit
        "112D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA",  # a leading zero byte too many
        "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SAA",
        "é2D3KooW",
        "z" * 1000,
    ],
)
def test_what_is_no_peer_id_of_an_ed25519_key_is_refused(text: str) -> None:
    with pytest.raises(RejectError, match="not a libp2p peer id") as caught:
        public_key_of_peer_id(text)
    assert caught.value.rule is Rule.SCHEMA


def test_a_peer_id_with_a_small_order_key_is_refused() -> None:
    with pytest.raises(RejectError, match="small order"):
        public_key_of_peer_id(peer_id((1).to_bytes(32, "little")))

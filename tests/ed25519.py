"""Just enough of Ed25519 (RFC 8032) to sign what no library signs: a signature that holds only times the cofactor."""

import hashlib

PRIME = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, PRIME) % PRIME

Point = tuple[int, int]

NEUTRAL: Point = (0, 1)
OF_ORDER_2: Point = (0, PRIME - 1)


def add(one: Point, other: Point) -> Point:
    """The sum of two points of the curve, in affine coordinates."""
    (x1, y1), (x2, y2) = one, other
    product = D * x1 * x2 * y1 * y2 % PRIME
    x = (x1 * y2 + x2 * y1) * pow(1 + product, -1, PRIME)
    y = (y1 * y2 + x1 * x2) * pow(1 - product, -1, PRIME)
    return x % PRIME, y % PRIME


def times(scalar: int, point: Point) -> Point:
    """The point added to itself `scalar` times."""
    total = NEUTRAL
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point, scalar = add(point, point), scalar >> 1
    return total


def decoded(data: bytes) -> Point:
    """The point whose 32 bytes these are."""
    y = int.from_bytes(data, "little") & (2**255 - 1)
    square = (y * y - 1) * pow(D * y * y + 1, -1, PRIME) % PRIME
    x = pow(square, (PRIME + 3) // 8, PRIME)
    if x * x % PRIME != square:
        x = x * pow(2, (PRIME - 1) // 4, PRIME) % PRIME
    return (PRIME - x if x & 1 != data[31] >> 7 else x), y


def encoded(point: Point) -> bytes:
    """The 32 bytes of a point."""
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


BASE = decoded((4 * pow(5, -1, PRIME) % PRIME).to_bytes(32, "little"))


def with_torsion(seed: bytes, message: bytes) -> bytes:
    """A signature whose R is off by the point of order 2: 8SB = 8R + 8kA holds, SB = R + kA does not."""
    digest = hashlib.sha512(seed).digest()
    secret = int.from_bytes(digest[:32], "little") & (1 << 254) - 8 | 1 << 254
    public = encoded(times(secret, BASE))
    nonce = int.from_bytes(hashlib.sha512(digest[32:] + message).digest(), "little") % ORDER
    off = encoded(add(times(nonce, BASE), OF_ORDER_2))
    challenge = int.from_bytes(hashlib.sha512(off + public + message).digest(), "little") % ORDER
    return off + ((nonce + challenge * secret) % ORDER).to_bytes(32, "little")


def holds_times_cofactor(public: bytes, message: bytes, signature: bytes) -> bool:
    """What a verification with a cofactor would say."""
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % ORDER
    right = add(decoded(signature[:32]), times(challenge, decoded(public)))
    return times(8 * int.from_bytes(signature[32:], "little"), BASE) == times(8, right)

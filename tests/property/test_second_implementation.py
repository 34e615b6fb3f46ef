"""The protocol's text is enough: what it says, written again from it with plain integers, gives the same bytes.

Nothing here uses the packages' arithmetic; formulas are those of protocol/README.md, in its words and order.
"""

import hashlib
import math
import random
import struct
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import swarms
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fullrank_protocol.blob import blob_ref
from fullrank_protocol.codec import decode, encode
from fullrank_protocol.delta import Delta, Dense, LowRank, SeedContext, expand, seeded_rows, validate
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.gram import gram
from fullrank_protocol.proposing import draw
from fullrank_protocol.records import root_action_id
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.state import apply_tile, canonical_float32, model_digest, plan_module, tensor_sha256
from fullrank_protocol.weights import Entry, PastUpdate, past_update, weigh

SWARM = swarms.swarm_of(founders=("ada", "bob"))
GENESIS: Genesis = SWARM.genesis
CONTEXT = SeedContext(swarm=SWARM.id, member=swarms.key_of("ada").public_key, period=3)

Component = tuple[int, int, list[int], list[int]]  # s, e, B_k, A_k


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def framed(*fields: bytes) -> bytes:
    """L(x) of every field, joined (section 2)."""
    return b"".join(u64(len(field)) + field for field in fields)


# ---- section 2, 4, 5, 10: ids -----------------------------------------------------------------------


def test_envelope_id_is_the_hash_of_the_signed_bytes() -> None:
    envelope = SWARM.contribution("ada").envelope
    signed = framed(
        b"fullrank.v1.envelope",
        u32(envelope.version),
        envelope.swarm,
        u32(envelope.type),
        envelope.payload,
        envelope.public_key,
    )
    assert envelope.signed_bytes() == signed
    assert envelope.id == hashlib.sha256(signed).digest()
    assert swarms.key_of("ada").sign(signed) == envelope.signature


@pytest.mark.parametrize("num_bytes", [0, 1, 1 << 20, (1 << 20) + 1])
def test_blob_id_is_the_hash_over_length_and_chunk_hashes(num_bytes: int) -> None:
    data = random.Random(num_bytes).randbytes(num_bytes)
    chunks = [data[start : start + (1 << 20)] for start in range(0, num_bytes, 1 << 20)]
    hashes = [hashlib.sha256(chunk).digest() for chunk in chunks]
    assert blob_ref(data).id == hashlib.sha256(framed(b"fullrank.v1.blob", u64(num_bytes), *hashes)).digest()


def test_draw_and_root_action_are_plain_hashes() -> None:
    key = CONTEXT.member
    assert draw(SWARM.id, 7, key) == hashlib.sha256(b"fullrank.v1.draw" + SWARM.id + u64(7) + key).digest()
    action = framed(b"fullrank.v1.root-action", SWARM.id, u32(6), b"payload")
    assert root_action_id(swarm=SWARM.id, type=6, payload=b"payload") == hashlib.sha256(action).digest()


# ---- section 6: seeded A, codec 1 -------------------------------------------------------------------


def seeded_row(module: str, row: int, columns: int) -> list[int]:
    """Row of a seeded A, bit by bit."""
    seed = framed(b"fullrank.v1.seeded-a", CONTEXT.swarm, CONTEXT.member, module.encode(), u64(CONTEXT.period))
    stream = hashlib.shake_128(seed).digest(((row + 1) * columns + 7) // 8)
    bits = [stream[i // 8] >> i % 8 & 1 for i in range(row * columns, (row + 1) * columns)]
    return [1 if bit else -1 for bit in bits]


@pytest.mark.parametrize("columns", [1, 3, 8, 13])
def test_seeded_rows_are_the_bits_of_the_stream(columns: int) -> None:
    drawn = seeded_rows(CONTEXT, "up.weight", rows=5, columns=columns)
    assert drawn.tolist() == [seeded_row("up.weight", row, columns) for row in range(5)]


def unpacked(data: bytes, count: int, width: int) -> list[int]:
    """Entries of a packed array, as the integers that they stand for."""
    whole = int.from_bytes(data, "little")
    entries = [whole >> width * i & (1 << width) - 1 for i in range(count)]
    signed = [entry - (1 << width) if entry >> width - 1 else entry for entry in entries]
    return [entry << 8 - width for entry in signed]


def components_of(blob: bytes) -> dict[str, list[Component]]:
    """All components of an encoded delta by module, seeded rows drawn (codec 1)."""
    (count,) = struct.unpack_from("<I", blob)
    heads = list(struct.iter_unpack("<IBBBH", blob[4 : 4 + 9 * count]))
    body = zstandard.ZstdDecompressor().decompress(blob[4 + 9 * count :])
    at = 0

    def take(num_bytes: int) -> bytes:
        nonlocal at
        at += num_bytes
        return body[at - num_bytes : at]

    found: dict[str, list[Component]] = {}
    for index, form, width_b, width_a, rank in heads:
        module = GENESIS.modules[index]
        rows_b, columns_a = module.out_features, module.in_features
        scales = list(take(rank))
        exponents = struct.unpack(f"<{rank}h", take(2 * rank))
        seeded = struct.unpack(f"<{rank}H", take(2 * rank)) if form == 1 else ()
        flat_b = unpacked(take((rank * rows_b * width_b + 7) // 8), rank * rows_b, width_b)
        flat_a = unpacked(take((rank * columns_a * width_a + 7) // 8), rank * columns_a, width_a) if form == 0 else []
        found[module.name] = [
            (
                scales[k],
                exponents[k],
                flat_b[k * rows_b : (k + 1) * rows_b],
                [1]
                if form == 2
                else seeded_row(module.name, seeded[k], columns_a)
                if form == 1
                else flat_a[k * columns_a : (k + 1) * columns_a],
            )
            for k in range(rank)
        ]
    assert at == len(body)
    return found


def random_integers(rng: random.Random, count: int, width: int) -> list[int]:
    """Canonical integers of a width: the largest reaches 64."""
    largest = (1 << width - 1) - 1
    values = [rng.randint(-largest, largest) << 8 - width for _ in range(count)]
    values[rng.randrange(count)] = rng.choice([-1, 1]) * (largest << 8 - width)
    return values


def random_delta(seed: int) -> Delta:
    """A canonical delta for the test swarm: a dense part, and a low-rank one with A sent or seeded."""
    rng = random.Random(seed)
    rank, width = rng.randint(1, 4), rng.choice([2, 4, 8])
    scales = sorted({(rng.randint(-12, 0), rng.randrange(1, 16, 2)) for _ in range(rank)})
    columns_b = [random_integers(rng, 4, width) for _ in scales]
    rows_a = [random_integers(rng, 3, width) for _ in scales] if rng.random() < 0.5 else None
    low_rank = LowRank(
        module="up.weight",
        B_OR=np.array(columns_b, dtype=np.int8).T,
        A_RI=None if rows_a is None else np.array(rows_a, dtype=np.int8),
        scale_mantissa_R=tuple(s for _, s in scales),
        scale_exponent_R=tuple(e for e, _ in scales),
        row_R=tuple(sorted(rng.sample(range(16), len(scales)))) if rows_a is None else None,
    )
    dense = Dense(
        module="norm.weight",
        values_O=np.array(random_integers(rng, 5, width), dtype=np.int8),
        scale_mantissa=rng.randrange(1, 16, 2),
        scale_exponent=rng.randint(-12, 0),
    )
    delta = Delta.of([low_rank, dense] if rng.random() < 0.7 else [low_rank])
    validate(delta, GENESIS)
    return delta


@given(st.integers(0, 2**32))
def test_a_delta_decoded_by_the_text_is_the_delta_encoded(seed: int) -> None:
    delta = random_delta(seed)
    blob = encode(delta, GENESIS)
    assert decode(blob, GENESIS, 1) == delta
    found = components_of(blob)
    for part in expand(delta, CONTEXT, GENESIS.modules).parts:
        if isinstance(part, Dense):
            expected = [(part.scale_mantissa, part.scale_exponent, part.values_O.tolist(), [1])]
        else:
            assert part.A_RI is not None
            columns = zip(part.scale_mantissa_R, part.scale_exponent_R, part.B_OR.T, part.A_RI, strict=True)
            expected = [(s, e, b.tolist(), a.tolist()) for s, e, b, a in columns]
        assert found[part.module] == expected


# ---- section 7: inner products and weights ----------------------------------------------------------


def two_to(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


def inner(first: dict[str, list[Component]], second: dict[str, list[Component]]) -> float:
    """G_ij: the exact value, rounded once."""
    total = Fraction(0)
    for name in first.keys() & second.keys():
        for s, e, b, a in first[name]:
            for t, f, c, d in second[name]:
                dots = sum(x * y for x, y in zip(b, c, strict=True)) * sum(x * y for x, y in zip(a, d, strict=True))
                total += s * t * dots * two_to(e + f)
    return float(total)


def plain_sum(terms: Sequence[float]) -> float:
    total = 0.0
    for term in terms:
        total = total + term
    return total


def limited(amounts: list[float], strangers: list[bool], share: float) -> list[float]:
    members = plain_sum([0.0 if is_stranger else x for x, is_stranger in zip(amounts, strangers, strict=True)])
    others = plain_sum([x if is_stranger else 0.0 for x, is_stranger in zip(amounts, strangers, strict=True)])
    most = members * (share / (1 - share))
    if others <= most:
        return amounts
    return [x * (most / others) if is_stranger else x for x, is_stranger in zip(amounts, strangers, strict=True)]


def lower_median(values: list[float], masses: list[float]) -> float:
    ordered = sorted((value, place) for place, value in enumerate(values) if masses[place] > 0)
    total = plain_sum([masses[place] for _, place in ordered])
    running = 0.0
    for value, place in ordered:
        running += masses[place]
        if 2 * running >= total:
            return value
    raise AssertionError("masses add up to their total")


def norm_of(c: list[float], g: list[list[float]]) -> float:
    n = len(c)
    square = plain_sum([plain_sum([g[i][j] * c[j] for j in range(n)]) * c[i] for i in range(n)])
    return math.sqrt(square) if square > 0 else 0.0


def scaled(number: float) -> tuple[int, int]:
    """Mantissa and exponent of a number rounded to 8 bits, half to even."""
    if number == 0:
        return (0, 0)
    exponent = math.frexp(number)[1] - 8
    mantissa = round(Fraction(number) / two_to(exponent))
    return (mantissa, exponent) if mantissa < 256 else (128, exponent + 1)


def breadth_of(c: list[float]) -> float:
    return plain_sum(c) * plain_sum(c) / plain_sum([each * each for each in c])


def factor_of(c: list[float], trailing: list[tuple[float, float]]) -> float:
    breadth = breadth_of(c)
    known = [past for _, past in trailing[-GENESIS.rule.trailing_rounds :] if past > 0] + [breadth]
    usual = plain_sum(known) / len(known)
    return breadth / (0.9 * usual) if 0 < breadth < 0.9 * usual else 1.0


def weights_by_the_text(
    entries: list[Entry], g: list[list[float]], trailing: list[tuple[float, float]]
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Steps 1 to 11 of section 7; entries ascend by contribution id, past updates are (full norm, breadth)."""
    rule, n = GENESIS.rule, len(entries)
    share = rule.open_share_micro / 1_000_000
    strangers = [entry.stranger for entry in entries]
    norms = [math.sqrt(g[i][i]) for i in range(n)]
    tokens = [float(min(entry.num_tokens, rule.token_cap)) for entry in entries]
    of_member = [sum(other.member == entry.member for other in entries) for entry in entries]
    mass = limited([tokens[i] / of_member[i] for i in range(n)], strangers, share)
    if plain_sum(mass) == 0:
        return [(0, 0)] * n, (0, 0)
    cosine = rule.duplicate_cosine_micro / 1_000_000
    copies = [1 + sum(j != i and g[i][j] > cosine * (norms[i] * norms[j]) for j in range(n)) for i in range(n)]
    claim = [tokens[i] / math.sqrt(1 + entries[i].staleness) / copies[i] for i in range(n)]
    voice = [1 / of_member[i] / copies[i] if mass[i] > 0 else 0.0 for i in range(n)]
    voice = limited(voice, strangers, share)
    median = lower_median(norms, mass)
    f = [median / norm if norm > median else 1.0 for norm in norms]
    h = [[f[i] * f[j] * g[i][j] for j in range(n)] for i in range(n)]
    d = [1.0] * n
    for _ in range(rule.weiszfeld_steps):
        p = [voice[i] / d[i] for i in range(n)]
        c = [each / plain_sum(p) for each in p]
        a = [plain_sum([h[i][j] * c[j] for j in range(n)]) for i in range(n)]
        square = plain_sum([a[i] * c[i] for i in range(n)])
        r = [h[i][i] - 2 * a[i] + square for i in range(n)]
        d = [max(math.sqrt(each) if each > 0 else 0.0, 2**-20 * median) for each in r]
    shares = limited([claim[i] / d[i] for i in range(n)], strangers, share)
    step = rule.outer_step.value()
    c = [step * (shares[i] / plain_sum(shares)) * f[i] for i in range(n)]
    factor = factor_of(c, trailing)
    c = [each * factor for each in c]
    norms = [norm for norm, _ in trailing[-rule.trailing_rounds :] if norm > 0]
    if norms:
        cap = rule.update_norm_cap_milli / 1000 * lower_median(norms, [1.0] * len(norms))
        if norm_of(c, g) > cap:
            c = [each * (cap / norm_of(c, g)) for each in c]
    weights = [scaled(each) for each in c]
    return weights, scaled(norm_of([math.ldexp(*weight) for weight in weights], g))


@given(st.integers(0, 2**32))
def test_weights_by_the_text_are_the_weights_of_the_code(seed: int) -> None:
    rng = random.Random(seed)
    deltas = [random_delta(rng.randrange(6) if rng.random() < 0.3 else rng.randrange(2**32)) for _ in range(6)]
    blobs = [components_of(encode(delta, GENESIS)) for delta in deltas]
    expected = [[inner(first, second) for second in blobs] for first in blobs]
    expanded = [expand(delta, CONTEXT, GENESIS.modules) for delta in deltas]
    assert gram(expanded, GENESIS.modules) == expected
    entries = [
        Entry(
            contribution_id=bytes([i]) * 32,
            member=swarms.id_of(rng.choice(["ada", "bob", "cleo"])),
            num_tokens=rng.choice([1, 1000, 4096, 1 << 20, 1 << 30]),
            staleness=rng.randint(0, 3),
            stranger=rng.random() < 0.3,
        )
        for i in range(len(deltas))
    ]
    trailing = [
        PastUpdate(full_norm=rng.choice([0.0, 0.01, 1.0, 100.0]), breadth=rng.choice([0.0, 1.0, 5.5, 64.0]))
        for _ in range(rng.randint(0, 12))
    ]
    found = weigh(entries, expected, GENESIS.rule, trailing)
    numbers = [(past.full_norm, past.breadth) for past in trailing]
    weights, norm = weights_by_the_text(entries, expected, numbers)
    assert [(weight.mantissa, weight.exponent) for weight in found.weights] == weights
    assert (found.update_norm.mantissa, found.update_norm.exponent) == norm
    if any(mantissa for mantissa, _ in weights):
        applied = [math.ldexp(*weight) for weight in weights]
        past = past_update(found.weights, found.update_norm, GENESIS.rule, trailing)
        assert (past.breadth, past.full_norm) == (breadth_of(applied), math.ldexp(*norm) / factor_of(applied, numbers))


# ---- section 6: apply and digest --------------------------------------------------------------------


def nearest_float32(exact: Fraction) -> float:
    """float32(float64(W) + dW), both rounded half to even, then flushed."""
    result = float(np.float32(float(exact)))
    return 0.0 if abs(result) < 2.0**-126 else result


def applied(master: list[list[float]], parts: list[tuple[tuple[int, int], list[Component]]]) -> list[list[float]]:
    """Steps 1 to 7 of "Apply" for one module; parts are (weight, components)."""
    terms = [(m * s, f + e, b, a) for (m, f), components in parts if m for s, e, b, a in components]
    reach = sum((abs(n) * two_to(x) * max(map(abs, b)) * max(map(abs, a)) for n, x, b, a in terms), start=Fraction(0))
    if reach == 0:
        return master
    log2 = next(i for i in range(-600, 600) if two_to(i) >= reach)
    grid = two_to(log2 - 52)
    kept = [(n * two_to(x), b, a) for n, x, b, a in terms if (n * two_to(x) / grid).denominator == 1]
    return [
        [
            nearest_float32(Fraction(w) + sum((scale * b[row] * a[column] for scale, b, a in kept), start=Fraction(0)))
            for column, w in enumerate(values)
        ]
        for row, values in enumerate(master)
    ]


@given(st.integers(0, 2**32))
def test_apply_by_the_text_gives_the_bytes_and_the_digest_of_the_code(seed: int) -> None:
    rng = random.Random(seed)
    deltas = [random_delta(rng.randrange(2**32)) for _ in range(3)]
    weights = [Scaled.of(rng.choice([0.0, 1.0, 0.3]) * 2.0 ** rng.randint(-60, 3)) for _ in deltas]
    blobs = [components_of(encode(delta, GENESIS)) for delta in deltas]
    hashes: dict[str, bytes] = {}
    written: list[bytes] = []
    for module in GENESIS.modules:
        numbers = [rng.gauss(0, 1) * 2.0 ** rng.randint(-8, 0) for _ in range(module.out_features * module.in_features)]
        master = canonical_float32(np.array(numbers, dtype=np.float32).reshape(module.out_features, module.in_features))
        parts = [
            ((weight.mantissa, weight.exponent), blob.get(module.name, []))
            for weight, blob in zip(weights, blobs, strict=True)
        ]
        expected = applied(master.tolist(), parts)
        weighted = [
            (part, weight)
            for delta, weight in zip(deltas, weights, strict=True)
            for part in expand(delta, CONTEXT, GENESIS.modules).parts
            if part.module == module.name
        ]
        new = apply_tile(master, plan_module(module, weighted), slice(0, module.out_features))
        assert new.tolist() == expected
        content = b"".join(struct.pack("<f", value) for row in expected for value in row)
        hashes[module.name] = tensor_sha256(new)
        assert hashes[module.name] == hashlib.sha256(content).digest()
        written += [module.name.encode(), hashes[module.name]]
    assert model_digest(hashes) == hashlib.sha256(framed(b"fullrank.v1.model-digest", *written)).digest()

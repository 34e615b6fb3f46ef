"""Real rounds for the tables of the aggregation rule: what the deltas of a swarm are to each other.

The swarm is the arm that quality trials run. Beside its members, on the same weights, train others whose deltas are
not merged: a twin with the blocks of a member in its order, one with half of them, and in some rounds strangers to
whom the same texts were dealt anew. To these come deltas that nobody trained: random integers, and copies of a
member's delta, as near to it as the seeded A of another key allows. Of all of them only the inner products are kept:
the rule sees no more of a delta.

Legend of array names: D = deltas, O = out_features, I = in_features, R = components.
"""

# ruff: noqa: N815  (attributes named like the arrays that they hold)

import hashlib
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fullrank_protocol.codec import CODEC_PACKED, decode
from fullrank_protocol.delta import Delta, LowRank, SeedContext, expand, quantize_low_rank, seeded_rows, to_float
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.gram import gram
from learning.arm import FloatArray, Weights
from learning.arms_swarm import Swarm
from learning.bench import Bench
from learning.catalogue import OURS
from learning.corpus import some_of
from learning.run import Node, Run
from learning.setting import Setting, deal
from learning.trial import Line, machine

VERSION = 1
"""Goes up when the code gives a line another meaning: older lines are then made again."""

NUM_STRANGERS = 16
STRANGERS_EVERY = 4
"""Strangers train in the last of so many rounds: there are twice as many of them as members, and they take time."""

NUM_UNTRAINED = 3
"""Random deltas, and copies, in every round."""

COPY_BITS = 8
"""Of an entry of a copy: whoever wants to come near to another's delta takes all that an integer offers."""

FOLLOWED_BLOCKS = 64
"""Test blocks on which the loss is followed."""

MEMBER, STRANGER, RANDOM, COPY = "member", "stranger", "random", "copy"
TWIN, HALF = "twin", "half"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Round:
    """One round's deltas.

    Attributes:
        names: Of the deltas: `member0` and so on, `twin` and `half` (of member 0), `stranger0`, `random0`, `copy0`.
        gram_DD: Their inner products.
        weights: Which the members' deltas were merged with.
        consecutive: Cosine of each member's delta with its delta of the round before; empty in the first round.
        loss: On test blocks, after the merge.
    """

    names: tuple[str, ...]
    gram_DD: FloatArray
    weights: tuple[float, ...]
    consecutive: tuple[float, ...]
    loss: float

    def __post_init__(self) -> None:
        if self.gram_DD.shape != (len(self.names), len(self.names)):
            raise ValueError(f"found inner products of {self.gram_DD.shape}, required {len(self.names)} squared")

    def places(self, kind: str) -> list[int]:
        """Where the deltas of a kind are."""
        return [place for place, name in enumerate(self.names) if name.rstrip("0123456789") == kind]

    def to_json(self) -> dict[str, Any]:
        """Norms with seven digits and cosines of all pairs with five decimals: a few kB."""
        norms_D = np.sqrt(np.diag(self.gram_DD))
        cosines_DD = self.gram_DD / np.outer(norms_D, norms_D)
        pairs = np.triu_indices(len(norms_D), 1)
        return {
            "names": " ".join(self.names),
            "norms": [float(f"{norm:.7g}") for norm in norms_D],
            "cosines": [_short(cosine) for cosine in cosines_DD[pairs]],
            "weights": [float(f"{weight:.6g}") for weight in self.weights],
            "consecutive": [_short(cosine) for cosine in self.consecutive],
            "loss": round(self.loss, 5),
        }


def round_from_json(value: Mapping[str, Any]) -> Round:
    """The inverse of `Round.to_json`, but for what was rounded."""
    names = tuple(value["names"].split())
    norms_D = np.array(value["norms"], dtype=np.float64)
    cosines_DD = np.eye(len(names))
    cosines_DD[np.triu_indices(len(names), 1)] = value["cosines"]
    cosines_DD = np.triu(cosines_DD) + np.triu(cosines_DD, 1).T
    return Round(
        names=names,
        gram_DD=cosines_DD * np.outer(norms_D, norms_D),
        weights=tuple(value["weights"]),
        consecutive=tuple(value["consecutive"]),
        loss=value["loss"],
    )


def cosine_of(gram_DD: FloatArray, first: int, second: int) -> float:
    """Of two deltas, by their places."""
    return float(gram_DD[first, second] / math.sqrt(gram_DD[first, first] * gram_DD[second, second]))


def run_swarm(bench: Bench, setting: Setting, *, rate: float, seed: int, alone: bool) -> Line:
    """Train a swarm, with others beside it or alone, and return its line of results.

    Raises:
        NodeError: The loss has become infinite.
    """
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="rule-") as directory:
        run = Run(bench, setting, rate=rate, seed=seed, directory=Path(directory))
        rounds = [one.to_json() for one in real_rounds(run, OURS, alone=alone)]
    return {
        "version": VERSION,
        "setting": setting.to_json(),
        "arm": OURS.name,
        "rate": rate,
        "seed": seed,
        "rounds": rounds,
        "cost": {
            "cpu_s": round(time.process_time() - began_cpu_s, 1),
            "wall_s": round(time.monotonic() - began_s, 1),
            **machine(),
        },
    }


def real_rounds(run: Run, arm: Swarm, *, alone: bool = False) -> Iterator[Round]:
    """The rounds of a swarm in mode B, with everybody beside it, or with its members alone."""
    genesis = run.bench.genesis(outer_step=arm.outer_step, embeddings=arm.embeddings)
    followed = some_of(run.bench.corpus.test, FOLLOWED_BLOCKS)
    guests, strangers = guests_of(run), strangers_of(run)
    before: Sequence[Delta] = ()
    weights = run.bench.initial
    for number, after in enumerate(arm.rounds(run)):
        members = [delta for delta, _ in after.merged]
        deltas = {f"{MEMBER}{place}": delta for place, delta in enumerate(members)}
        if not alone:
            trains = number % STRANGERS_EVERY == STRANGERS_EVERY - 1
            for name, node in (guests | strangers if trains else guests).items():
                deltas[name] = _trained(run, arm, genesis, node, number=number, weights=weights)
            deltas |= _untrained(run, genesis, members, number=number)
        modules = genesis.modules
        yield Round(
            names=tuple(deltas),
            gram_DD=np.array(gram(list(deltas.values()), modules)),
            weights=tuple(weight for _, weight in after.merged),
            consecutive=tuple(
                cosine_of(np.array(gram(pair, modules)), 0, 1) for pair in zip(before, members, strict=False)
            ),
            loss=run.bench.loss(after.models[0], followed),
        )
        before, weights = members, after.models[0]


def guests_of(run: Run) -> dict[str, Node]:
    """A twin of the first member, with the same blocks in the same order, and one with half of them.

    The other half of the latter's are half of the second member's.
    """
    first, second = run.nodes[0], run.nodes[1 % len(run.nodes)]
    shared = np.concatenate([first.shard[: len(first.shard) // 2], second.shard[: len(second.shard) // 2]])
    return {
        TWIN: replace(first, number=len(run.nodes), member=_key(run, TWIN)),
        HALF: replace(first, number=len(run.nodes) + 1, member=_key(run, HALF), shard=shared),
    }


def strangers_of(run: Run) -> dict[str, Node]:
    """Others with the same texts, dealt anew among them."""
    shards = deal(run.bench.corpus, nodes=NUM_STRANGERS, split=run.setting.split, seed=run.seed + 1000)
    return {
        f"{STRANGER}{place}": Node(
            number=len(run.nodes) + 2 + place,
            member=_key(run, f"{STRANGER}{place}"),
            shard=shard,
            order_seed=int.from_bytes(_key(run, f"order of {STRANGER}{place}")[:4], "little"),
        )
        for place, shard in enumerate(shards)
    }


def random_delta(like: Delta, context: SeedContext, genesis: Genesis, rng: np.random.Generator) -> Delta:
    """Another key's delta whose columns of B are those of a real one in random order: the same norm, no direction."""
    parts = [replace(part, A_RI=None, B_OR=rng.permuted(part.B_OR, axis=0)) for part in _low_rank(like)]
    return expand(Delta.of(parts), context, genesis.modules)


def copied_delta(original: Delta, context: SeedContext, genesis: Genesis) -> Delta:
    """Another key's delta that is as near to this one as the rows of that key's A allow."""
    parts = []
    for part in _low_rank(original):
        assert part.row_R is not None
        whole_OI = to_float(part)
        A_RI = seeded_rows(context, part.module, rows=max(part.row_R) + 1, columns=whole_OI.shape[1])
        B_OR = np.linalg.lstsq(A_RI.astype(np.float64).T, whole_OI.T, rcond=None)[0].T
        parts.append(
            quantize_low_rank(
                part.module,
                B_OR,
                None,
                bits_b=COPY_BITS,
                bits_a=COPY_BITS,
                scale=1.0,
                rng=np.random.default_rng(0),
                stochastic=False,
                limits=genesis.limits,
            )
        )
    return expand(Delta.of(parts), context, genesis.modules)


def _untrained(run: Run, genesis: Genesis, members: Sequence[Delta], *, number: int) -> dict[str, Delta]:
    rng = np.random.Generator(np.random.Philox(key=[run.seed & (2**64 - 1), 1000 + number]))
    found: dict[str, Delta] = {}
    for place in range(NUM_UNTRAINED):
        context = SeedContext(swarm=genesis.swarm, member=_key(run, f"{RANDOM}{place}"), period=number)
        found[f"{RANDOM}{place}"] = random_delta(members[place % len(members)], context, genesis, rng)
        context = replace(context, member=_key(run, f"{COPY}{place}"))
        found[f"{COPY}{place}"] = copied_delta(members[0], context, genesis)
    return found


def _trained(run: Run, arm: Swarm, genesis: Genesis, node: Node, *, number: int, weights: Weights) -> Delta:
    run.bench.load(weights)
    schedule = run.schedule(number, steps=run.setting.steps, warm=True)
    num_averaged, _ = arm.expected(run, [(len(run.nodes), 0)] * number, genesis)
    blob, _ = arm.contribution(run, node, genesis, rank=arm.rank, num_averaged=num_averaged, schedule=schedule)
    seed_of = run.seed_of(node, number // arm.period, genesis=genesis)
    return expand(decode(blob, genesis, CODEC_PACKED), seed_of, genesis.modules)


def _low_rank(delta: Delta) -> list[LowRank]:
    return [part for part in delta.parts if isinstance(part, LowRank)]


def _key(run: Run, name: str) -> bytes:
    return hashlib.sha256(f"{name} of seed {run.seed}".encode()).digest()


def _short(value: float) -> float:
    return round(float(value), 5)

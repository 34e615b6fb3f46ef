"""What is compared: a setting that all arms share, and a trial, which is one arm at one rate with one seed.

A trial is written as JSON; the hash of that is its key. Equal keys mean equal results, up to the last bits that
differ between processors: a result line can be made again from what it says of itself.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from learning.arm import Arm
from learning.corpus import Corpus, Int64Array

VERSION = 3
"""Goes up when the code gives a trial another meaning: older lines are then made again."""

IID = "iid"
DOMAINS = "domains"
SPLITS = (IID, DOMAINS)

TUNE = "tune"
"""Purpose of a trial whose loss is measured on validation blocks, to choose a rate."""

TEST = "test"
"""Purpose of a trial whose loss is measured on test blocks, to be reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all arms of a comparison share.

    Attributes:
        base: The base model's name and digest.
        corpus: The corpus' name and digest.
        nodes: Volunteers.
        rounds: Merges.
        steps: Optimiser steps of each node in a round.
        batch: Blocks in one step of one node.
        warmup: Steps over which the rate rises, wherever an arm begins with fresh factors or after a merge.
        split: `iid`: blocks are dealt out at random; `domains`: a node has whole domains, or a part of one.
        constant: Whether the rate stays, as in a swarm without an end; else it falls by a cosine over all rounds.
    """

    base: str
    corpus: str
    nodes: int
    rounds: int
    steps: int
    batch: int
    warmup: int
    split: str
    constant: bool = False

    @property
    def all_steps(self) -> int:
        """Node steps of a whole trial, which are the same in every arm."""
        return self.nodes * self.rounds * self.steps

    @property
    def tuned_in(self) -> "Setting":
        """Where rates are tuned: who founds a swarm fixes one, and cannot know how texts are spread over its nodes."""
        return replace(self, split=IID)

    @property
    def title(self) -> str:
        """One line for people."""
        split = "blocks dealt at random" if self.split == IID else "domains apart"
        rate = ", constant rate" if self.constant else ""
        return f"{self.nodes} nodes, {self.rounds} rounds of {self.steps} steps of {self.batch} blocks, {split}{rate}"

    def to_json(self) -> dict[str, Any]:
        """All fields; what came later is left out where it says nothing, for trials keep their keys."""
        fields = asdict(self)
        return fields if self.constant else {name: value for name, value in fields.items() if name != "constant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One arm at one rate with one seed.

    Attributes:
        seed: Fixes who has which blocks in which order, every random factor and every rounding.
        purpose: `tune` or `test`.
    """

    setting: Setting
    arm: Arm
    rate: float
    seed: int
    purpose: str

    def to_json(self) -> dict[str, Any]:
        """Everything that decides the result."""
        return {
            "version": VERSION,
            "setting": self.setting.to_json(),
            "arm": self.arm.to_json(),
            "rate": self.rate,
            "seed": self.seed,
            "purpose": self.purpose,
        }

    @property
    def key(self) -> str:
        """Names the trial in the results."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def deal(corpus: Corpus, *, nodes: int, split: str, seed: int) -> list[Int64Array]:
    """Numbers of the training blocks that each node has; no block has two owners.

    Split by domains, nodes take turns in taking whole domains while there are enough, else domains take turns in
    having nodes, who share its blocks at random.

    Raises:
        ValueError: A node would have no block.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), 1]))
    shuffled = rng.permutation(len(corpus.train)).astype(np.int64)
    num_domains = int(corpus.domains.max()) + 1
    if split == IID:
        shards = [shuffled[node::nodes] for node in range(nodes)]
    elif nodes <= num_domains:
        shards = [shuffled[corpus.domains[shuffled] % nodes == node] for node in range(nodes)]
    else:
        shards = []
        for node in range(nodes):
            mine = shuffled[corpus.domains[shuffled] == node % num_domains]
            shards.append(mine[node // num_domains :: len(range(node % num_domains, nodes, num_domains))])
    if not all(len(shard) for shard in shards):
        raise ValueError(f"found {len(shuffled)} blocks, required at least one for each of {nodes} nodes")
    return shards

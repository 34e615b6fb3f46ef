"""A swarm of volunteers who differ: in rank, in speed, in how often they come and how late their deltas arrive.

All of them train at one rate, as a genesis fixes it, and everything that they send goes through the protocol's own
code (`arms_swarm`). Who comes when is drawn from the seed before the run, together with the number of rounds: as many
as it takes until the swarm has accepted as many tokens as one whose nodes are alike. The last round is cut to the
steps that are still wanted, so that no arm gets more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fullrank_node.training.blocks import IS_TARGET
from fullrank_node.training.loop import Schedule
from fullrank_node.training.pending import PendingDelta
from fullrank_protocol.codec import CODEC_PACKED, decode
from fullrank_protocol.delta import Delta, expand
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.gram import gram
from fullrank_protocol.weights import PastUpdate, past_update, weigh
from learning.arm import AfterRound
from learning.arms_swarm import Swarm, applied, entry_of

if TYPE_CHECKING:
    from learning.run import Run

MOST_STRETCH = 32
"""A swarm that takes so many times the rounds of the uniform one is not worth waiting for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One contribution, as decided before the run.

    Attributes:
        node: Number of the volunteer.
        base: Round of the head that it trains on.
        arrives: Round that merges it; the difference is its staleness.
        steps: Of the optimiser.
    """

    node: int
    base: int
    arrives: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """Everything that the volunteers will do.

    Attributes:
        rounds: Merges.
        tasks: By base, then by node; each of them arrives before the end.
        num_tokens: Which the swarm accepts with them.
    """

    rounds: int
    tasks: tuple[Task, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A contribution that is done."""

    task: Task
    blob: bytes
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed(Swarm):
    """The swarm with volunteers who are not alike. With none of these set, it is the uniform one.

    Attributes:
        lowest_rank: Nodes in turn have this rank, twice it, and so on up to `rank`; 0 for `rank` alone.
        missing: Probability with which a node does not train in a slot.
        late: Probability with which a delta arrives 1 to `most_late` slots late; its node goes on meanwhile.
        most_late: Slots; a default genesis takes deltas that are three rounds stale.
        slow_every: One node of so many is slow; 0 for none.
        slowness: A slow node makes a step where others make so many.
    """

    lowest_rank: int = 0
    missing: float = 0.0
    late: float = 0.0
    most_late: int = 3
    slow_every: int = 0
    slowness: int = 10

    @property
    def name(self) -> str:
        """See `Arm`."""
        parts = [
            super(Mixed, self).name,  # A dataclass with slots is made twice, which `super()` misses.
            f"from{self.lowest_rank}" if self.lowest_rank else "",
            f"missing{self.missing:g}" if self.missing else "",
            f"late{self.late:g}" if self.late else "",
            f"slow{self.slow_every}" if self.slow_every else "",
        ]
        return "-".join(part for part in parts if part)

    def rank_of(self, number: int) -> int:
        """Rank of a node's contributions."""
        if not self.lowest_rank:
            return self.rank
        ranks = [self.lowest_rank]
        while ranks[-1] * 2 <= self.rank:
            ranks.append(ranks[-1] * 2)
        return ranks[number % len(ranks)]

    def steps_of(self, number: int, steps: int) -> int:
        """Steps that a node makes while one who is not slow makes `steps`; the last of every `slow_every` is slow."""
        if self.slow_every and number % self.slow_every == self.slow_every - 1:
            return max(1, steps // self.slowness)
        return steps

    def rounds(self, run: "Run") -> Iterator[AfterRound]:
        """See `Arm`."""
        genesis = run.bench.genesis(outer_step=self.outer_step, embeddings=self.embeddings)
        planned = timetable(self, run)
        weights = run.bench.initial
        trailing: list[PastUpdate] = []
        on_the_way: list[Sent] = []
        merges: list[tuple[int, int]] = []
        for number in range(planned.rounds):
            run.bench.load(weights)
            num_averaged, num_late = self.expected(run, merges, genesis)
            begun = [task for task in planned.tasks if task.base == number]
            on_the_way += [
                self._sent(
                    run,
                    genesis,
                    task,
                    rounds=planned.rounds,
                    num_averaged=num_averaged,
                    num_late=num_late,
                    pending=[sent for sent in on_the_way if sent.task.node == task.node],
                )
                for task in begun
            ]
            arrived = [sent for sent in on_the_way if sent.task.arrives == number]
            on_the_way = [sent for sent in on_the_way if sent.task.arrives > number]
            deltas = [self._expanded(run, genesis, sent) for sent in arrived]
            merges.append((len(arrived), sum(sent.task.base < number for sent in arrived)))
            entries = [
                entry_of(
                    run.nodes[sent.task.node],
                    sent.task.base,
                    sent.blob,
                    num_tokens=sent.num_tokens,
                    staleness=number - sent.task.base,
                )
                for sent in arrived
            ]
            weighed = weigh(entries, gram(deltas, genesis.modules), genesis.rule, trailing)
            trailing.append(past_update(weighed.weights, weighed.update_norm, genesis.rule, trailing))
            weights = applied(weights, deltas, weighed.weights, genesis)
            merged = tuple((delta, weight.value()) for delta, weight in zip(deltas, weighed.weights, strict=True))
            yield AfterRound(
                models=(weights,),
                num_bytes=tuple(float(len(sent.blob)) for sent in arrived),
                roundings=number + 1,
                merged=merged,
            )

    def _sent(
        self,
        run: "Run",
        genesis: Genesis,
        task: Task,
        *,
        rounds: int,
        num_averaged: int,
        num_late: int,
        pending: Sequence[Sent],
    ) -> Sent:
        """Train. A slow node does not know that it is: it warms up as slowly as others."""
        files = [run.directory / f"{task.node}-{number}.bin" for number in range(len(pending))]
        for file, sent in zip(files, pending, strict=True):
            file.write_bytes(sent.blob)
        schedule = Schedule(
            peak=run.rate,
            warmup_steps=min(run.setting.warmup, run.setting.steps),
            max_steps=task.steps,
            round=task.base,
            total_rounds=0 if run.setting.constant else rounds,
        )
        rank = self.rank_of(task.node)
        node = run.nodes[task.node]
        blob, num_tokens = self.contribution(
            run,
            node,
            genesis,
            rank=rank,
            num_averaged=num_averaged,
            schedule=schedule,
            num_late=num_late,
            pending=tuple(
                PendingDelta(path=file, codec=CODEC_PACKED, period=sent.task.base // self.period)
                for file, sent in zip(files, pending, strict=True)
            ),
        )
        return Sent(task=task, blob=blob, num_tokens=num_tokens)

    def _expanded(self, run: "Run", genesis: Genesis, sent: Sent) -> Delta:
        seed_of = run.seed_of(run.nodes[sent.task.node], sent.task.base // self.period, genesis=genesis)
        return expand(decode(sent.blob, genesis, CODEC_PACKED), seed_of, genesis.modules)


def timetable(arm: Mixed, run: "Run") -> Timetable:
    """Who trains when, for how long, and when it arrives: decided by the arm, the setting and the seed.

    As in a live swarm, a slot in which nothing arrives is no round, and a node trains once on one head.

    Raises:
        ValueError: The volunteers would never be done.
    """
    setting = run.setting
    wanted = _tokens(
        [
            Task(node=node.number, base=number, arrives=number, steps=setting.steps)
            for number in range(setting.rounds)
            for node in run.nodes
        ],
        run,
    )
    drawn: list[tuple[Task, int]] = []
    round_of: dict[int, int] = {}
    rng = np.random.Generator(np.random.Philox(key=[run.seed & (2**64 - 1), 3]))
    for slot in range(MOST_STRETCH * setting.rounds):
        head = len(round_of)
        trained = {task.node for task, _ in drawn if task.base == head}
        for node in run.nodes:
            # As many draws in every arm, so that the same slots are missed whatever else is mixed.
            comes, is_late = rng.random() >= arm.missing, rng.random() < arm.late
            delay = int(rng.integers(1, arm.most_late + 1))
            if comes and node.number not in trained:
                steps = arm.steps_of(node.number, setting.steps)
                task = Task(node=node.number, base=head, arrives=head, steps=steps)
                drawn.append((task, slot + (delay if is_late else 0)))
        if any(at == slot for _, at in drawn):
            round_of[slot] = head
        # What would come after the end is not begun.
        tasks = [replace(task, arrives=round_of[at]) for task, at in drawn if at in round_of]
        if _tokens(tasks, run) >= wanted:
            return _cut(tasks, len(round_of), run, wanted=wanted)
    raise ValueError(f"found fewer than {wanted} tokens in {MOST_STRETCH * setting.rounds} slots, required as many")


def _cut(tasks: Sequence[Task], rounds: int, run: "Run", *, wanted: int) -> Timetable:
    """With no more steps in what arrives last than it takes; the whole of it is enough."""
    cut: list[Task] = []
    num_tokens, most = 0, 0
    while num_tokens < wanted:
        most += 1
        cut = [replace(task, steps=min(task.steps, most)) if task.arrives == rounds - 1 else task for task in tasks]
        num_tokens = _tokens(cut, run)
    return Timetable(rounds=rounds, tasks=tuple(cut), num_tokens=num_tokens)


def _tokens(tasks: Sequence[Task], run: "Run") -> int:
    """Targets in the blocks that the nodes read, each from its first one on."""
    targets_N = ((run.bench.corpus.train.flags[:, 1:] & IS_TARGET) != 0).sum(axis=1)
    found = 0
    for node in run.nodes:
        num_blocks = run.setting.batch * sum(task.steps for task in tasks if task.node == node.number)
        order = node.order()
        found += sum(int(targets_N[next(order)]) for _ in range(num_blocks))
    return found

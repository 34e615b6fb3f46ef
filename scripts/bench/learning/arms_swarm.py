"""Our own arms: every node trains as the daemon does, and every round is merged by the protocol's own code.

Nothing is imitated here. `contribute` trains, rounds to integers and encodes; the bytes are decoded, weighed by their
Gram matrix under the default rule, and applied exactly to float32 masters.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fullrank_node.training.contribute import Plan, contribute
from fullrank_node.training.loop import ADAM_BETAS, Schedule
from fullrank_node.training.lora import MODE_AB, MODE_B
from fullrank_node.training.pending import PendingDelta
from fullrank_protocol.codec import CODEC_PACKED, decode
from fullrank_protocol.delta import Delta, expand
from fullrank_protocol.duties import usual_merge
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.gram import gram
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.state import apply_tile, plan_update
from fullrank_protocol.weights import Entry, PastUpdate, past_update, weigh
from learning.arm import ADAPTER, AfterRound, Arm, Weights
from learning.run import NodeBlocks, ignore

if TYPE_CHECKING:
    from learning.run import Node, Run


FEW_BITS = 4
"""Up to so many, rounding takes enough for error feedback to matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swarm(Arm):
    """The swarm.

    Attributes:
        mode: `B`: a seeded A, of which B alone travels; `AB`: both are trained and travel.
        rank: Components of a contribution for each module.
        bits: Of an entry as sent.
        period: Rounds for which a node keeps its A.
        carry: Whether AdamW's state lives as long as A does (mode B).
        feedback: Whether what rounding took from one delta is added to the next (mode B, while A is kept).
        stochastic: Round without bias, instead of to the nearest at the closest scale.
        embeddings: Whether the embeddings are adapted, too.
        averaged: Whether AdamW takes the variance of the mean of all nodes' gradients for that of its own.
        eager: Whether it does so before the first merge, where who will be in it is not known.
        outer_step: Length of the step along the mean.
        first_decay: Of AdamW's first moments.
    """

    trains: ClassVar[str] = ADAPTER

    mode: str
    rank: int
    bits: int = 2
    period: int = 15
    carry: bool = True
    feedback: bool = True
    stochastic: bool = False
    embeddings: bool = True
    averaged: bool = True
    eager: bool = False
    outer_step: float = 1.0
    first_decay: float = ADAM_BETAS[0]

    @property
    def name(self) -> str:
        """See `Arm`."""
        parts = [
            f"ours-{self.mode}-r{self.rank}-{self.bits}bit-k{self.period}",
            "fresh" if self.mode == MODE_B and not self.carry else "",
            "" if self.feedback or self.mode == MODE_AB or self.bits > FEW_BITS else "forgetful",
            "stochastic" if self.stochastic else "",
            "" if self.embeddings else "linear",
            "" if self.averaged else "unaveraged",
            "eager" if self.eager else "",
            "" if self.outer_step == 1.0 else f"outer{self.outer_step:g}",
            "" if self.first_decay == ADAM_BETAS[0] else f"beta{self.first_decay:g}",
        ]
        return "-".join(part for part in parts if part)

    @property
    def anchor_rate(self) -> float:
        """See `Arm`."""
        return 7e-3 if self.averaged else 1e-2

    def rounds(self, run: "Run") -> Iterator[AfterRound]:
        """See `Arm`."""
        genesis = run.bench.genesis(outer_step=self.outer_step, embeddings=self.embeddings)
        weights = run.bench.initial
        trailing: list[PastUpdate] = []
        merges: list[tuple[int, int]] = []
        for number in range(run.setting.rounds):
            run.bench.load(weights)
            num_averaged, _ = self.expected(run, merges, genesis)
            entries: list[Entry] = []
            deltas: list[Delta] = []
            sizes: list[float] = []
            for node in run.nodes:
                schedule = run.schedule(number, steps=run.setting.steps, warm=True)
                blob, num_tokens = self.contribution(
                    run, node, genesis, rank=self.rank, num_averaged=num_averaged, schedule=schedule
                )
                seed_of = run.seed_of(node, number // self.period, genesis=genesis)
                deltas.append(expand(decode(blob, genesis, CODEC_PACKED), seed_of, genesis.modules))
                entries.append(entry_of(node, number, blob, num_tokens=num_tokens, staleness=0))
                sizes.append(float(len(blob)))
            merges.append((len(deltas), 0))
            weighed = weigh(entries, gram(deltas, genesis.modules), genesis.rule, trailing)
            trailing.append(past_update(weighed.weights, weighed.update_norm, genesis.rule, trailing))
            weights = applied(weights, deltas, weighed.weights, genesis)
            merged = tuple((delta, weight.value()) for delta, weight in zip(deltas, weighed.weights, strict=True))
            yield AfterRound(models=(weights,), num_bytes=tuple(sizes), roundings=number + 1, merged=merged)

    def expected(self, run: "Run", merges: Sequence[tuple[int, int]], genesis: Genesis) -> tuple[int, int]:
        """Contributions that the next merge can be expected to have, and how many of them late, as a node sees it."""
        if self.eager and not merges:
            return len(run.nodes), 0
        return usual_merge(merges[-genesis.rule.trailing_rounds :])

    def contribution(
        self,
        run: "Run",
        node: "Node",
        genesis: Genesis,
        *,
        rank: int,
        num_averaged: int,
        schedule: Schedule,
        num_late: int = 0,
        pending: tuple[PendingDelta, ...] = (),
    ) -> tuple[bytes, int]:
        """One node's encoded delta, and the tokens that it trained on; the model comes back as it was."""
        home = run.directory / str(node.number)
        home.mkdir(exist_ok=True)
        plan = Plan(
            member=node.member,
            base_round=schedule.round,
            period=schedule.round // self.period,
            mode=self.mode,
            rank=rank,
            bits_b=self.bits,
            bits_a=self.bits,
            batch_size=run.setting.batch,
            schedule=schedule,
            seed=node.order_seed,
            deadline_ms=None,
            stochastic=self.stochastic,
            error_feedback=self.feedback,
            carry_moments=self.carry,
            betas=(self.first_decay, ADAM_BETAS[1]),
            num_averaged=num_averaged if self.averaged else 1,
            num_late=num_late,
            pending=pending,
        )
        done = contribute(
            run.bench.model,
            genesis,
            plan,
            NodeBlocks(run=run, node=node),
            state_dir=home,
            out_path=home / "delta.bin",
            encoding_ms=0.0,
            progress=ignore,
        )
        return (home / "delta.bin").read_bytes(), done.steps.num_tokens


def applied(weights: Weights, deltas: Sequence[Delta], counts: Sequence[Scaled], genesis: Genesis) -> Weights:
    """The weights after a merge, as every node of the swarm computes them."""
    after = dict(weights)
    for module, plan in plan_update(deltas, counts, genesis.modules):
        after[module.name] = apply_tile(weights[module.name], plan, slice(0, module.out_features))
    return after


def entry_of(node: "Node", base_round: int, blob: bytes, *, num_tokens: int, staleness: int) -> Entry:
    """What the weights rule is told of a contribution."""
    contribution_id = hashlib.sha256(node.member + base_round.to_bytes(8, "little") + blob).digest()
    return Entry(contribution_id=contribution_id, member=node.member, num_tokens=num_tokens, staleness=staleness)

"""What a swarm has achieved, measured after the fact: from a node's log, and from training alone.

Everything here recomputes: the weights of every round are replayed from the base and the log, and each node trains
again by itself for as many steps as it did in the swarm.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullrank_node.blob_store import BlobStore
from fullrank_node.child import ChildProcess
from fullrank_node.clock import SystemClock
from fullrank_node.demo.tasks import bounded, call, together
from fullrank_node.home import Home
from fullrank_node.identity_file import load_identity
from fullrank_node.masters import Masters
from fullrank_node.merger import Merger
from fullrank_node.model.master import MasterStore
from fullrank_node.model.rank import shapes_of
from fullrank_node.node_keys import BASE_DIGEST_KEY, BASE_DIR_KEY
from fullrank_node.restoring import restored_state
from fullrank_node.store import Store
from fullrank_node.training.lora import usual_rank
from fullrank_protocol.checkpoint import Checkpoint
from fullrank_protocol.codec import decode
from fullrank_protocol.delta import SeedContext, expand
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.genesis import open_genesis
from fullrank_protocol.gram import squared_norm

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""For every child of the demo: there are as many as cores, and threads would only fight (measured: tenfold)."""

REPLAY_TIMEOUT_S = 300.0
"""Replaying and measuring eight rounds of the embedded base takes seconds."""

ALONE_TIMEOUT_S = 900.0
"""As much training as the whole swarm did, on the same cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFigures:
    """What the log of a swarm says.

    Attributes:
        rank_per_round: Mean effective rank of the accumulated update after each round.
        rank_noise_control: What random deltas of the same ranks and norms would give.
        rank_full: Mean of the largest possible ranks.
        accepted_per_round: Contributions merged by each round.
        num_bytes: Size of every accepted delta.
        num_tokens: Training tokens of all accepted contributions.
    """

    rank_per_round: list[float]
    rank_noise_control: list[float]
    rank_full: float
    accepted_per_round: list[int]
    num_bytes: list[int]
    num_tokens: int


async def read_log(place: Home) -> LogFigures:
    """Replay the final chain in the home of a stopped node that keeps every delta, and measure every round.

    Raises:
        NodeError: The log is damaged, or takes too long to replay.
    """
    async with bounded(REPLAY_TIMEOUT_S, "replaying the log"):
        return await _read_log(place)


async def _read_log(place: Home) -> LogFigures:
    genesis = open_genesis(place.genesis_file.read_bytes())
    with Store(place) as store:
        async with ChildProcess("fullrank_node.worker", environment=ONE_THREAD) as worker:
            base_digest = store.get_meta(BASE_DIGEST_KEY)
            assert base_digest is not None, "whoever recomputed rounds knows the base"
            state = restored_state(
                genesis,
                store,
                key=load_identity(place.identity_file).public_key,
                base_digest=base_digest,
                now_ms=SystemClock().now_ms(),
            )
            merger = Merger(home=place, store=store, genesis=genesis, worker=worker, threads=1)
            masters = Masters(store=store, merger=merger, files=MasterStore(place.masters_dir))
            tree = state.tree
            chain = [node.checkpoint for node in tree.chain(tree.final.checkpoint) if node.checkpoint is not None]
            rounds = [checkpoint for checkpoint in chain if checkpoint.accepted]
            base = await masters.ensure(genesis.swarm, state)
            reports = []
            for number, checkpoint in enumerate(rounds, 1):
                after = await masters.ensure(checkpoint.id, state)
                request = {
                    "genesis_path": str(place.genesis_file),
                    "masters_dir": str(place.masters_dir),
                    "before": base,
                    "after": after,
                    "num_rounds": number,
                }
                reports.append(await call(worker, "measure_rank", request, timeout_s=REPLAY_TIMEOUT_S))
            sizes = [await asyncio.to_thread(_deltas, checkpoint, tree, store.blobs) for checkpoint in rounds]
    accepted = [entry.contribution for checkpoint in rounds for entry in checkpoint.accepted]
    async with ChildProcess("fullrank_node.demo.judge", environment=ONE_THREAD) as judge:
        control = await call(
            judge,
            "noise_control",
            {
                "shapes": list(shapes_of(genesis.modules).values()),
                "ranks_per_round": [[rank for rank, _ in one] for one in sizes],
                "norms_per_round": [[norm for _, norm in one] for one in sizes],
                "period_rounds": genesis.training.period_rounds,
            },
            timeout_s=REPLAY_TIMEOUT_S,
        )
    return LogFigures(
        rank_per_round=[float(report["effective"]) for report in reports],
        rank_noise_control=[round(value, 3) for value in control["effective"]],
        rank_full=float(reports[-1]["full"]) if reports else 0.0,
        accepted_per_round=[len(checkpoint.accepted) for checkpoint in rounds],
        num_bytes=[contribution.blob.num_bytes for contribution in accepted],
        num_tokens=sum(contribution.num_tokens for contribution in accepted),
    )


def _deltas(checkpoint: Checkpoint, tree: Tree, blobs: BlobStore) -> list[tuple[int, float]]:
    """(rank, weighted norm) of each delta of a round, in the order of the members: a member keeps its A."""
    genesis = tree.genesis
    found = []
    for entry in sorted(checkpoint.accepted, key=lambda entry: entry.contribution.member):
        contribution = entry.contribution
        period = tree.state(contribution.base_checkpoint).round // genesis.training.period_rounds
        context = SeedContext(swarm=genesis.swarm, member=contribution.member, period=period)
        sent = decode(blobs.read(contribution.blob.id), genesis, contribution.codec)
        norm = math.sqrt(squared_norm(expand(sent, context, genesis.modules), genesis.modules))
        found.append((usual_rank(sent), entry.weight.value() * norm))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """One node that trains by itself.

    Attributes:
        home: Of the node; its data cache and genesis masters are used as they are.
        member: Its public key: it draws the same A as in the swarm.
        steps_per_round: Steps that it trained on the weights of each round.
    """

    home: Home
    member: bytes
    steps_per_round: Sequence[int]


async def losses_alone(nodes: Sequence[Alone], *, heldout: Path, block_length: int, scratch: Path) -> list[float]:
    """Held-out loss of each node that trains alone for as many steps, all of them at the same time.

    Raises:
        NodeError: Training failed or takes too long.
    """
    work = [
        _loss_alone(node, heldout=heldout, block_length=block_length, work_dir=scratch / f"alone-{number}")
        for number, node in enumerate(nodes, 1)
    ]
    async with bounded(ALONE_TIMEOUT_S, "training the nodes alone"):
        return await together(*work)


async def _loss_alone(node: Alone, *, heldout: Path, block_length: int, work_dir: Path) -> float:
    request = await asyncio.to_thread(_request, node)
    async with ChildProcess("fullrank_node.training.trainer", environment=ONE_THREAD) as trainer:
        trained = await call(
            trainer,
            "train_alone",
            {
                **request,
                "genesis_path": str(node.home.genesis_file),
                "member": node.member.hex(),
                "seed": int.from_bytes(node.member[:4], "little"),
                "data_cache": str(node.home.work_dir / "data.safetensors"),
                "work_dir": str(work_dir),
                "rounds": len(node.steps_per_round),
                "steps_per_round": list(node.steps_per_round),
            },
            timeout_s=ALONE_TIMEOUT_S,
        )
        measured = await call(
            trainer,
            "evaluate",
            {
                **request,
                "masters_dir": trained["masters_dir"],
                "manifest": trained["manifest"],
                "path": str(heldout),
                "block_length": block_length,
            },
            timeout_s=ALONE_TIMEOUT_S,
        )
    loss = float(measured["loss"])
    assert math.isfinite(loss)
    return loss


def _request(node: Alone) -> Mapping[str, Any]:
    """What every call of a trainer needs, for the weights of the genesis."""
    genesis = open_genesis(node.home.genesis_file.read_bytes())
    with Store(node.home, readonly=True) as store:
        base_dir, manifest = store.get_meta(BASE_DIR_KEY), store.manifest(genesis.swarm)
    assert base_dir is not None
    return {
        "base_dir": base_dir.decode(),
        "masters_dir": str(node.home.masters_dir),
        "manifest": manifest,
        "device": "cpu",
        "threads": 1,
    }

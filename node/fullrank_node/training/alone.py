"""One node that merges with nobody: what a swarm is measured against.

Every delta is applied by itself to private masters, through the same exact integers as in a swarm.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fullrank_node.model.master import MasterStore
from fullrank_protocol.codec import CODEC_PACKED, decode
from fullrank_protocol.delta import SeedContext, expand
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.state import plan_update

Reply = dict[str, Any]


def rounds_alone(
    request: Mapping[str, Any], genesis: Genesis, train: Callable[[Mapping[str, Any]], Reply]
) -> Iterator[tuple[Reply, dict[str, Any]]]:
    """Train `rounds` contributions, each on the weights that the one before has left.

    Masters, training state and deltas live in the request's `work_dir`. With `steps_per_round`, one number for each
    round, a round takes that many steps, and none at 0: as many as the node took in a swarm.

    Yields:
        The answer of `train`, and the request with which the new weights can be evaluated.
    """
    work_dir = Path(request["work_dir"])
    shared, masters = MasterStore(Path(request["masters_dir"])), MasterStore(work_dir / "masters")
    manifest: dict[str, str] = dict(request["manifest"])
    for module in genesis.modules:
        masters.write(module.name, shared.open(manifest[module.name], (module.out_features, module.in_features)))
    private = {
        **request,
        "masters_dir": str(work_dir / "masters"),
        "state_dir": str(work_dir / "state"),
        "out_path": str(work_dir / "delta.bin"),
        "deadline_ms": None,
    }
    member = bytes.fromhex(request["member"])
    rounds = int(request["rounds"])
    steps_per_round = request.get("steps_per_round") or [request.get("max_steps")] * rounds
    for number, max_steps in zip(range(rounds), steps_per_round, strict=True):
        if max_steps == 0:
            continue
        done = train({**private, "round": number, "manifest": manifest, "max_steps": max_steps})
        blob = Path(done["blob_path"]).read_bytes()
        manifest = apply_alone(blob, genesis, masters, manifest, member=member, period=done["period"])
        masters.collect(set(manifest.values()))
        yield done, {**private, "manifest": manifest}


def apply_alone(
    blob: bytes, genesis: Genesis, masters: MasterStore, manifest: Mapping[str, str], *, member: bytes, period: int
) -> dict[str, str]:
    """Apply one encoded delta with the weight of a lone contribution, the outer step; return the manifest."""
    context = SeedContext(swarm=genesis.swarm, member=member, period=period)
    delta = expand(decode(blob, genesis, CODEC_PACKED), context, genesis.modules)
    plans = plan_update([delta], [genesis.rule.outer_step], genesis.modules)
    return masters.apply(manifest, plans)

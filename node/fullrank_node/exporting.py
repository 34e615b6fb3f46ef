"""Writes a checkpoint's model for other programs, and says what it is."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.model.export.hf import export_hf, exported_tensors
from fullrank_node.model.export.peft import export_peft
from fullrank_node.model.export.provenance import Provenance
from fullrank_node.model.master import MasterStore
from fullrank_node.operations import PullReport
from fullrank_node.people import name_of_member
from fullrank_node.standing import Standing
from fullrank_node.store import Store
from fullrank_protocol.chain import ChainState
from fullrank_protocol.codec import decode
from fullrank_protocol.delta import Delta, SeedContext, expand
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.state import model_digest, tensor_sha256

MAX_STACKED_RANK = 4096
"""Deltas are only stacked for an exact adapter while their ranks add up to this: beyond, no shape is large enough."""


async def write_model(
    *,
    genesis: Genesis,
    store: Store,
    tree: Tree,
    chosen: ChainState,
    manifest: Mapping[str, str],
    base_dir: Path,
    base_digest: bytes,
    masters_dir: Path,
    out: Path,
    form: str,
    standing: Standing,
) -> PullReport:
    """Export one checkpoint as a Hugging Face directory ("hf") or a PEFT adapter ("peft").

    Raises:
        NodeError: `out` holds something else, or the disk is full.
    """
    chain = [node.checkpoint for node in tree.chain(chosen.id) if node.checkpoint is not None]
    accepted = [entry for checkpoint in chain for entry in checkpoint.accepted]
    members = sorted({name_of_member(entry.contribution.member, chosen.members) for entry in accepted})
    final = standing is Standing.FINAL
    provenance = Provenance(
        checkpoint=chosen.id,
        slot=chosen.slot,
        round=chosen.round,
        model_digest=chosen.model_digest or base_digest,
        final=final,
        standing=standing,
        num_contributions=len(accepted),
        num_tokens=sum(entry.contribution.num_tokens for entry in accepted),
        members=tuple(members),
    )
    masters = MasterStore(masters_dir)
    notes: list[str] = []
    energy_lost, rank = 0.0, 0
    if form == "hf":
        written = await asyncio.to_thread(export_hf, base_dir, manifest, masters, genesis, out, provenance)
        num_bytes = written.num_bytes
    elif form == "peft":
        deltas = await asyncio.to_thread(_stackable, genesis, store, tree, chosen)
        report = await asyncio.to_thread(
            lambda: export_peft(base_dir, manifest, masters, genesis, out, provenance, deltas=deltas)
        )
        energy_lost, rank = report.energy_lost, report.rank
        num_bytes = await asyncio.to_thread(_size_of, out)
        if not report.exact:
            lost = f"{100 * report.energy_lost:.2g} % of the update's energy is lost"
            notes.append(f"The update has more than rank {rank}; {lost}. --format hf is exact.")
    else:
        raise NodeError(f"found format {form!r}, required hf or peft", exit_code=ExitCode.USAGE)
    counted = chosen.newest_set
    return PullReport(
        swarm_name=genesis.name,
        swarm=genesis.swarm,
        checkpoint=chosen.id,
        round=chosen.round,
        slot=chosen.slot,
        digest=chosen.model_digest or base_digest,
        final=final,
        standing=standing,
        votes=len(counted & tree.nodes[chosen.id].voters),
        certifiers=len(counted),
        format=form,
        path=out,
        num_bytes=num_bytes,
        energy_lost=energy_lost,
        rank=rank,
        notes=tuple(notes),
    )


def _stackable(genesis: Genesis, store: Store, tree: Tree, chosen: ChainState) -> list[tuple[Delta, float]]:
    """Every delta of the chain with its weight; empty when there are too many to be stacked."""
    chain = [node.checkpoint for node in tree.chain(chosen.id) if node.checkpoint is not None]
    accepted = [entry for checkpoint in chain for entry in checkpoint.accepted]
    if len(accepted) * genesis.training.rank > MAX_STACKED_RANK:
        return []
    deltas: list[tuple[Delta, float]] = []
    for entry in accepted:
        contribution = entry.contribution
        if not store.blobs.has(contribution.blob.id):
            return []
        base_round = tree.state(contribution.base_checkpoint).round
        context = SeedContext(
            swarm=genesis.swarm, member=contribution.member, period=base_round // genesis.training.period_rounds
        )
        delta = decode(store.blobs.read(contribution.blob.id), genesis, contribution.codec)
        deltas.append((expand(delta, context, genesis.modules), entry.weight.value()))
    return deltas


def exported_digest(directory: Path, record: Mapping[str, Any]) -> bytes | None:
    """Model digest of the adapted tensors in an exported directory; None where they were not kept in float32."""
    if record.get("kind") != "model" or record.get("dtype") != "float32":
        return None
    wanted = record["tensors"]
    found = {name: tensor_sha256(tensor) for name, tensor in exported_tensors(directory) if name in wanted}
    return model_digest(found)


def _size_of(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir() if file.is_file())

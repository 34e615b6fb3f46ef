"""Writes the shared model as a PEFT adapter: a few low-rank factors to put on the base.

The sum of many low-rank updates need not be low-rank; where it is, the adapter is exact, and where it is not, it is
the best of its rank and says how much of the update it lost. The configuration is our own (PEFT's is not stable from
run to run), the factors carry all scales, so alpha equals the rank and PEFT's scaling is 1. Embeddings are a module
like any other, but for PEFT's names and its transposed factors. A head that shares their matrix gets the same factors,
which is right as long as the adapter is not merged: PEFT would then add them to the one matrix twice. The card says so.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fullrank_node.errors import NodeError
from fullrank_node.files import disk_errors
from fullrank_node.model.base_load import embedding_layers_of_base
from fullrank_node.model.export.factors import STACK_TOLERANCE, Factors, factorise, pad, stack
from fullrank_node.model.export.hf import Masters, base_views, finish_directory, start_directory
from fullrank_node.model.export.provenance import (
    PROVENANCE_NAME,
    Provenance,
    card_header,
    card_table,
    is_hub_name,
    one_line,
    provenance_record,
)
from fullrank_node.model.export.tensor_files import TensorView, write_tensors
from fullrank_protocol.delta import KIND_LINEAR, Delta
from fullrank_protocol.state import canonical_float32

if TYPE_CHECKING:
    from fullrank_protocol.genesis import Genesis

_DO_NOT_MERGE = """
Do not merge it: the head of this base shares the matrix of its embeddings, and `merge_and_unload` would change that
matrix twice. The merged model comes with `--format hf`.
"""

MAX_RANK = 64
"""Largest rank of an exported adapter by default: what common servers of adapters accept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleReport:
    """How well the adapter stands for the update of one module.

    Attributes:
        name: Parameter name.
        rank: Components used.
        method: `stacked` (nothing truncated), `svd of stack` or `svd`.
        energy_lost: Share of the squared Frobenius norm of W_t - W_0 that is missing, 0 to 1.
        max_abs_difference: Largest entry of W_t - W_0 - B A.
    """

    name: str
    rank: int
    method: str
    energy_lost: float
    max_abs_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftExport:
    """What was written, and what it lost.

    Attributes:
        directory: Holds adapter_config.json, adapter_model.safetensors, README.md and fullrank.json.
        rank: Common rank of the adapter; modules that need less are filled up with zeros.
        exact: Nothing was truncated: what is missing is only the rounding of float32 masters, round by round.
        energy_lost: Share of the squared Frobenius norm of the whole update that is missing, 0 to 1.
        max_abs_difference: Largest entry of W_t - W_0 - B A over all modules.
        modules: The same one by one, ascending by name.
    """

    directory: Path
    rank: int
    exact: bool
    energy_lost: float
    max_abs_difference: float
    modules: tuple[ModuleReport, ...]


def export_peft(  # noqa: PLR0917  (the same order as `export_hf`)
    base_dir: Path,
    manifest: Mapping[str, str],
    masters: Masters,
    genesis: "Genesis",
    out_dir: Path,
    provenance: Provenance,
    *,
    deltas: Sequence[tuple[Delta, float]] = (),
    max_rank: int | None = MAX_RANK,
) -> PeftExport:
    """Writes the update W_t - W_0 as an adapter into `out_dir`, which appears only when it is whole.

    Args:
        base_dir: The swarm's base, already checked against the genesis.
        manifest: SHA-256 in hexadecimal of each adapted tensor, by parameter name.
        masters: Where those tensors are.
        genesis: Of the swarm.
        out_dir: Must be missing, empty, or an earlier export, which is replaced.
        provenance: The checkpoint, for the model card and `fullrank.json`.
        deltas: Every accepted delta of the chain, expanded, with the weight it was given (negative where a
            correction took it back). With them, an update of small enough rank is written exactly; without them, or
            when they do not add up to W_t - W_0, singular values of W_t - W_0 decide.
        max_rank: Largest rank of the adapter; None for as much as the shapes allow.

    Raises:
        NodeError: `out_dir` holds something else, a dense module changed, or the disk is full.
    """
    originals = _original_tensors(base_dir, genesis)
    partial, out_dir = start_directory(out_dir, base_dir)
    try:
        found: dict[str, Factors] = {}
        for module in genesis.modules:
            before = canonical_float32(originals(module.name))
            after = masters.open(manifest[module.name], before.shape)
            if module.kind != KIND_LINEAR:
                _require_unchanged(module.name, before, after)
                continue
            update_OI = after.astype(np.float64) - before.astype(np.float64)
            found[module.name] = factorise(
                update_OI, stack(module.name, deltas), max_rank=max_rank or min(update_OI.shape)
            )
        report = _report(out_dir, found)
        with disk_errors(partial):
            shares_head = _write_adapter(partial, found, rank=report.rank, base_dir=base_dir, genesis=genesis)
            record = provenance_record(
                genesis, provenance, manifest, kind="adapter", rank=report.rank, energy_lost=report.energy_lost
            )
            _write_json(partial / PROVENANCE_NAME, record)
            card = _card(genesis, provenance, report, shares_head=shares_head)
            (partial / "README.md").write_text(card, encoding="utf-8")
        finish_directory(partial, out_dir)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return report


def _original_tensors(base_dir: Path, genesis: "Genesis") -> Callable[[str], npt.NDArray[np.float32]]:
    """A function from a parameter name to its float32 value in the base."""
    views = base_views(base_dir, {module.name: None for module in genesis.modules})
    if views is not None:
        by_name = {view.name: view for view in views}
        return lambda name: by_name[name].float32()
    from fullrank_node.model.base_load import load_base

    parameters: dict[str, Any] = dict(load_base(base_dir).named_parameters())

    def of_model(name: str) -> npt.NDArray[np.float32]:
        values: npt.NDArray[np.float32] = parameters[name].detach().numpy()
        return values

    return of_model


def _require_unchanged(name: str, before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> None:
    if not np.array_equal(before, after):
        raise NodeError(
            f"{name} changed, and an adapter of low-rank factors cannot hold it",
            hint="Use --format hf.",
        )


def _report(directory: Path, found: Mapping[str, Factors]) -> PeftExport:
    modules = tuple(
        ModuleReport(
            name=name,
            rank=one.A_RI.shape[0],
            method=one.method,
            energy_lost=one.energy_lost,
            max_abs_difference=one.max_abs_difference,
        )
        for name, one in sorted(found.items())
    )
    energy = sum(one.energy for one in found.values())
    lost = sum(one.energy * one.energy_lost for one in found.values())
    return PeftExport(
        directory=directory,
        rank=max((module.rank for module in modules), default=1),
        exact=all(one.energy_lost <= STACK_TOLERANCE for one in found.values()),
        energy_lost=lost / energy if energy > 0.0 else 0.0,
        max_abs_difference=max((one.max_abs_difference for one in found.values()), default=0.0),
        modules=modules,
    )


def _base_name(base_dir: Path, genesis: "Genesis") -> str:
    """What a loader finds the base by: its hub name, or the directory where it lies here."""
    return genesis.base.reference if is_hub_name(genesis.base.reference) else str(base_dir.resolve())


def _write_adapter(
    out_dir: Path, found: Mapping[str, Factors], *, rank: int, base_dir: Path, genesis: "Genesis"
) -> bool:
    """Writes factors and configuration; tells whether a head shares the matrix of adapted embeddings."""
    names = sorted(found)
    embeddings, shared_head = embedding_layers_of_base(base_dir)
    targets = [name.removesuffix(".weight") for name in names]
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for target, (B_OR, A_RI) in zip(targets, pad([found[name] for name in names], rank), strict=True):
        if target != embeddings:
            tensors |= _linear(target, B_OR, A_RI)
            continue
        tensors[f"base_model.model.{target}.lora_embedding_A"] = np.ascontiguousarray(B_OR.T)
        tensors[f"base_model.model.{target}.lora_embedding_B"] = np.ascontiguousarray(A_RI.T)
        if shared_head is not None:
            tensors |= _linear(shared_head, B_OR, A_RI)
            targets = [*targets, shared_head]
    views = [
        TensorView(name=key, dtype="F32", shape=factor.shape, flat=factor.reshape(-1))
        for key, factor in tensors.items()
    ]
    write_tensors(out_dir / "adapter_model.safetensors", views)
    config = {
        "alpha_pattern": {},
        "base_model_name_or_path": _base_name(base_dir, genesis),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "revision": genesis.base.revision or None,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    _write_json(out_dir / "adapter_config.json", config)
    return shared_head is not None and shared_head in targets


def _linear(
    target: str, B_OR: npt.NDArray[np.float32], A_RI: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float32]]:
    return {f"base_model.model.{target}.lora_A.weight": A_RI, f"base_model.model.{target}.lora_B.weight": B_OR}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _card(genesis: "Genesis", provenance: Provenance, report: PeftExport, *, shares_head: bool) -> str:
    if report.exact:
        loss = "It stands for the whole update, but for the rounding of float32 weights after each round."
    else:
        loss = (
            f"The update has a higher rank than {report.rank}: this adapter misses {report.energy_lost:.2%} of its "
            f"energy (squared Frobenius norm). The whole model comes with `--format hf`."
        )
    return f"""{card_header(genesis, library="peft")}

# {one_line(genesis.name)}, as an adapter of rank {report.rank}

What a swarm changed in its base: every member trained on its own texts and shared signed low-rank changes only.
{loss} No entry of a weight differs by more than {report.max_abs_difference:.1e}.

{card_table(genesis, provenance)}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("BASE", dtype="float32")
model = PeftModel.from_pretrained(base, "PATH")
```
{_DO_NOT_MERGE if shares_head else ""}
`{PROVENANCE_NAME}` holds the same facts for programs.
"""

"""Writes the shared model as a Hugging Face directory that transformers and most other tools load.

The base's files are copied untouched, tokenizer included; only the weights change, and the number format that
`config.json` names. Adapted tensors are the float32 masters, bit for bit, so the model digest (protocol section 7)
can be recomputed from the directory: `exported_tensors` reads them back for `verify`.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import disk_errors
from fullrank_node.model.export.provenance import (
    PROVENANCE_NAME,
    Provenance,
    card_header,
    card_table,
    one_line,
    provenance_record,
    read_provenance,
)
from fullrank_node.model.export.tensor_files import FLOAT_TYPES, TensorView, read_directory, write_directory

if TYPE_CHECKING:
    from fullrank_protocol.genesis import Genesis

MAX_SHARD_BYTES = 5_000_000_000
"""Largest file of weights; hubs and file systems take it, and a broken download costs at most this much."""

_COPIED = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "LICENSE*", "LICENCE*", "NOTICE*")
_NOT_COPIED = {"config.json", PROVENANCE_NAME, "adapter_config.json", "trainer_state.json"}


class Masters(Protocol):
    """What an export needs of `model.master.MasterStore`."""

    def open(self, sha256: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """A read-only view of one adapted tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HfExport:
    """What was written.

    Attributes:
        directory: Holds config.json, weights, tokenizer, README.md and fullrank.json.
        weight_files: Their names; more than one when the model is sharded.
        num_bytes: Of the weights.
        dtype: Number format of the weights.
    """

    directory: Path
    weight_files: tuple[str, ...]
    num_bytes: int
    dtype: str


def export_hf(  # noqa: PLR0917  (the order in which a model comes about; also `export_peft`'s)
    base_dir: Path,
    manifest: Mapping[str, str],
    masters: Masters,
    genesis: "Genesis",
    out_dir: Path,
    provenance: Provenance,
    *,
    dtype: str = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> HfExport:
    """Writes base plus masters into `out_dir`, which appears only when it is whole.

    Args:
        base_dir: The swarm's base, already checked against the genesis.
        manifest: SHA-256 in hexadecimal of each adapted tensor, by parameter name.
        masters: Where those tensors are.
        genesis: Of the swarm; for the model card.
        out_dir: Must be missing, empty, or an earlier export, which is replaced.
        provenance: The checkpoint, for the model card and `fullrank.json`.
        dtype: `float32` (exact), `float16`, `bfloat16`, or `base` for the base's own format.
        max_shard_bytes: Above this, weights are written as several files with an index.

    Raises:
        NodeError: `out_dir` holds something else, the base lacks an adapted tensor, or the disk is full.
        ValueError: `dtype` is none of the four.
    """
    if dtype not in {*FLOAT_TYPES, "base"}:
        raise ValueError(f"found dtype {dtype!r}, required base, {', '.join(FLOAT_TYPES)}")
    config = json.loads((base_dir / "config.json").read_text(encoding="utf-8"))
    type_code = FLOAT_TYPES.get(dtype)
    partial, out_dir = start_directory(out_dir, base_dir)
    try:
        with disk_errors(out_dir):
            views = base_views(base_dir, manifest)
            if views is None:
                names = _write_by_transformers(
                    base_dir, manifest, masters, out_dir=partial, dtype=dtype, max_shard_bytes=max_shard_bytes
                )
            else:
                merged = merge(views, manifest, masters, tied=bool(config.get("tie_word_embeddings")))
                names = write_directory(partial, merged, dtype=type_code, max_shard_bytes=max_shard_bytes)
            _write_json(partial / "config.json", config if dtype == "base" else _with_dtype(config, dtype))
            copy_base_files(base_dir, partial, also=[entry.name for entry in genesis.base.files])
            _write_json(
                partial / PROVENANCE_NAME, provenance_record(genesis, provenance, manifest, kind="model", dtype=dtype)
            )
            (partial / "README.md").write_text(_card(genesis, provenance, dtype), encoding="utf-8")
        finish_directory(partial, out_dir)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return HfExport(
        directory=out_dir,
        weight_files=tuple(names),
        num_bytes=sum((out_dir / name).stat().st_size for name in names),
        dtype=dtype,
    )


def exported_tensors(directory: Path) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yields (name, float32 tensor) of every adapted tensor of an exported directory, ascending by name.

    Hashed and combined they give the model digest if the directory was written as float32 and nobody changed it.

    Raises:
        NodeError: It is no exported directory, or a tensor is missing.
    """
    names = read_provenance(directory)["tensors"]
    views = {view.name: view for view in read_directory(directory)}
    for name in sorted(names):
        if name not in views:
            raise NodeError(f"{directory} lacks the tensor {name}", hint="Pull the model again.")
        yield name, views[name].float32()


def base_views(base_dir: Path, names: Mapping[str, object]) -> list[TensorView] | None:
    """The tensors of a base directory as its files hold them.

    Returns None when the files use other names than the model does (old conversions): transformers must translate.
    """
    views = read_directory(base_dir)
    return views if {view.name for view in views} >= set(names) else None


def merge(
    views: Sequence[TensorView], manifest: Mapping[str, str], masters: Masters, *, tied: bool
) -> list[TensorView]:
    """Replaces adapted tensors by their masters.

    A second copy of a tied tensor that is replaced is left out: a loader that finds both would untie them.
    """
    replaced = [view for view in views if view.name in manifest]
    merged = []
    for view in views:
        if view.name in manifest:
            flat = masters.open(manifest[view.name], view.shape).reshape(-1)
            merged.append(replace(view, dtype="F32", flat=flat, target=view.dtype))
        elif not (tied and any(_same_tensor(view, other) for other in replaced)):
            merged.append(view)
    return merged


def copy_base_files(base_dir: Path, out_dir: Path, *, also: Sequence[str] = ()) -> None:
    """Copies tokenizer, generation settings and licence untouched; neither code nor weights nor the base's card."""
    names = {path.name for pattern in _COPIED for path in base_dir.glob(pattern)} | set(also)
    for name in sorted(names - _NOT_COPIED):
        if (base_dir / name).is_file() and not name.endswith(".index.json"):
            (out_dir / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base_dir / name, out_dir / name)


def start_directory(out_dir: Path, base_dir: Path) -> tuple[Path, Path]:
    """Makes an empty directory beside `out_dir` to write in.

    Returns:
        That directory, and `out_dir` made absolute.

    Raises:
        NodeError: `out_dir` is the base, or exists and is neither empty nor an earlier export.
    """
    out_dir = out_dir.resolve()
    if out_dir == base_dir.resolve() or (out_dir.exists() and not (out_dir.is_dir() and _may_replace(out_dir))):
        raise NodeError(
            f"{out_dir} exists and is not a model that fullrank exported",
            hint="Give another directory with -o, or remove it.",
            exit_code=ExitCode.USAGE,
        )
    partial = out_dir.with_name(out_dir.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with disk_errors(partial):
        partial.mkdir(parents=True)
    return partial, out_dir


def finish_directory(partial: Path, out_dir: Path) -> None:
    """Puts a whole directory in its place; an earlier export is removed only now."""
    if out_dir.exists():
        shutil.rmtree(out_dir)
    partial.rename(out_dir)


def _may_replace(out_dir: Path) -> bool:
    return (out_dir / PROVENANCE_NAME).is_file() or not any(out_dir.iterdir())


def _same_tensor(first: TensorView, second: TensorView) -> bool:
    return (first.dtype, first.shape) == (second.dtype, second.shape) and np.array_equal(first.flat, second.flat)


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The configuration with its number format, under the key or keys that it already uses."""
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    return {**config, **dict.fromkeys(keys, dtype)}


def _write_by_transformers(
    base_dir: Path,
    manifest: Mapping[str, str],
    masters: Masters,
    *,
    out_dir: Path,
    dtype: str,
    max_shard_bytes: int,
) -> list[str]:
    """Loads the base, sets its parameters and lets transformers write the weights under the names it wants."""
    import torch

    from fullrank_node.model.base_load import load_base

    model = load_base(base_dir)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, sha256 in manifest.items():
            if name not in parameters:
                raise NodeError(f"the base in {base_dir} has no tensor {name}", exit_code=ExitCode.CONFIG)
            master = np.array(masters.open(sha256, tuple(parameters[name].shape)))
            parameters[name].copy_(torch.from_numpy(master))
    if dtype != "base":
        model = model.to(getattr(torch, dtype))
    scratch = out_dir / "weights"
    model.save_pretrained(scratch, max_shard_size=max_shard_bytes)
    names = []
    for path in sorted(scratch.glob("*.safetensors*")):
        path.rename(out_dir / path.name)
        names.append(path.name)
    shutil.rmtree(scratch)
    return [name for name in names if name.endswith(".safetensors")]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _card(genesis: "Genesis", provenance: Provenance, dtype: str) -> str:
    exact = (
        "Its adapted tensors are the swarm's float32 weights, bit for bit: `fullrank verify` recomputes the digest."
        if dtype == "float32"
        else f"Weights were rounded to {dtype}; the digest is that of the float32 weights before."
    )
    return f"""{card_header(genesis, library="transformers")}

# {one_line(genesis.name)}

A language model trained by a swarm: every member trained on its own texts and shared signed low-rank changes only,
which were merged exactly into one model. {exact}

{card_table(genesis, provenance)}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```

`{PROVENANCE_NAME}` holds the same facts for programs, and the SHA-256 of every adapted tensor.
"""

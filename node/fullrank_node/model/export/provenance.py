"""Where an exported model comes from: the words of its model card and the file that lets it be checked again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullrank_node.errors import NodeError

if TYPE_CHECKING:
    from fullrank_protocol.genesis import Genesis

PROVENANCE_NAME = "fullrank.json"
"""Holds what `verify` needs: swarm, checkpoint, model digest and the hash of every adapted tensor."""

FORMAT = 1

_FINALITY_WORDS = {
    "final": "final",
    "provisional": "provisional, not final: only the certifiers that were there stood behind it; it may be replaced",
    "not final": "not final: it may still be replaced",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The checkpoint that is exported, and who made it.

    Attributes:
        checkpoint: Its id, 32 bytes; the swarm id for the genesis.
        round: Normal checkpoints on the chain up to and including it.
        model_digest: Of the adapted float32 tensors, 32 bytes.
        final: Whether it is irrevocable (protocol section 8).
        standing: The same in words: "final", "provisional" (in a stall, those certifiers that were there stood behind
            it) or "not final".
        num_contributions: Accepted on the chain up to and including it.
        num_tokens: That their authors say they trained on.
        members: Names of the authors, as they chose them.
    """

    checkpoint: bytes
    slot: int
    round: int
    model_digest: bytes
    final: bool
    num_contributions: int = 0
    num_tokens: int = 0
    members: tuple[str, ...] = ()
    standing: str = "final"


def provenance_record(
    genesis: "Genesis", provenance: Provenance, manifest: Mapping[str, str], **more: object
) -> dict[str, Any]:
    """The content of `fullrank.json`; ids and hashes in hexadecimal."""
    return {
        "format": FORMAT,
        "swarm": genesis.swarm.hex(),
        "name": genesis.name,
        "checkpoint": provenance.checkpoint.hex(),
        "slot": provenance.slot,
        "round": provenance.round,
        "final": provenance.final,
        "standing": provenance.standing,
        "model_digest": provenance.model_digest.hex(),
        "base": {"reference": genesis.base.reference, "revision": genesis.base.revision},
        "num_contributions": provenance.num_contributions,
        "num_tokens": provenance.num_tokens,
        "members": list(provenance.members),
        "tensors": dict(sorted(manifest.items())),
        **more,
    }


def read_provenance(directory: Path) -> dict[str, Any]:
    """Reads `fullrank.json` of an exported directory.

    Raises:
        NodeError: There is none, or it is not ours.
    """
    path = directory / PROVENANCE_NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NodeError(f"{directory} is no exported model: it has no {PROVENANCE_NAME}") from error
    except ValueError as error:
        raise NodeError(f"{path} is damaged: {error}", hint="Pull the model again.") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("tensors"), dict):
        raise NodeError(f"{path} is not a provenance file of format {FORMAT}", hint="Pull the model again.")
    return record


def card_header(genesis: "Genesis", *, library: str) -> str:
    """The YAML header of a model card. JSON strings are YAML, so a name cannot break out of its field."""
    fields: list[tuple[str, object]] = [
        ("library_name", library),
        ("pipeline_tag", "text-generation"),
        ("tags", ["fullrank"]),
    ]
    if genesis.base.licence:
        fields.append(("license", genesis.base.licence))
    if is_hub_name(genesis.base.reference):
        fields.append(("base_model", genesis.base.reference))
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields]
    return "\n".join(["---", *lines, "---"])


def card_table(genesis: "Genesis", provenance: Provenance) -> str:
    """The table of a model card: which swarm, which checkpoint, whose work, on which terms."""
    base = genesis.base.reference or "a local directory of the founder"
    if genesis.base.revision:
        base = f"{base} at {genesis.base.revision}"
    rows = [
        ("swarm", f"{one_line(genesis.name)} (`{genesis.swarm.hex()}`)"),
        ("base", one_line(base)),
        ("round", f"{provenance.round}, {_FINALITY_WORDS[provenance.standing]}"),
        ("checkpoint", f"`{provenance.checkpoint.hex()}` in slot {provenance.slot}"),
        ("model digest", f"`{provenance.model_digest.hex()}`"),
        ("contributions", f"{provenance.num_contributions:,} merged, {provenance.num_tokens:,} tokens as declared"),
        ("members", one_line(", ".join(provenance.members)) or "not recorded"),
        ("licence", one_line(genesis.base.licence) or "that of the base, which does not name one"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])


def is_hub_name(reference: str) -> bool:
    """Tells a hub name from a local directory (empty) and an embedded base."""
    return bool(reference) and ":" not in reference


def one_line(text: str) -> str:
    """Text of others, made harmless inside a Markdown table."""
    return " ".join(text.replace("|", "/").replace("<", "&lt;").replace("`", "'").split())

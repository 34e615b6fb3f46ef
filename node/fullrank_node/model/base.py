"""The base model: where it is found, what names it, what of it is adapted.

Decides which directory holds the base, whether it is the one the
genesis fixes (protocol section 3: the SHA-256 of every tensor as float32, of configuration and
tokenizer), and which tensors the swarm trains. Loading is `base_load.py`.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from fullrank_node.errors import ExitCode, NodeError
from fullrank_protocol.blob import blob_ref

if TYPE_CHECKING:
    from fullrank_protocol.genesis import Genesis

EMBEDDED_PREFIX = "embedded:"

_EMBEDDED = {"demo": Path(__file__).parents[1] / "demo" / "base"}

_CONFIGURATION_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""What transformers reads beside the weights; whatever of it a base has belongs to the genesis."""

_DOWNLOADED = [*_CONFIGURATION_FILES, "*.safetensors", "*.safetensors.index.json", "README.md", "LICENSE*"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve_base(
    reference: str,
    revision: str = "",
    base_dir: Path | None = None,
    genesis: "Genesis | None" = None,
) -> Path:
    """Find the directory of a base model, downloading it from the hub where that is allowed.

    HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN hold as everywhere; there is no second cache.

    Args:
        reference: A directory, a hub name, `embedded:demo`, or empty with a genesis.
        revision: Branch, tag or commit on the hub; empty for the default branch.
        base_dir: Where the base lies, given by the operator or filled from peers; goes before all else.
        genesis: Of the swarm to join; supplies reference and revision where they are empty.

    Raises:
        NodeError: When there is no such base, it is gated or not to be had offline, or it is no model
            directory with safetensors weights.
    """
    if base_dir is not None:
        return _checked(base_dir)
    if genesis is not None:
        reference, revision = reference or genesis.base.reference, revision or genesis.base.revision
    if reference.startswith(EMBEDDED_PREFIX):
        return _embedded(reference.removeprefix(EMBEDDED_PREFIX))
    if genesis is None and reference and Path(reference).expanduser().is_dir():
        return _checked(Path(reference).expanduser().resolve())
    if not reference:
        return _found_by_content(genesis)
    if not _HUB_NAME.fullmatch(reference):
        raise NodeError(
            f"there is no base model at {reference}",
            hint="Give a directory with config.json and safetensors files, a hub name such as org/name, "
            "or embedded:demo.",
            exit_code=ExitCode.CONFIG,
        )
    return _checked(_from_hub(reference, revision))


def base_revision(path: Path) -> str:
    """The hub commit that a base directory is a snapshot of, or empty: cached snapshots are named by commit."""
    return path.name if path.parent.name == "snapshots" and _COMMIT.fullmatch(path.name) else ""


def base_files(path: Path) -> list[str]:
    """Names of the configuration and tokenizer files of a base, ascending."""
    return [name for name in _CONFIGURATION_FILES if (path / name).is_file()]


def base_weight_files(path: Path) -> list[str]:
    """Names of the files that hold the weights of a base, ascending."""
    return sorted(file.name for pattern in ("*.safetensors", "*.safetensors.index.json") for file in path.glob(pattern))


def base_licence(path: Path) -> str:
    """The licence that a model card names in its header, or empty."""
    card = path / "README.md"
    if not card.is_file():
        return ""
    header = card.read_text(encoding="utf-8", errors="replace")[:20_000].split("\n---", 1)[0]
    found = (
        re.search(r"^license:\s*[\"']?([\w .+-]{1,64})", header, flags=re.MULTILINE) if header[:3] == "---" else None
    )
    return found.group(1).strip() if found else ""


def check_base_files(path: Path, genesis: "Genesis") -> None:
    """Compare configuration and tokenizer with the genesis.

    Raises:
        NodeError: Naming the first file that is missing or differs.
    """
    for entry in genesis.base.files:
        file = path / entry.name
        if not file.is_file():
            raise base_differs(entry.name, found="no such file", required=f"{entry.blob.num_bytes} bytes", path=path)
        ref = blob_ref(file.read_bytes())
        if ref != entry.blob:
            raise base_differs(
                entry.name,
                found=f"{ref.num_bytes} bytes named {ref.id.hex()[:16]}",
                required=f"{entry.blob.num_bytes} bytes named {entry.blob.id.hex()[:16]}",
                path=path,
            )


def base_differs(where: str, *, found: str, required: str, path: Path) -> NodeError:
    """The error for a base that is not the one of the swarm."""
    return NodeError(
        f"base differs from the genesis at {where}: found {found}, required {required} (in {path})",
        hint="Give the exact base of the swarm with --base DIR, or leave --base out to let the node find it.",
        exit_code=ExitCode.CONFIG,
    )


def _checked(path: Path) -> Path:
    """A directory that can be a base, or the reason why it cannot."""
    if not (path / "config.json").is_file():
        raise NodeError(
            f"{path} is no model directory: it has no config.json",
            hint="Give a directory as save_pretrained writes it.",
            exit_code=ExitCode.CONFIG,
        )
    if not any(path.glob("*.safetensors")):
        raise NodeError(
            f"{path} has no .safetensors weights",
            hint="Pickled weights are not read: load the model with transformers and save_pretrained it again.",
            exit_code=ExitCode.CONFIG,
        )
    return path


def _embedded(name: str) -> Path:
    if name not in _EMBEDDED:
        raise NodeError(
            f"there is no embedded base {name!r}",
            hint=f"Embedded bases: {', '.join(EMBEDDED_PREFIX + known for known in _EMBEDDED)}.",
            exit_code=ExitCode.CONFIG,
        )
    return _checked(_EMBEDDED[name])


def _found_by_content(genesis: "Genesis | None") -> Path:
    """A snapshot in the hub cache whose configuration and tokenizer are those of the genesis."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if genesis is None:
        raise NodeError("no base model was named", hint="Use --base DIR_OR_HUB_NAME.", exit_code=ExitCode.USAGE)
    for config in sorted(Path(HF_HUB_CACHE).glob("models--*/snapshots/*/config.json")):
        try:
            check_base_files(config.parent, genesis)
            return _checked(config.parent)
        except NodeError:
            continue
    raise NodeError(
        f"the base of the swarm {genesis.name!r} is a local directory of its founder, and it is not on this machine",
        hint="Get the directory from the founder and give it with --base DIR.",
        exit_code=ExitCode.CONFIG,
    )


def _from_hub(name: str, revision: str) -> Path:
    """The snapshot of a hub model: from the cache where the commit is there, else from the hub."""
    from huggingface_hub import errors, snapshot_download

    shown = f"{name}@{revision[:12]}" if revision else name

    def download(*, local_only: bool) -> Path:
        found = snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=_DOWNLOADED,
            ignore_patterns=["*/*"],
            local_files_only=local_only,
        )
        return Path(found)

    if _COMMIT.fullmatch(revision):  # A commit never changes: what is in the cache needs no question to the hub.
        try:
            return _checked(download(local_only=True))
        except (errors.LocalEntryNotFoundError, NodeError):
            pass
    try:
        return download(local_only=False)
    except errors.GatedRepoError as error:
        raise NodeError(
            f"the base {shown} is gated: its owner wants to know who downloads it",
            hint=f"Accept its conditions at https://huggingface.co/{name}, then set HF_TOKEN.",
            exit_code=ExitCode.PERMISSION,
        ) from error
    except errors.RevisionNotFoundError as error:
        raise NodeError(f"the base {name} has no revision {revision}", exit_code=ExitCode.CONFIG) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise NodeError(
            f"there is no directory and no public hub model named {name}",
            hint="Check the spelling; for a private model set HF_TOKEN.",
            exit_code=ExitCode.CONFIG,
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.RevisionResolutionError) as error:
        raise NodeError(
            f"the base {shown} is not in the cache and the hub cannot be reached",
            hint="Go online once (unset HF_HUB_OFFLINE), or give a local directory with --base DIR.",
            exit_code=ExitCode.RETRY,
        ) from error
    except OSError as error:  # The hub's HTTP errors, refused connections, a full disk.
        raise NodeError(
            f"downloading the base {shown} failed: {error}",
            hint="Try again; the download goes on where it stopped.",
            exit_code=ExitCode.RETRY,
        ) from error

"""Snapshots between files: masters in, one blob out, and the other way round (protocol section 12).

Both directions hold a few tiles of 1 MiB, whatever the size of the model. Masters that come out are immutable files
like all others, and nothing is decided by a file that is there: the manifest is recorded by the caller, last.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import fsync_directory, replace_with, temporary_file
from fullrank_node.model.master import Float32Array, Manifest, MasterStore, manifest_digest
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.parts import ModuleShape
from fullrank_protocol.snapshot import check_end, decode_module, encode_module

OnModule = Callable[[int], None]
"""Told how many modules are done."""


def write_snapshot(
    modules: Sequence[ModuleShape],
    masters: MasterStore,
    *,
    base: Manifest,
    manifest: Manifest,
    path: Path,
    on_module: OnModule,
) -> int:
    """Write the snapshot of a model to `path`; durable when this returns.

    Returns:
        Its bytes.

    Raises:
        NodeError: A master is missing, or the disk is full.
    """
    with temporary_file(path.parent) as file:
        for number, module in enumerate(modules, 1):
            before = _flat(masters, module, base)
            after = _flat(masters, module, manifest)
            for tile in encode_module(module, before, after):
                file.write(tile)
            on_module(number)
        num_bytes = file.tell()
        replace_with(file, path)
        fsync_directory(path.parent)
    return num_bytes


def apply_snapshot(
    modules: Sequence[ModuleShape],
    masters: MasterStore,
    *,
    base: Manifest,
    path: Path,
    digest: bytes,
    on_module: OnModule,
) -> dict[str, str]:
    """Write the masters that a snapshot makes of the base; durable when this returns.

    Returns:
        Their manifest.

    Raises:
        RejectError: CODEC when the file is no snapshot, DIGEST when it is one of another model; nothing is left of it.
        NodeError: A master of the base is missing, or the disk is full.
    """
    manifest: dict[str, str] = {}
    made: set[str] = set()
    held = {file.stem for file in masters.directory.iterdir()}
    try:
        with path.open("rb") as source:
            for number, module in enumerate(modules, 1):
                sha256 = _apply_module(source, module, masters, base)
                manifest[module.name] = sha256
                made |= {sha256} - held
                on_module(number)
            check_end(source)
        _check_digest(manifest, digest, masters=masters, base=base)
    except RejectError:
        for sha256 in made:
            masters.path(sha256).unlink(missing_ok=True)
        raise
    return manifest


def _check_digest(manifest: Manifest, digest: bytes, *, masters: MasterStore, base: Manifest) -> None:
    found = manifest_digest(manifest)
    if found == digest:
        return
    for name, sha256 in base.items():  # Before somebody is blamed: is it this disk?
        if not masters.verify(sha256):
            raise NodeError(
                f"corrupt master: the base's weights of {name} do not hash to {sha256[:12]}",
                hint="Stop the node and start it again: it makes the weights anew from the base and the log.",
                exit_code=ExitCode.DISK,
            )
    raise RejectError(
        Rule.DIGEST, f"gives a model with digest {found.hex()[:12]}, its checkpoint has {digest.hex()[:12]}"
    )


def _apply_module(source: BinaryIO, module: ModuleShape, masters: MasterStore, base: Manifest) -> str:
    return masters.write_tiles(decode_module(source, module, _flat(masters, module, base)))


def _flat(masters: MasterStore, module: ModuleShape, manifest: Manifest) -> Float32Array:
    shape = (module.out_features, module.in_features)
    return masters.open(manifest[module.name], shape, name=module.name).reshape(-1)

"""What `doctor` says of what a node is given: the data to train on, and the base model. Downloads nothing."""

from pathlib import Path
from typing import TYPE_CHECKING

from fullrank_node.cli.check import Check
from fullrank_node.errors import NodeError
from fullrank_node.home import Home
from fullrank_protocol.errors import ProtocolError

if TYPE_CHECKING:
    from fullrank_protocol.genesis import Genesis

READ_DATA_BYTES = 100_000_000
"""Rows of a larger file are not read by every `doctor`: at about 100 MB a second, a person waits for a second."""


def data(home: Home) -> Check:
    """Whether the rows to train on are there and can be read."""
    from fullrank_node.cli.render import plural
    from fullrank_node.config import load_config
    from fullrank_node.training.data import check_data

    try:
        config = load_config(home.config_file)
    except NodeError:
        return Check(name="data", level="warning", detail="not checked: the configuration cannot be read")
    path = config.data.path
    if path is None or not config.train.enabled:
        why = "none is given" if path is None else "training is off (train.enabled)"
        return Check(name="data", level="ok", detail=f"{why}: this node trains nothing")
    if path.is_file() and path.stat().st_size > READ_DATA_BYTES:
        detail = f"{path}, {path.stat().st_size / 1e9:.1f} GB, not read here: `fullrank data check {path}` does"
        return Check(name="data", level="ok", detail=detail)
    try:
        report = check_data(path, valid_fraction=config.data.valid_fraction)
    except NodeError as error:
        return Check(name="data", level="failure", detail=str(error), cure=error.hint)
    detail = f"{plural(report.num_rows, 'row')} to train on, {report.num_valid_rows} held out, in {path}"
    if report.skipped:
        first = report.skipped[0]
        detail += f"; {len(report.skipped)} cannot be used, first line {first.line}: {first.reason}"
        return Check(name="data", level="warning", detail=detail, cure=f"fullrank data check {path}")
    return Check(name="data", level="ok", detail=detail)


def base(home: Home) -> Check:
    """Whether the base model is on this machine, and the very one that the swarm trains; downloads nothing."""
    from fullrank_node.config import load_config
    from fullrank_node.following import genesis_of
    from fullrank_node.model.base import check_base_files

    if not home.genesis_file.exists():
        return Check(name="base", level="ok", detail="no swarm yet")
    try:
        genesis = genesis_of(home)
        path = _base_here(home, load_config(home.config_file).base.path, genesis)
        if path is not None:
            check_base_files(path, genesis)
            return Check(name="base", level="ok", detail=f"{genesis.base.reference or 'local directory'} in {path}")
    except NodeError as error:
        return Check(name="base", level="failure", detail=str(error), cure=error.hint)
    except ProtocolError as error:
        cure = "Join the swarm again into a fresh home with the same identity.key."
        detail = f"{home.genesis_file} is damaged: {error.detail}"
        return Check(name="base", level="failure", detail=detail, cure=cure)
    source = "peers" if genesis.base.weight_files else "the Hugging Face cache or hub"
    detail = f"{genesis.base.reference or 'the base'} was not loaded here yet: the next start takes it from {source}"
    return Check(name="base", level="ok", detail=detail)


def _base_here(home: Home, given: Path | None, genesis: "Genesis") -> Path | None:
    """The directory from which the next start loads the base; None where it would have to be fetched.

    Raises:
        NodeError: What the owner gave is no base.
    """
    from fullrank_node.following import known_base
    from fullrank_node.model.base import EMBEDDED_PREFIX, resolve_base
    from fullrank_node.store import Store

    fetched = home.path / "base"
    given = given or (fetched if fetched.is_dir() else None)
    if given is not None or genesis.base.reference.startswith(EMBEDDED_PREFIX):
        return resolve_base("", "", given, genesis)
    if home.state_file.exists():
        with Store(home, readonly=True) as store:
            if (known := known_base(store)) is not None:
                return known
    if not genesis.base.reference:
        try:
            return resolve_base("", "", None, genesis)  # Looks into the cache alone.
        except NodeError:
            if not genesis.base.weight_files:
                raise
    return None

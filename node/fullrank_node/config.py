"""What the owner of a node may set, and where each value comes from.

Precedence: command line flag, environment (`FULLRANK_LIMITS__CPU_THREADS=2`), `config.toml` in the home,
default. The file holds only what somebody set. A key that nobody knows is an error that names the
nearest one, because a misspelt limit would otherwise be no limit.
"""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import write_atomically

ENVIRONMENT_PREFIX = "FULLRANK_"
ENVIRONMENT_DELIMITER = "__"

_OTHER_VARIABLES = frozenset({"FULLRANK_HOME"})
_NOTHING: Mapping[str, Any] = MappingProxyType({})

Values = Mapping[str, Any]
"""Configuration as nested plain values: {"limits": {"cpu_threads": 2}, "certify": True}."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _own_address(text: str) -> str:
    """An address of this node, as p2pd reads it; ValueError where it is none."""
    from fullrank_node.addresses import host_and_port

    host_and_port(text.partition("/p2p/")[0])
    return text


def _peer_address(text: str) -> str:
    """An address of another node; ValueError where it is none or lacks the peer id."""
    from fullrank_node.addresses import parse_address

    parse_address(text)
    return text


OwnAddress = Annotated[str, AfterValidator(_own_address)]
PeerAddress = Annotated[str, AfterValidator(_peer_address)]


class NodeSection(_Section):
    """How this node appears to others."""

    name: str = Field(default="", max_length=32, description="shown to others; empty: made from the key")


class DataSection(_Section):
    """What this node trains on. It never leaves the machine."""

    path: Path | None = Field(default=None, description="JSONL file, or directory with train.jsonl")
    valid_path: Path | None = Field(default=None, description="held-out rows; none: a share of the data")
    valid_fraction: float = Field(default=0.05, ge=0.0, le=0.5, description="share held out when no file is given")


class BaseSection(_Section):
    """The base model on this machine."""

    path: Path | None = Field(default=None, description="its directory; none: found in the cache, the hub or at peers")


class TrainSection(_Section):
    """How this node trains; what is not set follows the swarm's genesis."""

    enabled: bool = Field(default=True, description="false: only serve and certify")
    start_paused: bool = Field(default=False, description="start without training, until `fullrank resume`")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda:0")
    mode: Literal["b", "ab"] | None = Field(default=None, description="b: a seeded A is kept; ab: both are trained")
    rank: int | None = Field(default=None, ge=1, le=1024, description="rank of one delta")
    threads: int | None = Field(default=None, ge=1, le=1024, description="processor threads of the trainer")
    learning_rate: float | None = Field(default=None, gt=0.0, lt=10.0, description="highest rate of the schedule")
    max_steps: int | None = Field(default=None, ge=1, description="most optimiser steps for one delta")


class LimitsSection(_Section):
    """What this node may use of the machine."""

    cpu_threads: int | None = Field(default=None, ge=1, le=1024, description="processor threads; none: a fair share")
    disk_gb: float | None = Field(
        default=None, gt=0.0, description="gigabytes for deltas and snapshots; none: 50, for an archive no limit"
    )
    nice: int = Field(default=10, ge=0, le=19, description="politeness of training and merging; 19 is the most")


class NetworkSection(_Section):
    """How this node meets others."""

    listen: tuple[OwnAddress, ...] = Field(
        default=("/ip4/0.0.0.0/tcp/0",), description="multiaddresses; port 0: any free one"
    )
    announce: tuple[OwnAddress, ...] = Field(
        default=(), description="addresses to tell others instead, behind a router"
    )
    no_listen: bool = Field(default=False, description="only dial out, and serve over the connections dialled")
    peers: tuple[PeerAddress, ...] = Field(default=(), description="entrances to try first, with their peer ids")


class LoggingSection(_Section):
    """What the daemon writes to its log."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(_Section):
    """Everything that can be set. Read it with `load_config`."""

    certify: bool = Field(default=True, description="check and vote where the swarm grants the role")
    archive: bool = Field(default=False, description="keep every delta for ever, for those who join late")
    snapshots: bool = Field(default=False, description="make snapshots for those who join late; an archive does")
    node: NodeSection = NodeSection()
    data: DataSection = DataSection()
    base: BaseSection = BaseSection()
    train: TrainSection = TrainSection()
    limits: LimitsSection = LimitsSection()
    network: NetworkSection = NetworkSection()
    logging: LoggingSection = LoggingSection()


def load_config(path: Path, overrides: Values = _NOTHING, *, environment: Mapping[str, str] = os.environ) -> Config:
    """The configuration in force: `overrides` over environment over the file at `path` over defaults.

    Relative paths in the file are meant from the file's directory, all others from the current one.

    Raises:
        NodeError: The file is no TOML, a key is unknown or a value out of range (exit code CONFIG).
    """
    layers = {
        str(path): _with_absolute_paths(read_file(path), path.parent),
        "the environment": _with_absolute_paths(_environment_values(environment), Path.cwd()),
        "the command line": _with_absolute_paths(overrides, Path.cwd()),
    }
    merged: dict[str, Any] = {}
    for values in layers.values():
        merged = _merged(merged, values)
    return _validated(merged, layers)


def write_config(path: Path, values: Values) -> None:
    """Replaces the file at `path` by one that sets `values`, after checking them; None means not set.

    Raises:
        NodeError: A key or value is wrong, or the disk is full.
    """
    values = _with_absolute_paths(values, Path.cwd())
    _write(path, values, {"the command line": values})


def set_value(path: Path, key: str, text: str) -> None:
    """Sets one key such as "limits.cpu_threads" in the file at `path`; an empty text unsets it. Comments are lost.

    Raises:
        NodeError: The key is unknown or the value wrong; the file is then as it was.
    """
    require_known(key, origin="the command line")
    present = _with_absolute_paths(read_file(path), path.parent)
    change = _with_absolute_paths(_nested(key, _from_text(key, text) if text else None), Path.cwd())
    _write(path, _merged(present, change), {str(path): present, "the command line": change})


def _write(path: Path, values: Values, layers: Mapping[str, Values]) -> None:
    config = _validated(_without_none(values), layers)
    # The dump turns paths and tuples into what TOML knows; only what was set is written.
    plain = config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    write_atomically(path, tomli_w.dumps(plain).encode())


def read_file(path: Path) -> dict[str, Any]:
    """The values that the file at `path` sets, unchecked; none where there is no file.

    Raises:
        NodeError: The file cannot be read or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NodeError(
            f"{path} is not TOML: {error}", hint="Mend or remove that file.", exit_code=ExitCode.CONFIG
        ) from error
    except OSError as error:
        raise NodeError(
            f"{path} cannot be read: {error.strerror}",
            hint="Check its owner and mode, or name another home with --home DIR.",
            exit_code=ExitCode.PERMISSION,
        ) from error


def valid_keys() -> list[str]:
    """Every key, in the order of the sections."""
    return [key for key, _ in _fields()]


def require_known(key: str, *, origin: str, shown: str = "") -> None:
    """Raises NodeError, with the nearest valid key, unless `key` is one; `shown` is how the person wrote it."""
    if key not in valid_keys():
        raise _unknown(key, origin=origin, shown=shown)


def describe(key: str) -> str:
    """What a key means, in a few words."""
    return dict(_fields())[key].description or ""


def flattened(config: Config) -> dict[str, Any]:
    """Every key with its value in force, as plain values that JSON and TOML know (None: not set)."""
    dumped = config.model_dump(mode="json")
    return {key: _looked_up(dumped, key) for key in valid_keys()}


# ---- layers ------------------------------------------------------------------------------------


def _environment_values(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace(ENVIRONMENT_DELIMITER, ".")
        # A variable that only shares our prefix is somebody else's; one that looks like a key is a mistake.
        if "." in key or key in valid_keys() or _nearest(key, cutoff=0.8):
            require_known(key, origin="the environment", shown=variable)
            if text:
                values = _merged(values, _nested(key, _from_text(key, text)))
    return values


def _from_text(key: str, text: str) -> Any:
    """A value typed by a person: lists are TOML arrays or separated by commas, the rest is for pydantic to read."""
    annotation = dict(_fields())[key].annotation if key in valid_keys() else None
    if get_origin(annotation) is not tuple:
        return text
    if text.lstrip().startswith("["):
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError as error:
            raise NodeError(f"{key}: {text} is not a list: {error}", exit_code=ExitCode.CONFIG) from error
    return [item.strip() for item in text.split(",") if item.strip()]


def _with_absolute_paths(values: Values, directory: Path) -> dict[str, Any]:
    absolute = dict(values)
    for key, field in _fields():
        if Path not in (field.annotation, *get_args(field.annotation)):
            continue
        value = _looked_up(values, key)
        if isinstance(value, str | Path) and str(value):
            absolute = _merged(absolute, _nested(key, str(directory / Path(value).expanduser())))
    return absolute


def _merged(below: Values, above: Values) -> dict[str, Any]:
    """Both, with `above` winning key by key."""
    result = dict(below)
    for key, value in above.items():
        mine = result.get(key)
        result[key] = _merged(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return result


def _without_none(values: Values) -> dict[str, Any]:
    kept = {key: _without_none(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if value is not None and value != {}}


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]  # `split` gives at least one part.


def _looked_up(values: Values, key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _fields() -> Iterator[tuple[str, Any]]:
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Section):
            yield from ((f"{name}.{inner}", info) for inner, info in field.annotation.model_fields.items())
        else:
            yield name, field


# ---- errors ------------------------------------------------------------------------------------


def _validated(values: Values, layers: Mapping[str, Values]) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        # A misspelt key explains more than the value that is missing because of it.
        first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
        raise _explained(first, layers) from error


def _explained(problem: ErrorDetails, layers: Mapping[str, Values]) -> NodeError:
    key = ".".join(str(part) for part in problem["loc"] if isinstance(part, str))
    origin = next(
        (name for name, values in reversed(list(layers.items())) if _looked_up(values, key) is not None),
        "the configuration",
    )
    if problem["type"] == "extra_forbidden":
        return _unknown(key, origin=origin)
    if problem["type"] == "model_type":
        problem["msg"] = "a table of keys is required"
    reason = problem["msg"].removeprefix("Value error, ")  # Put before the words of a check of our own.
    return NodeError(
        f"{key} is {problem['input']!r} in {origin}: {reason[:1].lower()}{reason[1:]}",
        hint=f"Change it there, or with `fullrank config set {key} VALUE`.",
        exit_code=ExitCode.CONFIG,
    )


def _unknown(key: str, *, origin: str, shown: str = "") -> NodeError:
    nearest = _nearest(key, cutoff=0.6)
    return NodeError(
        f"unknown key {shown or key} in {origin}",
        hint=(f"Did you mean {nearest}? " if nearest else "") + "`fullrank config get` lists all keys.",
        exit_code=ExitCode.CONFIG,
    )


def _nearest(key: str, *, cutoff: float) -> str:
    """The valid key most like `key`, also where only its section is missing or wrong; empty if none is."""
    by_whole = difflib.get_close_matches(key, valid_keys(), n=1, cutoff=max(cutoff, 0.75))
    by_name = {valid.rpartition(".")[2]: valid for valid in reversed(valid_keys())}
    name = difflib.get_close_matches(key.rpartition(".")[2], by_name, n=1, cutoff=max(cutoff, 0.75))
    if by_whole or name:
        return by_whole[0] if by_whole else by_name[name[0]]
    return next(iter(difflib.get_close_matches(key, valid_keys(), n=1, cutoff=cutoff)), "")

"""What the long commands are asked for and what they report: plain values, no heavy imports.

The command line builds the requests and prints the reports; `founding`, `pull`, `verify` and the daemon do the work:

    fullrank_node.founding.create(home, overrides, *, base, name, data, options, progress)
    fullrank_node.founding.join(home, link, *, data, base, overrides, confirm, progress) -> JoinSummary
    fullrank_node.pull.pull(home, target, *, out, format, round, base, provisional, progress) -> PullReport
    fullrank_node.verify.verify(home, target, *, base, progress) -> VerifyReport
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Progress(Protocol):
    """Called while a long command works; must return at once."""

    def __call__(self, text: str, *, done: int = 0, total: int = 0) -> None:
        """Tell what is being done now, and how much of it where `total` is known (any unit)."""
        ...


def no_progress(text: str, *, done: int = 0, total: int = 0) -> None:
    """Stay silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOptions:
    """What a founder may choose for the genesis; None leaves the protocol's default.

    Attributes:
        window_s: Length of a slot in seconds.
        stall_slots: Slots without finality after which the chain counts as stalled.
        open_policy: Strangers may contribute without an invite.
        serve_base: Peers may fetch the base model's files from this swarm.
        revision: Commit hash of a base on the hub.
        licence: Licence of the base, as people should see it before they join.
        mode: "b" or "ab".
        bits_b: Bits of one entry of B as sent, 2 to 8.
        max_steps: Most optimiser steps in one contribution.
        total_rounds: Length of the learning-rate schedule; 0 keeps the rate constant.
    """

    window_s: float | None = None
    stall_slots: int | None = None
    open_policy: bool = False
    serve_base: bool = False
    revision: str = ""
    licence: str = ""
    mode: str | None = None
    rank: int | None = None
    max_rank: int | None = None
    bits_b: int | None = None
    learning_rate: float | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    block_length: int | None = None
    period_rounds: int | None = None
    total_rounds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinSummary:
    """What a person is shown once, before anything is set up.

    Attributes:
        base: Hub name, "embedded:NAME" or the local directory that was found.
        base_download_bytes: What has to be fetched for the base; 0 when it is already here.
        update_bytes: Most bytes of one delta, sent once a round.
        disk_bytes: What the node will need, roughly.
        device: What it will train on, in words.
        addresses: What others will see of this machine.
        num_rows: Usable rows in the data; 0 without data.
        bad_rows: Lines of the data that cannot be used, each with its reason.
        certifies: The node will also check and vote.
    """

    swarm_name: str
    swarm: bytes
    base: str
    licence: str
    num_parameters: int
    base_download_bytes: int
    update_bytes: int
    disk_bytes: int
    device: str
    slot_window_ms: int
    node_name: str
    member: bytes
    addresses: tuple[str, ...]
    num_rows: int
    certifies: bool
    bad_rows: tuple[tuple[int, str], ...] = ()


Confirm = Callable[[JoinSummary], bool]
"""Shown to a person before `join` writes anything; False ends the command without a trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullReport:
    """A model that was pulled and checked.

    Attributes:
        final: The checkpoint is irrevocable; False only with `--provisional`.
        standing: "final"; "provisional": in a stall, those certifiers that are there stand behind it; or "not final".
        present: Names of the certifiers that are there, in a stall.
        missing: Names of those that are not.
        votes: Certifiers that voted for it, of `certifiers`.
        energy_lost: Share of the update's squared norm that a truncated PEFT export left out; 0 when exact.
        rank: Rank of a PEFT export; 0 for the other formats.
        notes: Things a person should know, one sentence each.
    """

    swarm_name: str
    swarm: bytes
    checkpoint: bytes
    round: int
    slot: int
    digest: bytes
    final: bool
    votes: int
    certifiers: int
    format: str
    path: Path
    num_bytes: int
    energy_lost: float = 0.0
    rank: int = 0
    notes: tuple[str, ...] = ()
    standing: str = "final"
    present: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """A replay of the signed log from the base.

    Attributes:
        final: The last checkpoint replayed is irrevocable, by the log's votes.
        standing: The same in words: "final", "provisional" or "not final".
        mismatch: The first thing that did not agree, in words; empty when all agreed.
        checkpoints: Checkpoints replayed.
    """

    swarm_name: str
    swarm: bytes
    checkpoints: int
    contributions: int
    round: int
    digest: bytes
    final: bool
    standing: str = "final"
    mismatch: str = ""
    notes: tuple[str, ...] = ()

"""What the commands that train take from their users: base, texts and sizes; and what they say while they work."""

import argparse
import sys
import time
from pathlib import Path

from fullrank_node.model.base import EMBEDDED_PREFIX, resolve_base
from learning.corpus import Sources, embedded_sources
from learning.setting import Trial
from learning.trial import Line
from learning.work import BenchSource


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Base, texts and sizes of a trial."""
    add = parser.add_argument
    add("--steps", type=int, default=20, help="optimiser steps of each node in a round")
    add("--batch", type=int, default=4, help="blocks in one step")
    add("--block-length", type=int, default=128, help="tokens in one block")
    add("--warmup", type=int, default=3, help="steps over which the rate rises")
    add("--valid-blocks", type=int, default=128, help="blocks that a rate is tuned on, at most")
    add("--test-blocks", type=int, default=256, help="blocks that results are measured on, at most")
    add("--base", default=EMBEDDED_PREFIX + "demo", help="a directory or hub name, or the embedded base")
    add("--data", nargs="+", type=Path, default=[], help="text or JSON Lines files, one a domain")
    add("--test", nargs="+", type=Path, default=[], help="files to test on, else the last rows of --data")


def source_of(options: argparse.Namespace, *, texts: Path) -> BenchSource:
    """The base and the texts that the command line names; embedded ones are written into `texts`."""
    lengths = {
        "block_length": options.block_length,
        "valid_blocks": options.valid_blocks,
        "test_blocks": options.test_blocks,
    }
    if options.data:
        names = " ".join(path.stem for path in options.data)
        sources = Sources(name=names, train=tuple(options.data), test=tuple(options.test), **lengths)
    else:
        sources = embedded_sources(texts, **lengths)
    base_dir = resolve_base(options.base)
    return BenchSource(
        base_dir=base_dir,
        base_name=options.base if options.base.startswith(EMBEDDED_PREFIX) else base_dir.name,
        sources=sources,
    )


def tell(trial: Trial, line: Line) -> None:
    """One line for whoever waits."""
    loss = line["result"]["loss"]
    shown = line["result"]["failed"] if loss is None else f"loss {loss:.4f}"
    print(
        f"{time.strftime('%H:%M:%S')} {trial.setting.nodes} nodes {trial.setting.rounds} rounds {trial.setting.split}: "
        f"{trial.arm.name} rate {trial.rate:.4g} {trial.purpose} seed {trial.seed}: {shown}, {line['cost']['cpu_s']} s",
        file=sys.stderr,
        flush=True,
    )

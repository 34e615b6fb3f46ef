"""`fullrank demo`: a whole swarm on this machine, offline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import JsonOption, finished

SAMPLE_LINES = 5
"""Lines of each sample that are shown: enough to see the difference."""


def demo(
    nodes: Annotated[int, typer.Option("--nodes", min=2, max=8, help="Nodes to run.")] = 3,
    rounds: Annotated[
        int | None, typer.Option("--rounds", metavar="N", min=1, help="Rounds to train; default 8.", show_default=False)
    ] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep homes and model there.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a whole swarm on this machine, offline.

    Creates, joins, trains, certifies and pulls, with real nodes on a small embedded model. The model that came out
    stays in ./fullrank-demo-model, or in DIR/model with --keep DIR.
    """
    from fullrank_node.demo.run import InterruptedDemoError, run_demo

    try:
        result = finished(run_demo(nodes, rounds, keep=keep.expanduser().absolute() if keep else None))
    except InterruptedDemoError as interrupted:
        typer.echo("ended: no process of the demo is left", err=True)
        raise typer.Exit(128 + interrupted.number) from None
    if as_json:
        render.print_json(result)
    else:
        render.print_lines(report_lines(result))
    if not result["digests_equal"]:
        raise typer.Exit(1)


def report_lines(result: Mapping[str, Any]) -> list[render.Line]:
    """What came out of a demo, for people."""
    ranks, control = result["rank_per_round"], result["rank_noise_control"]
    contributions = sum(result["accepted_per_round"])
    share = result["training_share_of_time"]
    lines = [
        ("", ""),
        (
            "swarm",
            f"{result['nodes']} nodes, {render.plural(result['final_round'], 'round')} final by "
            f"{render.plural(result['certifiers'], 'certifier')}, {contributions} deltas of "
            f"{render.bytes_text(result['bytes_per_contribution'])} merged",
        ),
        (
            "digest",
            f"{result['digest']}, "
            + ("the same on all nodes and for the reader" if result["digests_equal"] else "NOT THE SAME ON ALL NODES"),
        ),
        ("held-out", f"loss {result['loss_before']:.3f} -> {result['loss_after']:.3f}, on text that no node had"),
        ("alone", _alone_text(result)),
        (
            "rank",
            f"of the accumulated update, round by round: {_numbers(ranks)} of {result['rank_full']:.0f} "
            f"(random updates of the same size: {_numbers(control)})",
        ),
        ("prompt", repr(result["prompt"])),
        *_sample("before", result["sample_before"]),
        *_sample("after", result["sample_after"]),
        (
            "time",
            f"{result['seconds']:.0f} s"
            + (f"; the nodes trained {100 * share:.0f} % of the rounds' time" if share else ""),
        ),
        ("model", f"{result['model_dir']}  (transformers loads it: AutoModelForCausalLM.from_pretrained)"),
    ]
    if result["kept"]:
        lines.append(("homes", f"{result['kept']}; replay one: fullrank verify --home {result['kept']}/node-1"))
    return lines


def _alone_text(result: Mapping[str, Any]) -> str:
    """Whether the swarm was worth it, plainly."""
    single = ", ".join(f"{loss:.3f}" for loss in result["losses_single"])
    nodes = f"each node alone, for as many steps: {single}. "
    if result["swarm_beats_best_single"]:
        gain = result["loss_best_single"] - result["loss_after"]
        return nodes + f"The swarm beats the best of them by {gain:.3f}."
    return nodes + "The swarm does NOT beat the best of them."


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.0f}" for value in values)


def _sample(label: str, text: str) -> list[render.Line]:
    """A few lines of generated text, as they are."""
    lines = text.splitlines()[:SAMPLE_LINES] or [""]
    return [(label if number == 0 else " ", f"| {line}") for number, line in enumerate(lines)]

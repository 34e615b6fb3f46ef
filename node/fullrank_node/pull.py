"""Pull the shared model: anybody can, without membership and without a GPU.

A pull is a node that only follows: it fetches the chain and every delta from any peers, checks all
signatures and votes, recomputes every round from the base bit for bit, and exports what is final.
With no link it exports the model of the node of this home, whether its daemon runs or not.
"""

from dataclasses import replace
from pathlib import Path

from fullrank_node.choosing import Chosen, choose, require_no_conflict
from fullrank_node.clock import SystemClock
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.exporting import write_model
from fullrank_node.following import Way, catch_up, following, genesis_of, read_target, require_pinned
from fullrank_node.home import Home
from fullrank_node.identity_file import load_identity
from fullrank_node.node_keys import BASE_DIGEST_KEY, BASE_DIR_KEY
from fullrank_node.operations import Progress, PullReport
from fullrank_node.restoring import restored_state
from fullrank_node.store import Store


async def pull(
    home: Home,
    target: str,
    *,
    out: Path,
    format: str,  # noqa: A002 - the word people know
    round: int | None,  # noqa: A002 - the protocol's word
    base: Path | None,
    provisional: bool,
    progress: Progress,
) -> PullReport:
    """Write the newest final model (or that of a round) into `out`.

    Args:
        home: Where what was fetched is kept; with no target, the node whose own model is exported.
        target: Link of a swarm, or empty.
        out: Directory for the model; must be missing, empty, or an earlier pull.
        format: "hf" or "peft".
        round: That round; None for the newest.
        base: Directory of the base model, where it is known.
        provisional: Take what is not final yet: in a stall the provisionally final checkpoint, otherwise the head.
        progress: Told what is being done.

    Raises:
        NodeError: No peer answers, nothing is final yet or two things that contradict each other are, or the base is
            not to be had.
    """
    if not target:
        return await _export_own(home, out=out, form=format, number=round, provisional=provisional, progress=progress)
    link = read_target(target)
    way = Way(highest_round=round)
    async with following(home, link, base=base, progress=progress, way=way) as (follower, runner):
        await catch_up(runner, progress=progress)
        tree = runner.state.tree
        require_no_conflict(tree, place=follower.home.path)
        require_pinned(link, tree)
        believed = runner.state.arrival.believed
        slot = follower.genesis.slot_at(SystemClock().now_ms())
        chosen = choose(tree, number=round, provisional=provisional, slot=slot, believed=believed)
        manifest = await follower.masters.ensure(chosen.state.id, runner.state)
        progress("writing the model")
        report = await write_model(
            genesis=follower.genesis,
            store=follower.store,
            tree=tree,
            chosen=chosen.state,
            standing=chosen.standing,
            manifest=manifest,
            base_dir=follower.base.base_dir,
            base_digest=follower.base.digest,
            masters_dir=follower.home.masters_dir,
            out=out,
            form=format,
        )
    report = _told(report, chosen)
    if believed is None:
        return report
    note = (
        f"Rounds up to {tree.state(believed.checkpoint).round} were not recomputed here but taken by a snapshot that "
        "gives the certified digest: `fullrank verify LINK` recomputes them, if their deltas can be had."
    )
    return replace(report, notes=(*report.notes, note))


async def _export_own(
    home: Home, *, out: Path, form: str, number: int | None, provisional: bool, progress: Progress
) -> PullReport:
    """Export the model of a node on this machine, whether its daemon runs or not."""
    genesis = genesis_of(home)
    with Store(home, readonly=True) as store:
        key = load_identity(home.identity_file)
        digest, directory = store.get_meta(BASE_DIGEST_KEY), store.get_meta(BASE_DIR_KEY)
        if digest is None or directory is None:
            raise NodeError("this node has not loaded its base model yet", exit_code=ExitCode.RETRY)
        now_ms = SystemClock().now_ms()
        state = restored_state(genesis, store, key=key.public_key, base_digest=digest, now_ms=now_ms)
        chosen = choose(state.tree, number=number, provisional=provisional, slot=genesis.slot_at(now_ms))
        manifest = store.manifest(chosen.state.id)
        if manifest is None:
            raise NodeError(
                f"this node keeps no weights of round {chosen.state.round} any more",
                hint="Pull that round by its link: `fullrank pull LINK --round N`.",
                exit_code=ExitCode.RETRY,
            )
        progress("writing the model")
        report = await write_model(
            genesis=genesis,
            store=store,
            tree=state.tree,
            chosen=chosen.state,
            standing=chosen.standing,
            manifest=manifest,
            base_dir=Path(directory.decode()),
            base_digest=digest,
            masters_dir=home.masters_dir,
            out=out,
            form=form,
        )
        return _told(report, chosen)


def _told(report: PullReport, chosen: Chosen) -> PullReport:
    """The report with what there is to say about the choice, first."""
    return replace(report, present=chosen.present, missing=chosen.missing, notes=(*chosen.notes, *report.notes))

"""The quality benchmark makes the same lines whether trials run here or side by side in processes."""

import json
from pathlib import Path

from learning.arms_swarm import Swarm
from learning.arms_whole import Parallel
from learning.corpus import Sources
from learning.plan import Lineup
from learning.setting import IID, Setting, Trial
from learning.store import Results
from learning.trial import Line
from learning.work import BenchSource, run_here, run_in_processes

from fullrank_node.model.base import resolve_base


def test_two_processes_make_the_lines_that_one_makes(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    texts = [f"Row {number} says what row {number + 1} will say again, and {number % 7} more." for number in range(60)]
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sources = Sources(name="rows", train=(rows,), test=(), block_length=32, valid_blocks=2, test_blocks=2)
    source = BenchSource(base_dir=resolve_base("embedded:demo"), base_name="demo", sources=sources)
    bench = source.open()
    setting = Setting(
        base=bench.name, corpus=bench.corpus.name, nodes=2, rounds=1, steps=1, batch=2, warmup=1, split=IID
    )
    arms = (Parallel(), Swarm(mode="B", rank=4))
    lineup = Lineup(setting=setting, arms=arms, seeds=(1, 2), rates=(1e-3, 2e-3))
    here, apart = Results(tmp_path / "here.jsonl"), Results(tmp_path / "apart.jsonl")
    told: list[str] = []

    def tell(trial: Trial, _line: Line) -> None:
        told.append(trial.key)

    run_here(bench, [lineup], here, tell)
    run_in_processes(source, [lineup], apart, tell, processes=2)
    assert len(here.lines) == 8
    assert sorted(told) == sorted([*here.lines, *here.lines])
    found, required = ({key: line["result"] for key, line in lines.lines.items()} for lines in (apart, here))
    assert found == required

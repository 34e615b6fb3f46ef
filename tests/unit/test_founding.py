from fullrank_node.founding import _genesis_message
from fullrank_node.operations import CreateOptions

FOUND = {
    "reference": "embedded:demo",
    "revision": "",
    "licence": "MIT",
    "tensors": [{"name": "up.weight", "shape": [8, 4], "sha256": "11" * 32}],
    "modules": [{"name": "up", "out_features": 8, "in_features": 4}],
}


def test_the_warm_up_fits_into_few_steps() -> None:
    assert _genesis_message(FOUND, name="t", options=CreateOptions()).training.warmup_steps == 5
    assert _genesis_message(FOUND, name="t", options=CreateOptions(max_steps=8)).training.warmup_steps == 2
    assert _genesis_message(FOUND, name="t", options=CreateOptions(max_steps=1)).training.warmup_steps == 0


def test_the_rank_is_at_most_what_the_smallest_module_carries() -> None:
    assert _genesis_message(FOUND, name="t", options=CreateOptions(rank=16)).training.rank == 4

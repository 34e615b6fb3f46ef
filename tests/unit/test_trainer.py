"""Training makes exact integer deltas that lower the loss, stops in time, and goes on where it was."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullrank_node.child import ChildProcess
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.training import lora
from fullrank_node.training.contribute import reserve_ms
from fullrank_node.training.loop import LOWEST_RATE, Deadline, Schedule, block_order
from fullrank_node.training.optimizer_state import TrainingState, load_state, save_state, state_for, state_key
from fullrank_node.training.trainer import Trainer
from fullrank_protocol.codec import decode
from fullrank_protocol.delta import LowRank, SeedContext, expand, seeded_rows, to_float


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A trainer over the tiny base with data prepared, and the request that most tests start from."""

    trainer: Trainer
    swarm: Any
    request: dict[str, Any]
    directory: Path

    def train(self, **changes: Any) -> dict[str, Any]:
        return self.trainer.train(self.request | changes)

    def loss(self, **changes: Any) -> float:
        return float(self.trainer.evaluate(self.request | changes)["loss"])

    def delta(self, **changes: Any) -> Any:
        done = self.train(**changes)
        return decode(Path(done["blob_path"]).read_bytes(), self.swarm.genesis, done["codec"])


@pytest.fixture
def bench(tiny_base: Path, tmp_path: Path, make_swarm: Callable[..., Any], sentences: list[str]) -> Bench:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences))
    swarm, trainer = make_swarm(), Trainer()
    where = {"base_dir": str(tiny_base), "masters_dir": str(tmp_path / "masters"), "device": "cpu", "threads": 1}
    made = trainer.prepare_base({**where, "genesis_path": str(swarm.path)})
    cache = {"block_length": 32, "valid_fraction": 0.2, "cache_path": str(tmp_path / "blocks")}
    trainer.prepare_data({**where, **cache, "path": str(rows)})
    request = {
        **where,
        "genesis_path": str(swarm.path),
        "manifest": made["manifest"],
        "round": 0,
        "member": "ab" * 32,
        "seed": 7,
        "data_cache": str(tmp_path / "blocks"),
        "state_dir": str(tmp_path / "state"),
        "out_path": str(tmp_path / "delta.bin"),
    }
    return Bench(trainer=trainer, swarm=swarm, request=request, directory=tmp_path)


def test_preparing_a_base_tells_all_that_a_genesis_needs(tiny_base: Path, tmp_path: Path) -> None:
    made = Trainer().prepare_base({"reference": str(tiny_base), "masters_dir": str(tmp_path), "device": "cpu"})
    assert (made["reference"], made["revision"], made["base_dir"]) == ("", "", str(tiny_base))
    assert set(made["manifest"]) == {module["name"] for module in made["modules"]}
    assert {module["name"] for module in made["modules"]} < {tensor["name"] for tensor in made["tensors"]}
    assert all(len(tensor["sha256"]) == 64 for tensor in made["tensors"])
    assert len(made["digest"]) == 64
    assert json.loads(json.dumps(made)) == made


def test_preparing_data_counts_and_lists_bad_rows(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "the cat sat on a mat"}\n{"text": 3}\n')
    request = {"path": str(tmp_path / "rows.jsonl"), "base_dir": str(tiny_base), "block_length": 16}
    found = Trainer().prepare_data({**request, "valid_fraction": 0.0, "cache_path": str(tmp_path / "blocks")})
    assert (found["num_rows"], found["num_blocks"], found["num_skipped"]) == (1, 1, 1)
    assert found["skipped"] == [{"line": 2, "reason": "text: found a number, required a string"}]
    checked = Trainer().check_data({"path": request["path"]})
    assert checked["formats"] == {"text": 1}


@pytest.mark.parametrize("mode", ["B", "AB"])
def test_a_round_lowers_the_held_out_loss_through_the_exact_integers(bench: Bench, mode: str) -> None:
    before = bench.loss()
    alone = bench.trainer.train_alone(
        bench.request
        | {
            "mode": mode,
            "rounds": 3,
            "work_dir": str(bench.directory / "alone"),
            "eval_cache": bench.request["data_cache"],
        }
    )
    losses = [entry["held_out_loss"] for entry in alone["rounds"]]
    assert losses[-1] < losses[0] < before
    after = bench.loss(masters_dir=alone["masters_dir"], manifest=alone["manifest"])
    assert after == losses[-1]
    assert bench.loss() == before


def test_training_alone_takes_as_many_steps_in_each_round_as_it_is_told(bench: Bench) -> None:
    alone = bench.trainer.train_alone(
        bench.request | {"rounds": 3, "steps_per_round": [2, 0, 1], "work_dir": str(bench.directory / "alone")}
    )
    assert [entry["num_steps"] for entry in alone["rounds"]] == [2, 1]


def test_the_delta_in_mode_b_names_rows_of_the_seeded_a(bench: Bench) -> None:
    delta = bench.delta()
    context = SeedContext(swarm=bench.swarm.genesis.swarm, member=b"\xab" * 32, period=0)
    expanded = expand(delta, context, bench.swarm.genesis.modules).parts
    for part, whole in zip(delta.parts, expanded, strict=True):
        assert isinstance(part, LowRank)
        assert isinstance(whole, LowRank)
        rank = 8 if "embed" in part.module else 4  # Twice as many.
        assert part.A_RI is None
        assert part.row_R == tuple(range(rank))
        columns = bench.swarm.genesis.module(part.module).in_features
        assert np.array_equal(whole.A_RI, seeded_rows(context, part.module, rows=rank, columns=columns))


def test_the_integers_stand_for_what_was_trained(bench: Bench, tiny_base: Path) -> None:
    from fullrank_node.model.base_load import load_base

    genesis = bench.swarm.genesis
    context = SeedContext(swarm=genesis.swarm, member=b"\xab" * 32, period=0)
    rng = np.random.default_rng(0)
    for mode in ("B", "AB"):
        adapter = lora.attach(load_base(tiny_base), genesis, rank=4, mode=mode, context=context)
        first = {
            name: replace(factor, B_OR=rng.normal(size=factor.B_OR.shape).astype(np.float32) * 1e-3)
            for name, factor in adapter.factors().items()
        }
        delta = lora.quantize(first, genesis, bits_b=8, bits_a=8, rng=rng, stochastic=False)
        for part in expand(delta, context, genesis.modules).parts:
            wanted = first[part.module].B_OR @ adapter.modules[part.module].A_RI()
            assert np.abs(to_float(part) - wanted).max() < 0.02 * np.abs(wanted).max()


def test_what_rounding_takes_is_what_comes_back(bench: Bench, tiny_base: Path) -> None:
    from fullrank_node.model.base_load import load_base

    genesis = bench.swarm.genesis
    context = SeedContext(swarm=genesis.swarm, member=b"\xab" * 32, period=0)
    rng = np.random.default_rng(0)
    adapter = lora.attach(load_base(tiny_base), genesis, rank=4, mode="B", context=context)
    factors = {
        name: replace(factor, B_OR=rng.normal(size=factor.B_OR.shape).astype(np.float32))
        for name, factor in adapter.factors().items()
    }
    delta = lora.quantize(factors, genesis, bits_b=3, bits_a=3, rng=rng, stochastic=False)
    residuals = lora.rounding_residuals(factors, delta, genesis)
    part = expand(delta, context, genesis.modules).parts[0]
    A_RI = adapter.modules[part.module].A_RI()
    missing = residuals[part.module] @ A_RI
    wanted = factors[part.module].B_OR @ A_RI
    assert np.allclose(to_float(part) + missing, wanted, atol=1e-5)
    assert np.abs(missing).max() > 0.01


def test_the_base_comes_out_of_training_as_it_went_in(bench: Bench) -> None:
    before = bench.loss()
    bench.train(learning_rate=0.1)
    assert bench.loss() == before


def test_training_twice_from_the_same_state_gives_the_same_delta(bench: Bench) -> None:
    first = Path(bench.train(state_dir=str(bench.directory / "one"))["blob_path"]).read_bytes()
    second = Path(bench.train(state_dir=str(bench.directory / "two"))["blob_path"]).read_bytes()
    assert first == second


def test_the_next_delta_goes_on_in_the_data_and_in_the_optimiser(bench: Bench) -> None:
    bench.train()
    state = load_state(Path(bench.request["state_dir"]))
    assert (state.position, state.num_steps) == (12, 6)
    assert len(state.moments) == 15
    bench.train(round=1)  # The same period of two rounds: A is kept.
    state = load_state(Path(bench.request["state_dir"]))
    assert (state.position, state.num_steps) == (24, 12)
    bench.train(round=2)  # A new A: the size of the gradients holds for it, too.
    state = load_state(Path(bench.request["state_dir"]))
    assert (state.position, state.num_steps) == (36, 18)


def test_a_node_whose_deltas_are_averaged_with_others_trains_by_the_variance_of_their_mean(bench: Bench) -> None:
    alone = bench.delta(state_dir=str(bench.directory / "alone"))
    assert load_state(bench.directory / "alone").means == {}
    averaged = bench.delta(num_averaged=4)
    assert averaged != alone
    state = load_state(Path(bench.request["state_dir"]))
    assert (len(state.means), state.num_mean_steps, state.num_steps) == (15, 6, 6)
    save_state(bench.directory / "forgetful", replace(state, means={}, num_mean_steps=0))
    second = bench.delta(round=1, num_averaged=4)
    assert second != bench.delta(round=1, num_averaged=4, state_dir=str(bench.directory / "forgetful"))
    assert load_state(Path(bench.request["state_dir"])).num_mean_steps == 12
    bench.train(round=2, num_averaged=4)  # A new A has gradients with another mean.
    state = load_state(Path(bench.request["state_dir"]))
    assert (state.num_mean_steps, state.num_steps) == (6, 18)
    bench.train(round=3, num_averaged=1)
    assert load_state(Path(bench.request["state_dir"])).means == {}


def whole_b(delta: Any, genesis: Any) -> dict[str, np.ndarray]:
    return {
        part.module: lora.meant_by(part, genesis.module(part.module), rank=max(part.row_R) + 1) for part in delta.parts
    }


def test_with_a_delta_on_the_way_a_node_trains_as_if_it_were_merged(bench: Bench) -> None:
    """Expected whole, as of a node alone, it is the same as weights that have it, up to rounding in training."""
    genesis = bench.swarm.genesis
    where = {"error_feedback": False, "carry_moments": False, "bits_b": 8}
    alone = bench.trainer.train_alone(
        bench.request | where | {"rounds": 1, "work_dir": str(bench.directory / "alone"), "learning_rate": 3e-3}
    )
    sent = bench.train(**where, learning_rate=3e-3, out_path=str(bench.directory / "sent.bin"))
    pending = [{"path": sent["blob_path"], "codec": sent["codec"], "round": 0}]
    fresh = {**where, "round": 1, "learning_rate": 3e-3}

    def next_delta(name: str, **changes: Any) -> dict[str, np.ndarray]:
        return whole_b(bench.delta(**fresh, state_dir=str(bench.directory / name), **changes), genesis)

    merged = next_delta("merged", masters_dir=alone["masters_dir"], manifest=alone["manifest"])
    expected = next_delta("expected", pending=pending)
    again = next_delta("again")

    def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
        return math.sqrt(sum(float(((one[name] - other[name]) ** 2).sum()) for name in one))

    assert distance(expected, merged) < 0.05 * distance(again, merged)


def test_a_delta_of_another_a_or_that_is_gone_is_not_expected(bench: Bench) -> None:
    sent = bench.train(out_path=str(bench.directory / "sent.bin"))
    pending = {"path": sent["blob_path"], "codec": sent["codec"], "round": 0}

    def next_delta(name: str, **changes: Any) -> Any:
        return bench.delta(state_dir=str(bench.directory / name), **changes)

    assert next_delta("same", round=1, pending=[pending]) != next_delta("none", round=1)
    assert next_delta("old", round=2, pending=[pending]) == next_delta("new", round=2)
    gone = {**pending, "path": str(bench.directory / "nowhere.bin")}
    assert next_delta("gone", round=1, pending=[gone]) == next_delta("nothing", round=1)
    narrow = next_delta("narrow", round=1, rank=2)
    assert next_delta("other rank", round=1, rank=2, pending=[pending]) == narrow
    assert next_delta("wider", round=1, rank=8, pending=[pending]) != next_delta("wide", round=1, rank=8)
    (bench.directory / "sent.bin").write_bytes(b"spoilt")
    assert next_delta("spoilt", round=1, pending=[pending]) == next_delta("whole", round=1)


def test_of_another_a_only_the_mean_size_of_the_gradients_is_kept() -> None:
    """B of a linear layer has its components along the second axis, that of embeddings along the first."""
    moments = {
        "B.up": (np.ones((2, 3), np.float32), np.array([[1, 2, 3], [0, 0, 6]], np.float32)),
        "B.embed": (np.ones((2, 2), np.float32), np.array([[1, 2], [3, 6]], np.float32)),
    }
    axes = {"B.up": 1, "B.embed": 0}
    keys = [
        state_key(swarm=bytes(32), member=bytes(32), mode="B", rank=rank, period=period)
        for rank, period in ((3, 4), (3, 5), (2, 4))
    ]
    state = TrainingState(
        key=keys[0], position=5, num_steps=7, moments=moments, residuals={"up": np.ones((2, 3), np.float32)}
    )
    assert state_for(state, keys[0], component_axes=axes) is state
    renewed = state_for(state, keys[1], component_axes=axes)
    assert (renewed.position, renewed.num_steps, renewed.residuals) == (5, 7, {})
    assert not any(first.any() for first, _ in renewed.moments.values())
    assert renewed.moments["B.up"][1].tolist() == [[2, 2, 2], [2, 2, 2]]
    assert renewed.moments["B.embed"][1].tolist() == [[2, 4], [2, 4]]
    other = state_for(state, keys[2], component_axes=axes)
    assert (other.position, other.num_steps, other.moments, other.residuals) == (5, 0, {}, {})


def test_a_damaged_state_is_a_fresh_start(bench: Bench) -> None:
    bench.train()
    (Path(bench.request["state_dir"]) / "training.safetensors").write_bytes(b"torn")
    bench.train()
    assert load_state(Path(bench.request["state_dir"])).position == 12


def test_rounding_residuals_are_kept_only_with_error_feedback(bench: Bench) -> None:
    bench.train(error_feedback=True, stochastic=False)
    assert len(load_state(Path(bench.request["state_dir"])).residuals) == 15
    bench.train(round=1, error_feedback=False)
    assert load_state(Path(bench.request["state_dir"])).residuals == {}


def test_the_order_of_blocks_is_new_in_every_pass_and_fixed_by_the_seed() -> None:
    order = block_order(seed=3, num_blocks=10, start=0)
    blocks = [next(order) for _ in range(30)]
    assert [sorted(blocks[start : start + 10]) for start in (0, 10, 20)] == [list(range(10))] * 3
    assert blocks[:10] != blocks[10:20]
    later = block_order(seed=3, num_blocks=10, start=17)
    assert [next(later) for _ in range(13)] == blocks[17:]


def test_the_rate_warms_up_in_every_contribution_and_falls_over_the_whole_run() -> None:
    schedule = Schedule(peak=1.0, warmup_steps=4, max_steps=10, round=0, total_rounds=0)
    assert [schedule.rate(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    middle = replace(schedule, round=5, total_rounds=10)
    assert middle.rate(4) < 0.55
    assert replace(schedule, round=99, total_rounds=10).rate(9) == pytest.approx(LOWEST_RATE)


def test_training_stops_before_the_deadline_with_time_to_encode() -> None:
    deadline = Deadline(at_ms=10_000, reserve_ms=500, now_ms=lambda: 9_000)
    assert deadline.allows(500)
    assert not deadline.allows(501)
    assert Deadline(at_ms=None, reserve_ms=500).allows(1e12)


@pytest.mark.parametrize(
    ("encoding_ms", "left_ms", "kept_ms"),
    [
        (0.0, 10_000.0, 500.0),  # Before anything was measured.
        (2_000.0, 10_000.0, 3_000.0),
        (3_600_000.0, 10_000.0, 5_000.0),  # The machine slept for an hour in the middle of it.
        (3_600_000.0, 600.0, 500.0),
    ],
)
def test_time_is_kept_for_encoding_and_never_all_of_it(encoding_ms: float, left_ms: float, kept_ms: float) -> None:
    assert reserve_ms(encoding_ms=encoding_ms, left_ms=left_ms) == kept_ms


def test_a_deadline_in_the_past_is_no_contribution_but_a_later_try(bench: Bench) -> None:
    with pytest.raises(NodeError, match="no time left for a single training step") as caught:
        bench.train(deadline_ms=1)
    assert caught.value.exit_code == ExitCode.RETRY
    assert not Path(bench.request["out_path"]).exists()


def test_progress_reports_step_loss_and_speed(bench: Bench) -> None:
    reports: list[dict[str, Any]] = []
    done = bench.trainer.train(bench.request, lambda **fields: reports.append(fields))
    assert reports[-1]["step"] == reports[-1]["of"] == done["num_steps"] == 6
    assert math.isfinite(reports[-1]["loss"])
    assert reports[-1]["tokens_per_s"] > 0
    assert done["stopped_by"] == "steps"
    assert done["num_bytes"] == Path(done["blob_path"]).stat().st_size
    assert done["num_tokens"] > 6 * 2 * 16


def test_a_loss_that_is_no_number_makes_no_contribution(bench: Bench) -> None:
    with pytest.raises(NodeError, match=r"the training loss became nan at step \d; nothing is contributed") as caught:
        bench.train(learning_rate=1e30)
    assert "learning rate" in caught.value.hint
    assert not Path(bench.request["out_path"]).exists()
    assert load_state(Path(bench.request["state_dir"])).position == 0


def test_a_rate_of_zero_is_no_contribution(bench: Bench) -> None:
    with pytest.raises(NodeError, match="the delta rounds to zero"):
        bench.train(learning_rate=0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rank": 9}, "found rank 9, required 1 to 8"), ({"mode": "C"}, "required B or AB"), ({"device": "tpu"}, "tpu")],
)
def test_impossible_settings_are_configuration_errors(bench: Bench, change: dict[str, Any], message: str) -> None:
    with pytest.raises(NodeError, match=message) as caught:
        bench.train(**change)
    assert caught.value.exit_code == ExitCode.CONFIG


def test_ranks_above_a_modules_size_are_cut_to_it(
    tiny_base: Path, make_swarm: Callable[..., Any], bench: Bench
) -> None:
    from fullrank_node.model.base_load import load_base

    genesis = replace(bench.swarm.genesis, max_rank=64)
    context = SeedContext(swarm=genesis.swarm, member=bytes(32), period=0)
    adapter = lora.attach(load_base(tiny_base), genesis, rank=40, mode="B", context=context)
    assert {factor.B_OR.shape[1] for factor in adapter.factors().values()} == {32}


def test_a_head_that_shares_the_matrix_of_the_embeddings_changes_with_them(tiny_base: Path, bench: Bench) -> None:
    """What the wrapped model says is what the bare one says once B A is added to the shared matrix."""
    import torch

    from fullrank_node.model.base_load import load_base

    genesis = bench.swarm.genesis
    context = SeedContext(swarm=genesis.swarm, member=bytes(32), period=0)
    model = load_base(tiny_base)
    tokens_NT = torch.arange(3, 35).reshape(2, 16)
    before = model(input_ids=tokens_NT).logits.detach()
    adapter = lora.attach(model, genesis, rank=4, mode="B", context=context)
    name = "model.embed_tokens.weight"
    with torch.no_grad():
        adapter.modules[name].B.normal_(generator=torch.Generator().manual_seed(0))
        wrapped = adapter.model(input_ids=tokens_NT).logits
        change = torch.from_numpy(adapter.modules[name].B_OR() @ adapter.modules[name].A_RI())
        bare = adapter.detach()
        assert torch.equal(bare(input_ids=tokens_NT).logits, before)
        bare.get_parameter(name).add_(change)
        merged = bare(input_ids=tokens_NT).logits
    assert (before - merged).abs().max() > 0.1
    assert torch.allclose(wrapped, merged, atol=1e-4)


def test_a_step_of_adamw_moves_the_weights_alike_at_every_rank(tiny_base: Path, bench: Bench) -> None:
    """It moves every entry of B by the rate, whatever its gradient's size."""
    from fullrank_node.model.base_load import load_base

    genesis = bench.swarm.genesis
    context = SeedContext(swarm=genesis.swarm, member=bytes(32), period=0)
    name, rng = "model.layers.0.mlp.up_proj.weight", np.random.default_rng(0)
    sizes = []
    for rank in (1, 2, 4, 8):
        adapter = lora.attach(load_base(tiny_base), genesis, rank=rank, mode="B", context=context)
        step_OR = rng.choice([-1.0, 1.0], size=(48, rank)) * adapter.rate_factors()[f"B.{name}"]
        sizes.append(float(np.linalg.norm(step_OR @ adapter.modules[name].A_RI())))
    assert max(sizes) < 1.2 * min(sizes)


def test_memory_that_runs_out_halves_the_batch_and_changes_nothing_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from fullrank_node.model.evaluate import token_losses

    whole = bench.train(state_dir=str(bench.directory / "whole"))

    def small(model: Any, *, tokens_NT: Any, **rest: Any) -> Any:
        if len(tokens_NT) > 1:
            raise torch.OutOfMemoryError("too large")
        return token_losses(model, tokens_NT=tokens_NT, **rest)

    monkeypatch.setattr("fullrank_node.training.loop.token_losses", small)
    halved = bench.train()
    assert (whole["micro_batch"], halved["micro_batch"]) == (2, 1)
    assert halved["loss_last"] == pytest.approx(whole["loss_last"], rel=1e-4)


def test_a_sample_continues_the_prompt(bench: Bench) -> None:
    continued = bench.trainer.sample(bench.request | {"prompt": "the cat", "max_new_tokens": 5})
    assert 1 <= continued["num_tokens"] <= 5
    with pytest.raises(NodeError, match="the prompt is empty"):
        bench.trainer.sample(bench.request | {"prompt": ""})


def test_evaluating_a_file_counts_all_of_its_rows(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").write_text('{"text": "the cat sat on a mat"}\n' * 2)
    request = bench.request | {"data_cache": None, "path": str(tmp_path / "held.jsonl"), "block_length": 16}
    found = bench.trainer.evaluate(request)
    assert found["num_tokens"] > 0
    (tmp_path / "held.jsonl").write_text("")
    with pytest.raises(NodeError, match="it is empty"):
        bench.trainer.evaluate(request)


def test_the_machine_is_described_without_a_model() -> None:
    described = Trainer().hardware({"device": "cpu"})
    assert (described["device"], described["dtype"]) == ("cpu", "float32")
    assert described["num_cores"] >= 1
    assert described["memory_bytes"] > 0


async def test_a_supervised_trainer_reports_progress_and_passes_errors_on(bench: Bench) -> None:
    reports: list[dict[str, Any]] = []
    async with ChildProcess("fullrank_node.training.trainer", environment={"OMP_NUM_THREADS": "1"}) as child:
        done = await child.call("train", bench.request, on_progress=reports.append)
        with pytest.raises(NodeError, match="found rank 9") as caught:
            await child.call("train", bench.request | {"rank": 9})
    assert done["num_steps"] == reports[-1]["step"] == 6
    assert caught.value.exit_code == ExitCode.CONFIG
    same = Path(
        bench.train(state_dir=str(bench.directory / "other"), out_path=str(bench.directory / "other.bin"))["blob_path"]
    )
    assert same.read_bytes() == Path(done["blob_path"]).read_bytes()

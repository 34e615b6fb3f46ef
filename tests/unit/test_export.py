"""Exported models: what transformers and PEFT load is exactly what the swarm's masters hold."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from swarms import genesis_message, key_of
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fullrank_node.errors import NodeError
from fullrank_node.model.base import resolve_base
from fullrank_node.model.export.hf import export_hf, exported_tensors
from fullrank_node.model.export.peft import export_peft
from fullrank_node.model.export.provenance import Provenance, card_table, provenance_record, read_provenance
from fullrank_node.model.export.tensor_files import TensorView, read_directory, read_tensors, write_tensors
from fullrank_node.model.master import MasterStore
from fullrank_protocol.delta import Delta, LowRank
from fullrank_protocol.genesis import Genesis, create_genesis
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.state import canonical_float32, model_digest, plan_update, tensor_sha256
from fullrank_protocol.wire import objects_pb2 as wire

# PEFT 0.21 still asks transformers 5.23 by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

DEMO_BASE = resolve_base("embedded:demo")
UP = "model.layers.0.mlp.up_proj.weight"  # (24, 16)
QUERY = "model.layers.1.self_attn.q_proj.weight"  # (16, 16)


@dataclass
class Shared:
    """A swarm's model: its base, genesis and masters, moved on by deltas."""

    base_dir: Path
    genesis: Genesis
    masters: MasterStore
    manifest: dict[str, str]

    def merge(self, delta: Delta, weight: float) -> tuple[Delta, float]:
        plans = plan_update([delta], [Scaled.of(weight)], self.genesis.modules)
        self.manifest = self.masters.apply(self.manifest, plans)
        return delta, weight

    def provenance(self) -> Provenance:
        return Provenance(
            checkpoint=bytes(range(32)),
            slot=9,
            round=7,
            model_digest=model_digest({name: bytes.fromhex(sha256) for name, sha256 in self.manifest.items()}),
            final=True,
            num_contributions=21,
            num_tokens=123_456,
            members=("quiet otter", "a|b\n<script>"),
        )

    def value(self, name: str) -> np.ndarray:
        module = self.genesis.module(name)
        return np.array(self.masters.open(self.manifest[name], (module.out_features, module.in_features)))

    def export_hf(self, out_dir: Path, **options: object):
        return export_hf(
            self.base_dir, self.manifest, self.masters, self.genesis, out_dir, self.provenance(), **options
        )

    def export_peft(self, out_dir: Path, **options: object):
        return export_peft(
            self.base_dir, self.manifest, self.masters, self.genesis, out_dir, self.provenance(), **options
        )


def tiny_llama(**config: object) -> LlamaForCausalLM:
    torch.manual_seed(5)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=2048, num_hidden_layers=2, **config)).eval()


@pytest.fixture
def shared_model(tmp_path: Path) -> Callable[..., Shared]:
    """Makes a swarm whose base is a directory; `adapted` names the tensors that it changes."""

    def make(base_dir: Path, adapted: tuple[str, ...] = (UP, QUERY), *, masters: str = "masters") -> Shared:
        model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
        parameters = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
        message = genesis_message()
        message.name = "fine | swarm"
        message.base.reference = ""
        message.base.ClearField("tensors")
        message.base.tensors.extend(
            wire.TensorHash(name=name, shape=values.shape, sha256=tensor_sha256(values))
            for name, values in sorted(parameters.items())
        )
        message.ClearField("modules")
        message.modules.extend(
            wire.Module(
                name=name,
                kind=wire.LINEAR if parameters[name].ndim == 2 else wire.DENSE,
                out_features=parameters[name].shape[0],
                in_features=parameters[name].shape[1] if parameters[name].ndim == 2 else 1,
            )
            for name in sorted(adapted)
        )
        store = MasterStore(tmp_path / masters)
        manifest = {name: store.write(name, canonical_float32(parameters[name])) for name in adapted}
        return Shared(base_dir, create_genesis(key_of("ada"), message), store, manifest)

    return make


@pytest.fixture
def base_dir(tmp_path: Path) -> Path:
    """A base with random weights and the demo's tokenizer."""
    directory = tmp_path / "base"
    tiny_llama().save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_BASE / name, directory)
    (directory / "LICENSE").write_text("Do as you like.")
    return directory


@pytest.fixture
def swarm(base_dir: Path, shared_model: Callable[..., Shared]) -> Shared:
    return shared_model(base_dir)


def delta_of(module: str, shape: tuple[int, int], rank: int, *, seed: int, exponent: int = -18) -> Delta:
    """Random canonical components, of a norm of about a tenth of the tiny base's weights."""
    rng = np.random.default_rng(seed)
    B = rng.integers(-127, 128, (shape[0], rank)).astype(np.int8)
    A = rng.integers(-127, 128, (rank, shape[1])).astype(np.int8)
    B[0], A[:, 0] = 127, 127
    part = LowRank(
        module=module,
        B_OR=B,
        A_RI=A,
        scale_mantissa_R=(3,) * rank,
        scale_exponent_R=tuple(range(exponent, exponent + rank)),
    )
    return Delta.of([part])


def both_changed(swarm: Shared, *, rounds: int = 1, rank: int = 2) -> list[tuple[Delta, float]]:
    merged = []
    for seed in range(rounds):
        merged.append(swarm.merge(delta_of(UP, (24, 16), rank, seed=seed), 0.75))
        merged.append(swarm.merge(delta_of(QUERY, (16, 16), rank, seed=100 + seed), 0.5))
    return merged


def test_transformers_loads_the_masters_bit_for_bit_and_the_rest_of_the_base(swarm: Shared, tmp_path: Path) -> None:
    both_changed(swarm)

    swarm.export_hf(tmp_path / "out")

    before = dict(AutoModelForCausalLM.from_pretrained(swarm.base_dir, dtype=torch.float32).named_parameters())
    after = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    for name, parameter in after.items():
        assert parameter.dtype == torch.float32
        expected = swarm.value(name) if name in swarm.manifest else before[name].detach().numpy()
        assert np.array_equal(parameter.detach().numpy(), expected), name
    assert not np.array_equal(swarm.value(UP), before[UP].detach().numpy())


def test_tokenizer_and_licence_are_copied_untouched(swarm: Shared, tmp_path: Path) -> None:
    swarm.export_hf(tmp_path / "out")

    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE"):
        assert (tmp_path / "out" / name).read_bytes() == (swarm.base_dir / name).read_bytes()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 2048


def test_the_digest_can_be_recomputed_from_the_directory(swarm: Shared, tmp_path: Path) -> None:
    both_changed(swarm)
    swarm.export_hf(tmp_path / "out")

    hashes = {name: tensor_sha256(tensor) for name, tensor in exported_tensors(tmp_path / "out")}

    record = read_provenance(tmp_path / "out")
    assert model_digest(hashes).hex() == record["model_digest"] == swarm.provenance().model_digest.hex()
    assert {name: sha256.hex() for name, sha256 in hashes.items()} == record["tensors"]
    assert record["swarm"] == swarm.genesis.swarm.hex()
    assert record["round"] == 7


def test_the_model_card_says_whose_work_it_is_and_cannot_be_broken_by_a_name(swarm: Shared, tmp_path: Path) -> None:
    swarm.export_hf(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()

    assert swarm.genesis.swarm.hex() in card
    assert swarm.provenance().model_digest.hex() in card
    assert "| round | 7, final |" in card
    assert "21 merged, 123,456 tokens" in card
    assert "| members | quiet otter, a/b &lt;script> |" in card
    assert "# fine / swarm" in card
    assert 'license: "MIT"' in card


def test_a_model_that_is_not_final_says_so_in_its_card_and_its_record(swarm: Shared) -> None:
    for standing, words in (("provisional", "7, provisional, not final: only"), ("not final", "7, not final: it may")):
        provenance = replace(swarm.provenance(), final=False, standing=standing)
        assert f"| round | {words}" in card_table(swarm.genesis, provenance)
        record = provenance_record(swarm.genesis, provenance, swarm.manifest)
        assert (record["final"], record["standing"]) == (False, standing)


def test_a_half_precision_base_is_widened_exactly_and_can_be_kept_as_it_is(
    base_dir: Path, shared_model: Callable[..., Shared], tmp_path: Path
) -> None:
    half = tmp_path / "half"
    tiny_llama().to(torch.bfloat16).save_pretrained(half)
    swarm = shared_model(half)
    stored = load_file(half / "model.safetensors")

    swarm.export_hf(tmp_path / "single")
    swarm.export_hf(tmp_path / "as-base", dtype="base")

    single = AutoModelForCausalLM.from_pretrained(tmp_path / "single")
    assert single.dtype == torch.float32
    assert all(torch.equal(value, stored[name].float()) for name, value in single.named_parameters())
    kept = load_file(tmp_path / "as-base" / "model.safetensors")
    assert all(value.dtype == torch.bfloat16 and torch.equal(value, stored[name]) for name, value in kept.items())
    config = (tmp_path / "as-base" / "config.json").read_text()
    assert json.loads(config) == json.loads((half / "config.json").read_text())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_to_half_precision_agrees_with_torch(swarm: Shared, tmp_path: Path, dtype: str) -> None:
    both_changed(swarm)

    written = swarm.export_hf(tmp_path / "out", dtype=dtype)

    loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    assert loaded[UP].dtype == getattr(torch, dtype)
    assert torch.equal(loaded[UP], torch.from_numpy(swarm.value(UP)).to(getattr(torch, dtype)))
    assert written.num_bytes < 2.2 * sum(parameter.numel() for parameter in loaded.values())


def test_a_large_model_is_sharded_with_an_index(swarm: Shared, tmp_path: Path) -> None:
    both_changed(swarm)

    written = swarm.export_hf(tmp_path / "out", max_shard_bytes=100_000)

    assert len(written.weight_files) > 1
    assert written.weight_files[0] == f"model-00001-of-{len(written.weight_files):05d}.safetensors"
    loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    assert np.array_equal(loaded[UP].detach().numpy(), swarm.value(UP))
    assert dict(exported_tensors(tmp_path / "out")).keys() == {UP, QUERY}


def test_a_sharded_base_is_read(base_dir: Path, shared_model: Callable[..., Shared], tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    tiny_llama().save_pretrained(sharded, max_shard_size="60KB")
    assert not (sharded / "model.safetensors").exists()
    swarm = shared_model(sharded)
    both_changed(swarm)

    swarm.export_hf(tmp_path / "out")

    loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    assert np.array_equal(loaded[QUERY].detach().numpy(), swarm.value(QUERY))


def test_files_with_names_of_their_own_are_translated(shared_model: Callable[..., Shared], tmp_path: Path) -> None:
    older = tmp_path / "older"
    tiny_llama(tie_word_embeddings=True).save_pretrained(older)
    tensors = load_file(older / "model.safetensors")
    save_file({name.removeprefix("model."): value for name, value in tensors.items()}, older / "model.safetensors")
    swarm = shared_model(older)
    merged = both_changed(swarm)

    swarm.export_hf(tmp_path / "out")
    report = swarm.export_peft(tmp_path / "adapter", deltas=merged)

    loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    assert np.array_equal(loaded[UP].detach().numpy(), swarm.value(UP))
    assert report.exact


def test_the_second_copy_of_a_tied_tensor_follows_the_first(
    shared_model: Callable[..., Shared], tmp_path: Path
) -> None:
    tied = tmp_path / "tied"
    embedding = "model.embed_tokens.weight"
    tiny_llama(tie_word_embeddings=True).save_pretrained(tied)
    tensors = load_file(tied / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors[embedding].clone()}, tied / "model.safetensors")
    swarm = shared_model(tied, (embedding,))
    swarm.merge(delta_of(embedding, (2048, 16), 1, seed=1), 1.0)

    swarm.export_hf(tmp_path / "out")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert np.array_equal(loaded.model.embed_tokens.weight.detach().numpy(), swarm.value(embedding))
    assert np.array_equal(loaded.lm_head.weight.detach().numpy(), swarm.value(embedding))


def test_an_export_replaces_an_earlier_one_and_nothing_else(swarm: Shared, tmp_path: Path) -> None:
    swarm.export_hf(tmp_path / "out")
    both_changed(swarm)
    swarm.export_hf(tmp_path / "out")
    assert dict(exported_tensors(tmp_path / "out"))[UP].tobytes() == swarm.value(UP).tobytes()

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for taken in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt", swarm.base_dir):
        with pytest.raises(NodeError, match="exists and is not a model that fullrank exported"):
            swarm.export_hf(taken)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_failed_export_leaves_nothing_behind(swarm: Shared, tmp_path: Path) -> None:
    swarm.masters.path(swarm.manifest[UP]).unlink()

    with pytest.raises(NodeError, match="missing"):
        swarm.export_hf(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "masters"}


def test_an_unknown_number_format_is_a_mistake(swarm: Shared, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found dtype 'int4'"):
        swarm.export_hf(tmp_path / "out", dtype="int4")


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(20)[None]).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")
def test_peft_loads_an_adapter_of_the_embeddings_and_of_the_head_that_shares_them(
    shared_model: Callable[..., Shared], tmp_path: Path, *, tied: bool
) -> None:
    tiny_llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    name = "model.embed_tokens.weight"
    swarm = shared_model(tmp_path / "base", (UP, name))
    deltas = [
        swarm.merge(delta_of(UP, (24, 16), 2, seed=1), 0.75),
        swarm.merge(delta_of(name, (2048, 16), 3, seed=2), 0.5),
    ]
    swarm.export_peft(tmp_path / "adapter", deltas=[(delta, weight) for delta, weight in deltas])

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        before = base(input_ids=tokens).logits
        for changed in (UP, name):
            whole.get_parameter(changed).copy_(torch.from_numpy(swarm.value(changed)))
        expected = whole(input_ids=tokens).logits
        found = PeftModel.from_pretrained(base, tmp_path / "adapter")(input_ids=tokens).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert (expected - before).abs().max() > 1e-3
    assert ("Do not merge it" in (tmp_path / "adapter/README.md").read_text()) == tied


def test_peft_loads_an_adapter_of_small_rank_that_is_exact(swarm: Shared, tmp_path: Path) -> None:
    merged = both_changed(swarm, rounds=3, rank=2)

    report = swarm.export_peft(tmp_path / "adapter", deltas=merged)

    assert report.exact
    assert report.rank == 6
    assert {module.method for module in report.modules} == {"stacked"}
    # What is left is three roundings of weights below 0.5 to float32.
    assert report.max_abs_difference < 1e-7
    base = AutoModelForCausalLM.from_pretrained(swarm.base_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    for name, parameter in model.named_parameters():
        if name in swarm.manifest:
            assert np.allclose(parameter.detach().numpy(), swarm.value(name), rtol=0, atol=2e-7)
    swarm.export_hf(tmp_path / "out")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits_of(model), logits_of(whole), atol=1e-5)


def test_the_stacked_factors_are_the_integers_times_their_scales(swarm: Shared, tmp_path: Path) -> None:
    delta, weight = swarm.merge(delta_of(UP, (24, 16), 2, seed=3), 0.75)
    swarm.export_peft(tmp_path / "adapter", deltas=[(delta, weight)])

    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")

    part = delta.parts[0]
    prefix = f"base_model.model.{UP.removesuffix('.weight')}"
    scales = 0.75 * 3 * np.ldexp(1.0, np.array([-18, -17]))
    assert np.array_equal(factors[f"{prefix}.lora_B.weight"].numpy(), part.B_OR * scales)
    assert np.array_equal(factors[f"{prefix}.lora_A.weight"].numpy(), part.A_RI)


def test_a_higher_rank_is_truncated_and_the_lost_energy_is_reported(swarm: Shared, tmp_path: Path) -> None:
    merged = both_changed(swarm, rounds=3, rank=2)

    report = swarm.export_peft(tmp_path / "adapter", deltas=merged, max_rank=4)

    assert report.rank == 4
    assert not report.exact
    before = AutoModelForCausalLM.from_pretrained(swarm.base_dir, dtype=torch.float32)
    update = swarm.value(UP).astype(np.float64) - dict(before.named_parameters())[UP].detach().numpy()
    energies = np.linalg.svd(update, compute_uv=False) ** 2
    of_up = next(module for module in report.modules if module.name == UP)
    assert of_up.energy_lost == pytest.approx(energies[4:].sum() / energies.sum(), rel=1e-3)
    assert of_up.method == "svd of stack"
    assert 0 < report.energy_lost < 1
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f"misses {report.energy_lost:.2%}" in card
    assert read_provenance(tmp_path / "adapter")["energy_lost"] == report.energy_lost


def test_without_the_deltas_singular_values_give_the_same_truncation(swarm: Shared, tmp_path: Path) -> None:
    merged = both_changed(swarm, rounds=3, rank=2)

    known = swarm.export_peft(tmp_path / "known", deltas=merged, max_rank=4)
    unknown = swarm.export_peft(tmp_path / "unknown", max_rank=4)
    whole = swarm.export_peft(tmp_path / "whole", max_rank=None)

    assert unknown.energy_lost == pytest.approx(known.energy_lost, rel=1e-3)
    assert {module.method for module in unknown.modules} == {"svd"}
    assert whole.exact
    assert whole.max_abs_difference < 1e-7


def test_deltas_that_do_not_add_up_to_the_model_are_not_believed(swarm: Shared, tmp_path: Path) -> None:
    merged = both_changed(swarm, rounds=2, rank=2)

    report = swarm.export_peft(tmp_path / "adapter", deltas=merged[:2])

    assert {module.method for module in report.modules} == {"svd"}
    assert report.exact


def test_a_swarm_without_rounds_gives_an_adapter_that_changes_nothing(swarm: Shared, tmp_path: Path) -> None:
    report = swarm.export_peft(tmp_path / "adapter")

    assert report.exact
    assert report.max_abs_difference == 0
    base = AutoModelForCausalLM.from_pretrained(swarm.base_dir, dtype=torch.float32)
    before = logits_of(base)
    assert torch.equal(logits_of(PeftModel.from_pretrained(base, tmp_path / "adapter").eval()), before)


def test_a_changed_norm_has_no_place_in_an_adapter(
    base_dir: Path, shared_model: Callable[..., Shared], tmp_path: Path
) -> None:
    swarm = shared_model(base_dir, ("model.norm.weight", UP))
    swarm.export_peft(tmp_path / "unchanged")
    swarm.manifest["model.norm.weight"] = swarm.masters.write("n", np.full(16, 1.5, np.float32))

    with pytest.raises(NodeError, match=r"model\.norm\.weight changed") as caught:
        swarm.export_peft(tmp_path / "adapter")
    assert "--format hf" in caught.value.hint


def test_tensor_files_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 5).half(),
        "brain": torch.tensor([1.0, -0.0, 3.4e38, 1e-40, float("inf"), float("nan")]).bfloat16(),
        "number": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "counts": torch.arange(7, dtype=torch.int64),
        "mask": torch.tensor([True, False, True]),
    }
    save_file(tensors, tmp_path / "theirs.safetensors")

    write_tensors(tmp_path / "ours.safetensors", read_tensors(tmp_path / "theirs.safetensors"))
    write_tensors(tmp_path / "single.safetensors", read_tensors(tmp_path / "theirs.safetensors"), dtype="F32")

    same = load_file(tmp_path / "ours.safetensors")
    single = load_file(tmp_path / "single.safetensors")
    for name, tensor in tensors.items():
        assert same[name].dtype == tensor.dtype
        assert torch.equal(same[name].nan_to_num(), tensor.nan_to_num())
        expected = tensor.float() if tensor.is_floating_point() else tensor
        assert single[name].dtype == expected.dtype
        assert torch.equal(single[name].nan_to_num(), expected.nan_to_num())


def test_bfloat16_is_rounded_as_torch_rounds(tmp_path: Path) -> None:
    values = torch.cat([torch.randn(1000) * 10.0 ** torch.arange(-20, 20).repeat(25), torch.tensor([float("nan")])])
    view = TensorView(name="w", dtype="F32", shape=(len(values),), flat=values.numpy())

    write_tensors(tmp_path / "w.safetensors", [view], dtype="BF16")

    assert torch.equal(load_file(tmp_path / "w.safetensors")["w"].nan_to_num(), values.bfloat16().nan_to_num())


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00" * 8, b"\xff" * 16, b"\x02" + b"\x00" * 7 + b"[]", b"\x02" + b"\x00" * 7 + b"{"],
    ids=["empty", "no header", "huge header", "not an object", "cut short"],
)
def test_a_damaged_weight_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)

    with pytest.raises(NodeError, match=r"model\.safetensors is not a whole safetensors file"):
        read_directory(tmp_path)


def test_a_weight_file_cut_short_is_named(tmp_path: Path) -> None:
    save_file({"w": torch.ones(100)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-4])

    with pytest.raises(NodeError, match="w at bytes 0 to 400 of 396"):
        read_directory(tmp_path)


def test_the_adapter_configuration_is_the_same_every_time(swarm: Shared, tmp_path: Path) -> None:
    swarm.export_peft(tmp_path / "one")
    swarm.export_peft(tmp_path / "two")

    first = (tmp_path / "one" / "adapter_config.json").read_bytes()
    assert first == (tmp_path / "two" / "adapter_config.json").read_bytes()
    assert json.loads(first)["target_modules"] == [
        "model.layers.0.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
    ]

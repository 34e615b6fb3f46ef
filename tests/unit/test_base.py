"""The base model is found, fingerprinted tensor by tensor, and refused when it is not the swarm's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.model.base import (
    base_files,
    base_licence,
    base_revision,
    base_weight_files,
    resolve_base,
)
from fullrank_node.model.base_load import (
    adaptable_modules,
    check_base,
    fingerprint,
    import_masters,
    load_base,
    load_tokenizer,
)
from fullrank_node.model.master import MasterStore, manifest_digest
from fullrank_protocol.wire import objects_pb2 as wire

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copied_base(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, offline."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def put_in_cache(cache: Path, base: Path, *, name: str) -> Path:
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(base, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_a_directory_is_a_base_as_it_is(tiny_base: Path) -> None:
    assert resolve_base(str(tiny_base)) == tiny_base
    assert base_revision(tiny_base) == ""
    assert base_files(tiny_base) == ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert base_weight_files(tiny_base) == ["model.safetensors"]


def test_a_given_directory_goes_before_everything_else(tiny_base: Path) -> None:
    assert resolve_base("no/such-model", "", tiny_base) == tiny_base


@pytest.mark.parametrize("reference", ["/no/such/directory", "./nowhere", "a b", "embedded:nothing"])
def test_an_unknown_base_is_a_configuration_error_with_a_hint(reference: str) -> None:
    with pytest.raises(NodeError) as caught:
        resolve_base(reference)
    assert caught.value.exit_code == ExitCode.CONFIG
    assert caught.value.hint


def test_a_hub_name_is_found_in_the_cache_when_offline(tiny_base: Path, hub_cache: Path) -> None:
    snapshot = put_in_cache(hub_cache, tiny_base, name="org/tiny")
    assert resolve_base("org/tiny") == snapshot
    assert resolve_base("org/tiny", COMMIT) == snapshot
    assert base_revision(snapshot) == COMMIT


def test_a_hub_name_that_is_not_cached_says_so_when_offline(hub_cache: Path) -> None:
    with pytest.raises(NodeError, match="org/tiny is not in the cache and the hub cannot be reached") as caught:
        resolve_base("org/tiny")
    assert "HF_HUB_OFFLINE" in caught.value.hint


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        ("GatedRepoError", "is gated"),
        ("RepositoryNotFoundError", "no public hub model named org/tiny"),
        ("RevisionNotFoundError", "has no revision v9"),
    ],
)
def test_what_the_hub_refuses_is_told_apart(monkeypatch: pytest.MonkeyPatch, failure: str, expected: str) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_args: Any, **_options: Any) -> str:
        raise getattr(errors, failure)("refused", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(NodeError, match=expected):
        resolve_base("org/tiny", "v9")


def test_pickled_weights_are_not_read(copied_base: Path) -> None:
    (copied_base / "model.safetensors").rename(copied_base / "pytorch_model.bin")
    with pytest.raises(NodeError, match=r"has no \.safetensors weights"):
        resolve_base(str(copied_base))


def test_the_founders_directory_is_found_by_content_in_the_hub_cache(
    tiny_base: Path, hub_cache: Path, make_swarm: Callable[..., Any]
) -> None:
    genesis = make_swarm().genesis
    with pytest.raises(NodeError, match="local directory of its founder") as caught:
        resolve_base("", "", None, genesis)
    assert "--base" in caught.value.hint
    snapshot = put_in_cache(hub_cache, tiny_base, name="someone/same")
    assert resolve_base("", "", None, genesis) == snapshot


def test_the_licence_is_read_from_the_model_card(copied_base: Path) -> None:
    assert base_licence(copied_base) == ""
    (copied_base / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: none\n")
    assert base_licence(copied_base) == "apache-2.0"


def test_what_is_no_causal_language_model_is_refused(copied_base: Path) -> None:
    config = copied_base / "config.json"
    stated = json.loads(config.read_text())
    config.write_text(json.dumps({**stated, "model_type": "vit", "architectures": ["ViTModel"]}))
    with pytest.raises(NodeError, match="not a causal language model"):
        load_base(copied_base)
    config.write_text("{")
    with pytest.raises(NodeError, match="not a causal language model"):
        load_base(copied_base)


def test_a_base_with_a_missing_tensor_is_refused_and_not_filled_in(copied_base: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(copied_base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copied_base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NodeError, match=r"it has no model\.layers\.1\.mlp\.up_proj\.weight"):
        load_base(copied_base)


def test_a_quantised_base_is_refused(copied_base: Path) -> None:
    config = copied_base / "config.json"
    stated = json.loads(config.read_text())
    config.write_text(json.dumps({**stated, "quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(NodeError, match="is quantised"):
        load_base(copied_base)


def test_a_base_without_a_tokenizer_is_refused(copied_base: Path) -> None:
    for file in copied_base.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(NodeError, match="tokenizer"):
        load_tokenizer(copied_base)


def test_the_fingerprint_names_every_parameter_once(tiny_base: Path) -> None:
    model = load_base(tiny_base)
    tensors = fingerprint(model)
    names = [tensor.name for tensor in tensors]
    assert names == sorted(names)
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names  # Tied to the embedding.
    assert len(names) == 1 + 2 * 9 + 1
    assert list(next(tensor for tensor in tensors if tensor.name == names[0]).shape) == [
        len(load_tokenizer(tiny_base)),
        32,
    ]


def test_every_linear_layer_and_the_embeddings_are_adapted_and_a_shared_head_with_them(tiny_base: Path) -> None:
    modules = adaptable_modules(load_base(tiny_base))
    names = [module.name for module in modules]
    assert names == sorted(names)
    assert len(names) == 2 * 7 + 1
    assert not any("lm_head" in name or "norm" in name for name in names)
    assert "model.embed_tokens.weight" in names
    up = next(module for module in modules if module.name == "model.layers.0.mlp.up_proj.weight")
    assert (up.kind, up.out_features, up.in_features) == (wire.LINEAR, 48, 32)


def test_routers_are_not_adapted_and_transposed_layers_are_refused() -> None:
    from torch import nn
    from transformers import GPT2Config, GPT2LMHeadModel

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(4, 2, bias=False)
            self.up = nn.Linear(4, 8, bias=False)
            self.head = nn.Linear(4, 9, bias=False)

        def get_input_embeddings(self) -> None:
            return None

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    assert [module.name for module in adaptable_modules(Mixture())] == ["head.weight", "up.weight"]
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1, n_positions=8))
    with pytest.raises(NodeError, match="GPT2LMHeadModel has no linear layer to adapt") as caught:
        adaptable_modules(gpt2)
    assert "Conv1D" in caught.value.hint


def test_the_swarms_own_base_passes_and_another_is_named_by_its_first_difference(
    tiny_base: Path, copied_base: Path, make_swarm: Callable[..., Any]
) -> None:
    import torch

    genesis = make_swarm().genesis
    model = load_base(tiny_base)
    check_base(model, tiny_base, genesis)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] += 1
        model.get_parameter("model.norm.weight")[0] += 1
    with pytest.raises(
        NodeError, match=r"differs from the genesis at model\.layers\.1\.mlp\.up_proj\.weight: found SHA"
    ):
        check_base(model, tiny_base, genesis)
    (copied_base / "tokenizer.json").write_text("{}")
    with pytest.raises(NodeError, match=r"differs from the genesis at tokenizer\.json: found 2 bytes"):
        check_base(model, copied_base, genesis)
    (copied_base / "tokenizer.json").unlink()
    with pytest.raises(NodeError, match=r"at tokenizer\.json: found no such file"):
        check_base(model, copied_base, genesis)


def test_masters_are_the_base_with_denormals_and_negative_zeros_flushed(tiny_base: Path, tmp_path: Path) -> None:
    import torch

    model = load_base(tiny_base)
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name)[0, :3] = torch.tensor([-0.0, 1e-40, 2.0])
    masters = MasterStore(tmp_path / "masters")
    manifest = import_masters(model, wire.Genesis(modules=adaptable_modules(model)), masters)
    master = masters.open(manifest[name], (48, 32))
    assert master[0, :3].tobytes() == np.array([0.0, 0.0, 2.0], np.float32).tobytes()
    assert np.array_equal(master[1:], model.get_parameter(name)[1:].detach().numpy())
    assert len(manifest) == 15
    assert manifest_digest(manifest) == manifest_digest(dict(reversed(manifest.items())))

"""Three real daemons train one model, and whoever likes pulls and checks it.

Each takes part in another way. Ada founded the swarm on a base that is a directory of hers, and serves it.
Bob has a copy of that directory. Cyd has none, and nobody can dial him. Dora is no member: she only reads.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_swarm import LiveNode, LiveSwarm, wait_for_certifiers, wait_until
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fullrank_node import demo
from fullrank_node.model.rank import effective_rank, shapes_of, singular_values
from fullrank_node.model.rank_estimate import estimated_effective_rank, sample_of
from fullrank_node.store import Store
from fullrank_protocol.envelope import open_envelope
from fullrank_protocol.genesis import open_genesis
from fullrank_protocol.link import Link
from fullrank_protocol.state import model_digest, tensor_sha256
from fullrank_protocol.wire import objects_pb2 as wire

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

EMBEDDED = Path(demo.__file__).parent / "base"

OTHER = "model.layers.1.mlp.up_proj.weight"
"""The tensor in which another base differs from Ada's."""


@dataclass(frozen=True)
class Swarm:
    live: LiveSwarm
    ada: LiveNode
    bob: LiveNode
    cyd: LiveNode
    base: Path
    link: Link

    @property
    def nodes(self) -> list[LiveNode]:
        return [self.ada, self.bob, self.cyd]


@dataclass(frozen=True)
class Pulled:
    dora: LiveNode
    report: Mapping[str, Any]
    model: Path


def base_like(original: Path, directory: Path, *, tensor: str, added: float) -> Path:
    """A copy of a base with the first number of one tensor changed."""
    shutil.copytree(original, directory)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tensors[tensor].view(-1)[0] += added
    save_file(tensors, file, metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    directory = tmp_path_factory.mktemp("swarm")
    base = base_like(EMBEDDED, directory / "base", tensor="model.embed_tokens.weight", added=0.25)
    copy = shutil.copytree(base, directory / "copy")
    with LiveSwarm(directory) as live:
        ada = live.found("ada", base=str(base), options=["--serve-base"])
        link = live.invite(ada)
        bob, cyd = live.join_together(link, {"bob": ["--base", str(copy)], "cyd": ["--no-listen"]})
        wait_for_certifiers([ada, bob, cyd], 3)
        yield Swarm(live=live, ada=ada, bob=bob, cyd=cyd, base=base, link=link)


@pytest.fixture(scope="module")
def pulled(swarm: Swarm) -> Pulled:
    """What Dora got by a link that lets nobody join."""
    dora = swarm.live.node("dora")
    model = swarm.live.directory / "model"
    report = dora.json("pull", str(swarm.link.without_invite()), "--out", str(model))
    return Pulled(dora=dora, report=report, model=model)


def final_lines(node: LiveNode) -> dict[int, dict[str, Any]]:
    """Final rounds as `history` prints them."""
    rounds = node.json("history", "--limit", "1000")["rounds"]
    return {line["checkpoint"]["round"]: line for line in rounds if line["standing"] == "final"}


def digest_in(tensors: Mapping[str, torch.Tensor], node: LiveNode) -> bytes:
    """The model digest of the tensors that the swarm of a node adapts."""
    names = [module.name for module in open_genesis(node.home.genesis_file.read_bytes()).modules]
    return model_digest({name: tensor_sha256(tensors[name].detach().numpy()) for name in names})


# ---- training together -----------------------------------------------------------------------------


def test_all_agree_on_every_final_round(swarm: Swarm) -> None:
    seen = [final_lines(node) for node in swarm.nodes]
    common = set.intersection(*map(set, seen))
    assert len(common) >= 3
    for number in common:
        assert seen[0][number]["checkpoint"] == seen[1][number]["checkpoint"] == seen[2][number]["checkpoint"]
    status = swarm.ada.json("status")
    assert (status["running"], status["members"], status["certifiers"]) == (True, 3, 3)


def test_every_member_is_merged_and_votes(swarm: Swarm) -> None:
    keys = {node.key for node in swarm.nodes}
    merged = {
        line["member"]
        for number in swarm.ada.final_rounds()
        for line in swarm.ada.history(number)["contributions"]
        if line["verdict"] == "accepted"
    }
    assert merged == keys
    with Store(swarm.ada.home, readonly=True) as store:
        voters = {open_envelope(data, swarm=None).public_key.hex() for data in store.objects(wire.VOTE)}
    assert voters == keys


def test_a_node_that_nobody_can_dial_takes_full_part(swarm: Swarm) -> None:
    status = swarm.cyd.json("status")
    assert (status["addresses"], status["reachability"]) == ([], "outbound only")
    for other in (swarm.ada, swarm.bob):
        line = other.peers()["cyd"]
        assert line["connected"]
        assert not line["outbound"]  # It was Cyd who dialled.
    assert status["certifier"]
    accepted = swarm.ada.members()["cyd"]["accepted"]
    assert accepted >= 2  # His deltas reached the others over the connections that he had dialled.


# ---- a base that is nowhere on the hub ---------------------------------------------------------------


def test_who_has_no_base_fetches_it_from_peers(swarm: Swarm) -> None:
    fetched = swarm.cyd.home.path / "base"
    assert (fetched / "model.safetensors").read_bytes() == (swarm.base / "model.safetensors").read_bytes()
    assert (fetched / "tokenizer.json").read_bytes() == (swarm.base / "tokenizer.json").read_bytes()
    assert not (swarm.bob.home.path / "base").exists()  # He had a copy.


def test_a_base_that_differs_in_one_tensor_is_refused_by_its_name(swarm: Swarm) -> None:
    other = base_like(swarm.base, swarm.live.directory / "other", tensor=OTHER, added=0.5)
    eve = swarm.live.node("eve")
    data = swarm.live.data_of("eve")
    refused = eve.fullrank("join", str(swarm.link), "--yes", "--data", str(data), "--base", str(other), code=78)
    assert f"base differs from the genesis at {OTHER}: found SHA-256" in refused.stderr
    assert not eve.home.path.exists()  # She can simply try again with the right one.


def test_status_tells_how_much_room_the_update_fills(swarm: Swarm, pulled: Pulled) -> None:
    modules = open_genesis(swarm.ada.home.genesis_file.read_bytes()).modules
    sample = sample_of(modules)

    def ranks() -> list[dict[str, Any]]:
        found = [node.status()["rank"] for node in swarm.nodes]
        return found if all(found) else []

    for rank in wait_until("all have measured a round", ranks, swarm.nodes):
        assert rank["round"] >= 1
        assert 1.0 < rank["effective"] < rank["of"] == 128
        assert (rank["sampled"], rank["matrices"]) == (len(sample.matrices), sample.num_matrices)
        assert rank["relative_error"] == sample.relative_error

    before, after = (load_file(directory / "model.safetensors") for directory in (swarm.base, pulled.model))
    update = {name: after[name].numpy() - before[name].numpy() for name in shapes_of(modules)}
    sampled = sample.mean(estimated_effective_rank(update[matrix.name]) for matrix in sample.matrices)
    of_all = np.mean([effective_rank(singular_values(matrix.astype(np.float64))) for matrix in update.values()])
    assert sampled == pytest.approx(of_all, rel=sample.relative_error)


# ---- reading -----------------------------------------------------------------------------------------


def test_a_pulled_model_loads_and_is_the_one_that_was_certified(swarm: Swarm, pulled: Pulled) -> None:
    report = pulled.report
    assert report["final"]
    certified = final_lines(swarm.ada)[report["round"]]["checkpoint"]
    assert (report["checkpoint"], report["digest"]) == (certified["id"], certified["digest"])
    model = AutoModelForCausalLM.from_pretrained(pulled.model, dtype=torch.float32)
    assert digest_in(model.state_dict(), swarm.ada).hex() == report["digest"]
    base = AutoModelForCausalLM.from_pretrained(swarm.base, dtype=torch.float32)
    assert digest_in(base.state_dict(), swarm.ada).hex() != report["digest"]
    assert torch.equal(model.model.norm.weight, base.model.norm.weight)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (pulled.model / "tokenizer.json").read_bytes() == (swarm.base / "tokenizer.json").read_bytes()


def test_a_pull_can_be_replayed_from_the_base(pulled: Pulled) -> None:
    report = pulled.dora.json("verify", str(pulled.model))
    assert (report["ok"], report["mismatch"], report["final"]) == (True, "", True)
    assert (report["round"], report["digest"]) == (pulled.report["round"], pulled.report["digest"])
    assert report["contributions"] >= report["round"]


def test_a_changed_model_is_told_from_the_certified_one(swarm: Swarm, pulled: Pulled) -> None:
    changed = base_like(pulled.model, swarm.live.directory / "changed", tensor=OTHER, added=0.001)
    report = json.loads(pulled.dora.fullrank("verify", str(changed), "--json", code=76).stdout)
    assert not report["ok"]
    assert f"says {pulled.report['digest']}" in report["mismatch"]


def test_an_adapter_of_the_same_round_gives_the_same_model(swarm: Swarm, pulled: Pulled) -> None:
    adapter = swarm.live.directory / "adapter"
    number = str(pulled.report["round"])
    link = str(swarm.link.without_invite())
    report = pulled.dora.json("pull", link, "--format", "peft", "--round", number, "--out", str(adapter))
    assert report["checkpoint"] == pulled.report["checkpoint"]
    base = AutoModelForCausalLM.from_pretrained(swarm.base, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    # Not merged: PEFT would add the change of the matrix that embeddings and head share once for either.
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        layers = PeftModel.from_pretrained(base, adapter).base_model.model.named_modules()
    found = {
        f"{name}.weight": layer.get_delta_weight("default") for name, layer in layers if isinstance(layer, LoraLayer)
    }
    assert torch.equal(found.pop("lm_head.weight"), found["model.embed_tokens.weight"])
    whole = load_file(pulled.model / "model.safetensors")
    changes = {name: whole[name] - before[name] for name in whole}
    assert found.keys() == {name for name, change in changes.items() if change.any()}
    error = sum(float((found[name] - changes[name]).square().sum()) for name in found)
    update = sum(float(change.square().sum()) for change in changes.values())
    assert update > 0
    assert error / update <= report["energy_lost"] + 1e-6
    assert report["energy_lost"] < 0.05

"""The worker gives every node the same verdicts and the same model, and blames a peer only for its bytes."""

import itertools
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from swarms import genesis_message, id_of, key_of

from fullrank_node.blob_store import BlobStore
from fullrank_node.child import ChildProcess, Progress
from fullrank_node.errors import NodeError
from fullrank_node.model.master import MasterStore, manifest_digest
from fullrank_node.model.rank import effective_rank, singular_values
from fullrank_node.recompute import KEPT_MERGES, DeltaCache, Recompute, _size
from fullrank_protocol.codec import CODEC_PACKED, decode, encode
from fullrank_protocol.delta import Delta, SeedContext, expand, quantize_dense, quantize_low_rank, to_float
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import Genesis, create_genesis
from fullrank_protocol.parts import LowRank
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.state import canonical_float32
from fullrank_protocol.wire import objects_pb2 as wire

NAMES = ("ada", "ben", "cyd", "dora")
RANKS = {"ada": 2, "ben": 5, "cyd": 8, "dora": 1}


def make_genesis() -> Genesis:
    """Linear modules of shapes (48, 40) and (24, 56), a dense one of 33 entries."""
    message = genesis_message()
    del message.modules[:]
    del message.base.tensors[:]
    for name, shape, kind in (("a", [48, 40], wire.LINEAR), ("b", [24, 56], wire.LINEAR), ("c", [33], wire.DENSE)):
        message.base.tensors.add(name=name, shape=shape, sha256=id_of(name))
        message.modules.add(name=name, kind=kind, out_features=shape[0], in_features=[*shape, 1][1])
    return create_genesis(key_of("ada"), message)


class Setting:
    """A genesis, its masters and one delta of each member, on disk."""

    def __init__(self, directory: Path) -> None:
        self.genesis = make_genesis()
        self.genesis_path = directory / "genesis.bin"
        self.genesis_path.write_bytes(self.genesis.envelope.encode())
        self.masters = MasterStore(directory / "masters")
        self.blobs = BlobStore(directory / "blobs")
        rng = np.random.default_rng(7)
        self.weights = {
            module.name: canonical_float32(
                rng.normal(size=(module.out_features, module.in_features)).astype(np.float32), name=module.name
            )
            for module in self.genesis.modules
        }
        self.manifest = {name: self.masters.write(name, tensor) for name, tensor in self.weights.items()}
        self.entries = [self.entry(name) for name in sorted(NAMES, key=id_of)]

    def delta(self, name: str) -> Delta:
        """Random factors of the member's rank; ada and ben send A, the others draw it from a seed."""
        rng = np.random.default_rng(NAMES.index(name))
        parts: list[Any] = []
        for module in self.genesis.modules:
            if module.in_features == 1:
                values = 0.01 * rng.normal(size=module.out_features)
                parts.append(
                    quantize_dense(module.name, values, bits=4, rng=rng, stochastic=True, limits=self.genesis.limits)
                )
                continue
            sent = name in ("ada", "ben")
            parts.append(
                quantize_low_rank(
                    module.name,
                    0.01 * rng.normal(size=(module.out_features, RANKS[name])),
                    rng.normal(size=(RANKS[name], module.in_features)) if sent else None,
                    bits_b=4,
                    bits_a=4,
                    scale=0.5,
                    rng=rng,
                    stochastic=True,
                    limits=self.genesis.limits,
                )
            )
        return Delta.of(parts)

    def put(self, data: bytes) -> str:
        return str(self.blobs.path(self.blobs.put_bytes(data).id))

    def entry(self, name: str, **fields: Any) -> dict[str, Any]:
        return {
            "contribution_id": id_of(name).hex(),
            "member": key_of(name).public_key.hex(),
            "num_tokens": 1000 + NAMES.index(name),
            "staleness": NAMES.index(name) % 2,
            "stranger": False,
            "blob_path": self.put(encode(self.delta(name), self.genesis)),
            "codec": CODEC_PACKED,
            "period": 0,
            **fields,
        }

    def check(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: entry[name] for name in ("blob_path", "codec", "member", "period")}
        return Recompute().check_delta({"genesis_path": str(self.genesis_path), **given}, ignore)

    def request(self, entries: list[dict[str, Any]] | None = None, **fields: Any) -> dict[str, Any]:
        return {
            "genesis_path": str(self.genesis_path),
            "masters_dir": str(self.masters.directory),
            "parent_manifest": self.manifest,
            "entries": self.entries if entries is None else entries,
            "trailing": [],
            **fields,
        }

    def recompute(self, entries: list[dict[str, Any]] | None = None, **fields: Any) -> dict[str, Any]:
        return Recompute().recompute(self.request(entries, **fields), ignore)


ignore = Progress(lambda _fields: None)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


@pytest.fixture
async def worker() -> AsyncIterator[ChildProcess]:
    async with ChildProcess("fullrank_node.worker", environment={"OMP_NUM_THREADS": "2"}) as worker:
        yield worker


def test_a_good_delta_is_accepted_with_its_norm(setting: Setting) -> None:
    entry = setting.entry("ada")
    dense = [to_float(part) for part in setting.delta("ada").parts]
    found = setting.check(entry)
    assert found == {
        "ok": True,
        "rule": 0,
        "detail": "",
        "norm": pytest.approx(np.sqrt(sum((d**2).sum() for d in dense))),
    }


def test_a_seeded_delta_is_expanded_for_its_own_author_and_period(setting: Setting) -> None:
    entry = setting.entry("cyd")
    context = SeedContext(swarm=setting.genesis.swarm, member=key_of("cyd").public_key, period=3)
    delta = expand(
        decode(encode(setting.delta("cyd"), setting.genesis), setting.genesis, 1), context, setting.genesis.modules
    )
    expected = np.sqrt(sum((to_float(part) ** 2).sum() for part in delta.parts))
    assert setting.check({**entry, "period": 3})["norm"] == pytest.approx(expected)
    assert setting.check({**entry, "period": 4})["norm"] != pytest.approx(expected)


def cancelling(setting: Setting) -> bytes:
    """Two components that add up to nothing."""
    B_OR = np.zeros((48, 2), dtype=np.int8)
    B_OR[0] = (64, -64)
    A_RI = np.full((2, 40), 64, dtype=np.int8)
    part = LowRank(module="a", B_OR=B_OR, A_RI=A_RI, scale_mantissa_R=(1, 1), scale_exponent_R=(-9, -9))
    return encode(Delta(parts=(part,)), setting.genesis)


def test_bytes_that_are_no_delta_are_refused_by_rule(setting: Setting) -> None:
    good = encode(setting.delta("ada"), setting.genesis)
    cases = {
        "truncated": (good[:-1], {}, Rule.CODEC),
        "empty": (b"", {}, Rule.CODEC),
        "trailing byte": (good + b"\0", {}, Rule.CODEC),
        "unknown codec": (good, {"codec": 2}, Rule.CODEC),
        "components cancel": (cancelling(setting), {}, Rule.ZERO_NORM),
    }
    for name, (data, fields, rule) in cases.items():
        found = setting.check({**setting.entry("ada"), "blob_path": setting.put(data), **fields})
        assert (found["ok"], found["rule"]) == (False, rule), name
        assert found["detail"], name


def test_an_oversize_blob_is_refused_without_being_read(setting: Setting, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(setting.genesis.limits.max_delta_bytes + 1)
    assert setting.check({**setting.entry("ada"), "blob_path": str(large)})["rule"] == Rule.SIZE


def test_a_blob_that_is_missing_or_damaged_on_this_disk_is_nobodys_refusal(setting: Setting) -> None:
    entry = setting.entry("ada")
    path = Path(entry["blob_path"])
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(NodeError, match="does not hash to its name"):
        setting.check(entry)
    with pytest.raises(NodeError, match="does not hash to its name"):
        setting.recompute([entry])
    path.unlink()
    with pytest.raises(NodeError, match="cannot be read"):
        setting.check(entry)


def test_a_missing_or_damaged_genesis_is_this_nodes_trouble(setting: Setting) -> None:
    setting.genesis_path.write_bytes(b"junk")
    with pytest.raises(NodeError, match="genesis"):
        setting.check(setting.entries[0])
    setting.genesis_path.unlink()
    with pytest.raises(NodeError, match="genesis"):
        setting.check(setting.entries[0])


def test_the_new_model_is_the_old_one_plus_the_weighted_deltas(setting: Setting) -> None:
    found = setting.recompute()
    assert found["refused"] == []
    assert found["contribution_ids"] == [entry["contribution_id"] for entry in setting.entries]
    weights = [Scaled(mantissa=m, exponent=e).value() for m, e in found["weights"]]
    assert 0.5 < sum(weights) < 1.0, "clipped to the median norm"
    change = {name: np.zeros_like(tensor, dtype=np.float64) for name, tensor in setting.weights.items()}
    for entry, weight in zip(setting.entries, weights, strict=True):
        delta = DeltaCache(max_bytes=1 << 20).decode(entry, setting.genesis)
        for part in delta.parts:
            change[part.module] += weight * to_float(part).reshape(change[part.module].shape)
    for module in setting.genesis.modules:
        new = setting.masters.open(found["manifest"][module.name], (module.out_features, module.in_features))
        assert np.allclose(new, setting.weights[module.name] + change[module.name], atol=1e-6)
    norm = np.sqrt(sum((part**2).sum() for part in change.values()))
    m, e = found["update_norm"]
    assert Scaled(mantissa=m, exponent=e).value() == pytest.approx(norm, rel=0.01)
    assert found["digest"] == manifest_digest(found["manifest"]).hex()


def test_the_digest_is_one_whatever_the_order_the_tiles_and_the_threads(setting: Setting) -> None:
    once = setting.recompute()
    for order, tile_elements, threads in itertools.product(([0, 1, 2, 3], [3, 1, 0, 2]), (64, 1 << 20), (1, 2)):
        again = setting.recompute([setting.entries[i] for i in order], tile_elements=tile_elements, threads=threads)
        assert again["digest"] == once["digest"]
        assert again["update_norm"] == once["update_norm"]
        assert [again["weights"][order.index(i)] for i in range(4)] == once["weights"]


def test_an_entry_that_is_refused_is_left_out_as_if_it_had_never_come(setting: Setting) -> None:
    good = [entry for entry in setting.entries if entry["contribution_id"] != id_of("ada").hex()]
    for data, rule in ((b"junk", Rule.CODEC), (cancelling(setting), Rule.ZERO_NORM)):
        bad = {**setting.entry("ada"), "blob_path": setting.put(data)}
        found = setting.recompute(sorted([*good, bad], key=lambda entry: entry["contribution_id"]))
        assert [(each["contribution_id"], each["rule"]) for each in found["refused"]] == [(id_of("ada").hex(), rule)]
        without = setting.recompute(good)
        assert {**found, "refused": []} == without


def test_nothing_accepted_changes_nothing(setting: Setting) -> None:
    found = setting.recompute([])
    assert found["manifest"] == setting.manifest
    assert (found["weights"], found["update_norm"], found["contribution_ids"]) == ([], [0, 0], [])
    assert found["digest"] == manifest_digest(setting.manifest).hex()


def test_the_trailing_norms_cap_the_update(setting: Setting) -> None:
    free = setting.recompute()["update_norm"]
    small = Scaled.of(Scaled(mantissa=free[0], exponent=free[1]).value() / 10)
    past = {"full_norm": small.value(), "breadth": 0.0}
    capped = setting.recompute(trailing=[past] * 3)["update_norm"]
    assert Scaled(mantissa=capped[0], exponent=capped[1]).value() == pytest.approx(1.5 * small.value(), rel=0.01)


def test_a_round_narrower_than_those_before_is_shortened(setting: Setting) -> None:
    free = setting.recompute()
    narrow = setting.recompute(trailing=[{"full_norm": 0.0, "breadth": 50.0}] * 3)
    whole, short = (sum(math.ldexp(m, e) for m, e in found["weights"]) for found in (free, narrow))
    breadth = whole**2 / sum(math.ldexp(m, e) ** 2 for m, e in free["weights"])
    assert short / whole == pytest.approx(breadth / (0.9 * (150 + breadth) / 4), rel=0.01)


def test_a_damaged_master_is_this_disks_fault_and_no_other_model(setting: Setting) -> None:
    path = setting.masters.path(setting.manifest["b"])
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(NodeError, match=r"the weights of b are not usable: .* damaged, it does not hash to its name"):
        setting.recompute()
    path.write_bytes(data[:-4])
    with pytest.raises(NodeError, match=r"the weights of b are not usable: .* bytes, required"):
        setting.recompute([])
    path.unlink()
    with pytest.raises(NodeError, match=r"the weights of b are not usable: .* is missing"):
        setting.recompute([])


def test_a_master_damaged_to_infinity_makes_no_update_invalid(setting: Setting) -> None:
    path = setting.masters.path(setting.manifest["b"])
    data = np.fromfile(path, dtype="<f4")
    data[:] = np.inf
    data.tofile(path)
    with pytest.raises(NodeError, match="does not hash to its name"):
        setting.recompute()


def test_a_sum_that_is_not_finite_is_refused_on_every_machine(setting: Setting) -> None:
    setting.manifest["a"] = setting.masters.write("a", np.full((48, 40), np.finfo(np.float32).max, dtype=np.float32))
    B_OR = np.full((48, 1), 127, dtype=np.int8)
    A_RI = np.full((1, 40), 127, dtype=np.int8)
    # 127 * 127 * 15 is far below the largest float32's last bit: nothing moves, and nothing overflows.
    part = LowRank(module="a", B_OR=B_OR, A_RI=A_RI, scale_mantissa_R=(15,), scale_exponent_R=(0,))
    entry = {**setting.entry("ada"), "blob_path": setting.put(encode(Delta(parts=(part,)), setting.genesis))}
    assert setting.recompute([entry])["manifest"]["a"] == setting.manifest["a"]
    setting.manifest["a"] = setting.masters.write("a", np.full((48, 40), np.inf, dtype=np.float32))
    with pytest.raises(RejectError) as caught:
        setting.recompute([entry])
    assert caught.value.rule == Rule.NON_FINITE


def test_the_rank_of_a_change_is_at_most_the_sum_of_the_ranks(setting: Setting) -> None:
    after = setting.recompute()["manifest"]
    params = {**setting.request(), "before": setting.manifest, "after": after}
    report = Recompute().measure_rank(params, ignore)
    assert 1.0 < report["effective"] <= sum(RANKS.values())


def test_the_rank_of_one_matrix_is_estimated_only_from_whole_files(setting: Setting) -> None:
    after = setting.recompute()["manifest"]
    params = {
        "masters_dir": str(setting.masters.directory),
        "name": "a",
        "shape": [48, 40],
        "before": setting.manifest["a"],
        "after": after["a"],
    }
    change = setting.masters.read(after["a"], (48, 40)) - setting.masters.read(setting.manifest["a"], (48, 40))
    exact = effective_rank(singular_values(change.astype(np.float64)))
    assert Recompute().estimate_rank(params, ignore)["effective"] == pytest.approx(exact)
    path = setting.masters.path(setting.manifest["a"])
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(NodeError, match="does not hash to its name"):
        Recompute().estimate_rank(params, ignore)


def test_decoded_deltas_are_kept_within_bounds_and_used_again(setting: Setting) -> None:
    cache = DeltaCache(max_bytes=1 << 20)
    first = cache.decode(setting.entries[0], setting.genesis)
    assert cache.decode(setting.entries[0], setting.genesis) is first
    small = DeltaCache(max_bytes=1)
    kept = small.decode(setting.entries[0], setting.genesis)
    small.decode(setting.entries[1], setting.genesis)
    assert small.decode(setting.entries[0], setting.genesis) is not kept
    assert len(small._deltas) == 1


def test_deltas_that_merges_do_not_need_any_more_are_forgotten(setting: Setting) -> None:
    cache = DeltaCache(max_bytes=1 << 20)
    kept = cache.decode(setting.entries[0], setting.genesis)
    cache.decode(setting.entries[1], setting.genesis)
    for _ in range(KEPT_MERGES):
        cache.end_merge()
        assert cache.decode(setting.entries[0], setting.genesis) is kept
    assert len(cache._deltas) == 2
    cache.end_merge()
    assert len(cache._deltas) == 1
    assert cache._num_bytes == _size(kept)


async def test_the_process_gives_the_same_answers_over_the_pipe(setting: Setting, worker: ChildProcess) -> None:
    stages: list[str] = []
    entry = setting.entries[0]
    checked = await worker.call("check_delta", {"genesis_path": str(setting.genesis_path), **entry})
    assert checked == setting.check(entry)
    found = await worker.call(
        "recompute", setting.request(threads=2), on_progress=lambda fields: stages.append(fields["stage"])
    )
    assert found == setting.recompute(threads=1)
    assert stages == ["decode"] * 4 + ["weigh", "apply"]
    with pytest.raises(NodeError, match="cannot be read"):
        await worker.call("check_delta", {"genesis_path": "/nowhere", **entry})


async def test_the_process_never_loads_torch(setting: Setting, worker: ChildProcess) -> None:
    await worker.call("recompute", setting.request())
    loaded = {Path(library.path).name for library in psutil.Process(worker.pid).memory_maps()}
    assert any(name.startswith("_multiarray_umath") for name in loaded)
    assert not any("torch" in name for name in loaded)


def test_the_modules_of_the_worker_import_no_torch() -> None:
    code = "import sys, fullrank_node.worker, fullrank_node.recompute; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


# ---- snapshots -------------------------------------------------------------------------------------


def snapshot_of(setting: Setting, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """The file of a snapshot after one merge, and what that merge gave."""
    merged = setting.recompute()
    path = tmp_path / "snapshot"
    request = setting.request(base_manifest=setting.manifest, manifest=merged["manifest"], out_path=str(path))
    assert Recompute().make_snapshot(request, ignore) == {"num_bytes": path.stat().st_size}
    return path, merged


def apply_snapshot(setting: Setting, path: Path, digest: str) -> dict[str, Any]:
    request = setting.request(base_manifest=setting.manifest, blob_path=str(path), digest=digest)
    return Recompute().apply_snapshot(request, ignore)


def test_a_snapshot_gives_the_very_masters_that_merging_gives(setting: Setting, tmp_path: Path) -> None:
    path, merged = snapshot_of(setting, tmp_path)
    setting.masters.collect(set(setting.manifest.values()))
    assert apply_snapshot(setting, path, merged["digest"]) == {"manifest": merged["manifest"]}
    assert all(setting.masters.verify(sha256) for sha256 in merged["manifest"].values())


def test_a_snapshot_of_another_model_is_refused_and_leaves_nothing(setting: Setting, tmp_path: Path) -> None:
    path, merged = snapshot_of(setting, tmp_path)
    setting.masters.collect(set(setting.manifest.values()))
    with pytest.raises(RejectError, match="gives a model with digest") as caught:
        apply_snapshot(setting, path, "00" * 32)
    assert caught.value.rule is Rule.DIGEST
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RejectError) as caught:
        apply_snapshot(setting, path, merged["digest"])
    assert caught.value.rule is Rule.CODEC
    assert {file.stem for file in setting.masters.directory.iterdir()} == set(setting.manifest.values())


def test_nobody_is_blamed_for_a_base_that_this_disk_has_spoilt(setting: Setting, tmp_path: Path) -> None:
    path, merged = snapshot_of(setting, tmp_path)
    spoilt = setting.masters.path(next(iter(setting.manifest.values())))
    spoilt.chmod(0o600)
    spoilt.write_bytes(bytes([spoilt.read_bytes()[0] ^ 1]) + spoilt.read_bytes()[1:])
    with pytest.raises(NodeError, match="corrupt master"):
        apply_snapshot(setting, path, merged["digest"])

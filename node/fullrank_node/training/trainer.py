"""The trainer process: what it answers, and nothing of how (`python -m fullrank_node.training.trainer`).

Handlers are plain functions of a request and a progress callback, so tests call them directly. Ids and
hashes are hex in requests and answers. Every request that computes may state `device` (auto, cuda, mps,
cpu) and `threads`. The model stays loaded between requests; killing the process loses at most the delta
in the making.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import disk_errors
from fullrank_node.model import base, base_load
from fullrank_node.model.evaluate import held_out_loss
from fullrank_node.model.master import MasterStore, manifest_digest
from fullrank_node.training.alone import rounds_alone
from fullrank_node.training.blocks import IS_TARGET, Blocks
from fullrank_node.training.cache import BlockCache, build_cache, make_blocks
from fullrank_node.training.contribute import Contributed, Plan, contribute
from fullrank_node.training.data import DataError, check_data, load_rows
from fullrank_node.training.hardware import choose_device, describe_hardware, fair_threads
from fullrank_node.training.session import ModelSession
from fullrank_protocol.codec import CODEC_PACKED
from fullrank_protocol.genesis import Genesis, open_genesis
from fullrank_protocol.wire import objects_pb2 as wire

Request = Mapping[str, Any]
Progress = Callable[..., None]
Reply = dict[str, Any]


def ignore_progress(**_fields: Any) -> None:
    """A progress callback for callers who do not watch."""


class Trainer:
    """The handlers, and what they keep in memory."""

    def __init__(self) -> None:
        self._session = ModelSession()
        self._encoding_ms = 0.0

    def handlers(self) -> dict[str, Callable[[Request, Progress], Reply]]:
        """Method names of the child's protocol."""
        return {
            "check_data": self.check_data,
            "evaluate": self.evaluate,
            "hardware": self.hardware,
            "prepare_base": self.prepare_base,
            "prepare_data": self.prepare_data,
            "sample": self.sample,
            "train": self.train,
            "train_alone": self.train_alone,
        }

    def hardware(self, request: Request, _progress: Progress = ignore_progress) -> Reply:
        """{device} -> {device, name, memory_bytes, num_cores, dtype}."""
        return asdict(describe_hardware(request.get("device") or "auto"))

    def prepare_base(self, request: Request, _progress: Progress = ignore_progress) -> Reply:
        """Find and load a base, check it against a genesis if there is one, write its masters.

        {reference, revision?, base_dir?, genesis_path?, masters_dir?} -> {base_dir, reference, revision,
        licence, tensors: [{name, shape, sha256}], modules: [{name, kind, out_features, in_features}],
        files: [name], weight_files: [name], num_parameters, manifest: {name: sha256}, digest}. Manifest and
        digest are empty without `masters_dir`. The reference of a local directory comes back empty.
        """
        _use_threads(request)
        genesis = _genesis(request) if request.get("genesis_path") else None
        given = Path(request["base_dir"]) if request.get("base_dir") else None
        reference, revision = str(request.get("reference") or ""), str(request.get("revision") or "")
        path = base.resolve_base(reference, revision, given, genesis)
        model = base_load.load_base(path)
        tokenizer = base_load.load_tokenizer(path)
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            raise NodeError(
                f"the tokenizer in {path} has {len(tokenizer)} tokens, more than the model",
                hint="Use the tokenizer that belongs to the model.",
                exit_code=ExitCode.CONFIG,
            )
        if genesis is not None:
            base_load.check_base(model, path, genesis)
        adapted = genesis or wire.Genesis(modules=base_load.adaptable_modules(model))
        manifest: dict[str, str] = {}
        if request.get("masters_dir"):
            masters = MasterStore(Path(request["masters_dir"]))
            manifest = base_load.import_masters(model, adapted, masters)
        tensors = genesis.base.tensors if genesis is not None else base_load.fingerprint(model)  # Just compared.
        reply = {
            "base_dir": str(path),
            "reference": "" if given or Path(reference).expanduser().is_dir() else reference,
            "revision": base.base_revision(path),
            "licence": base.base_licence(path),
            "tensors": [{"name": t.name, "shape": list(t.shape), "sha256": t.sha256.hex()} for t in tensors],
            "modules": [
                {"name": m.name, "kind": int(m.kind), "out_features": m.out_features, "in_features": m.in_features}
                for m in adapted.modules
            ],
            "files": base.base_files(path),
            "weight_files": base.base_weight_files(path),
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "manifest": manifest,
            "digest": _digest(manifest),
        }
        if manifest:
            self._session.adopt(path, model, device=choose_device(request.get("device") or "auto"))
        return reply

    def check_data(self, request: Request, _progress: Progress = ignore_progress) -> Reply:
        """{path, base_dir?, valid_fraction?} -> the fields of data.DataReport."""
        tokenizer = self._session.tokenizer(Path(request["base_dir"])) if request.get("base_dir") else None
        fraction = float(request.get("valid_fraction") or 0.0)
        return asdict(check_data(Path(request["path"]), tokenizer, valid_fraction=fraction))

    def prepare_data(self, request: Request, _progress: Progress = ignore_progress) -> Reply:
        """Tokenise and pack data, unless that is done already.

        {path, valid_path?, base_dir, block_length, valid_fraction, cache_path} -> {num_rows, num_blocks,
        num_tokens, num_valid_rows, num_valid_blocks, num_skipped, skipped: [{line, reason}], fingerprint}.
        """
        base_dir = Path(request["base_dir"])
        tokenizer_file = base_dir / "tokenizer.json"
        facts = tokenizer_file.stat() if tokenizer_file.is_file() else None
        summary = build_cache(
            Path(request["path"]),
            self._session.tokenizer(base_dir),
            tokenizer_id=f"{base_dir}:{facts.st_size}:{facts.st_mtime_ns}" if facts else str(base_dir),
            block_length=int(request["block_length"]),
            valid_fraction=float(request.get("valid_fraction") or 0.0),
            cache_path=Path(request["cache_path"]),
            valid_path=Path(request["valid_path"]) if request.get("valid_path") else None,
        )
        return {**asdict(summary), "skipped": [{"line": line, "reason": reason} for line, reason in summary.skipped]}

    def train(self, request: Request, progress: Progress = ignore_progress) -> Reply:
        """Train one contribution and write its encoded delta.

        {genesis_path, base_dir, masters_dir, manifest, round, member, seed, data_cache, state_dir, out_path,
        deadline_ms?} and, where they differ from the genesis' hints, {mode, rank, bits_b, bits_a, batch_size,
        learning_rate, warmup_steps, max_steps, total_rounds, stochastic, error_feedback, carry_moments,
        num_averaged, num_late, pending: [{path, codec, round}]}
        -> progress {step, of, loss, tokens_per_s, learning_rate}; {num_tokens, num_steps, loss_first,
        loss_last, blob_path, codec, num_bytes, rank, period, stopped_by, micro_batch, encode_ms}.
        """
        genesis = _genesis(request)
        plan = Plan.of(request, genesis)
        model = self._model(request)
        out_path = Path(request["out_path"])
        with BlockCache(Path(request["data_cache"])) as cache, disk_errors(out_path):
            done = contribute(
                model,
                genesis,
                plan,
                cache,
                state_dir=Path(request["state_dir"]),
                out_path=out_path,
                encoding_ms=self._encoding_ms,
                progress=progress,
            )
        self._encoding_ms = done.encode_ms
        return {**_contributed(done), "blob_path": str(out_path), "period": plan.period}

    def train_alone(self, request: Request, progress: Progress = ignore_progress) -> Reply:
        """Train round after round on one node's data and merge with nobody: what the swarm is measured against.

        As `train`, with {rounds, work_dir, steps_per_round?} instead of {round, state_dir, out_path, deadline_ms}.
        Each delta is applied by itself to private masters in `work_dir`, through the same exact integers. With
        `eval_cache`, the held-out blocks there are evaluated after every round.
        -> {masters_dir, manifest, digest, rounds: [{round, num_steps, num_tokens, loss_first, loss_last, ...,
        held_out_loss?}]}.
        """
        rounds: list[Reply] = []
        last: Request = request
        for done, last in rounds_alone(request, _genesis(request), lambda one: self.train(one, progress)):
            rounds.append({"round": len(rounds) + 1, **done})
            if request.get("eval_cache"):
                rounds[-1]["held_out_loss"] = self.evaluate({**last, "data_cache": request["eval_cache"]})["loss"]
        manifest = dict(last["manifest"])
        masters_dir = last["masters_dir"]
        return {"masters_dir": masters_dir, "manifest": manifest, "digest": _digest(manifest), "rounds": rounds}

    def evaluate(self, request: Request, _progress: Progress = ignore_progress) -> Reply:
        """Held-out loss of the shared weights.

        {base_dir, masters_dir, manifest, data_cache, part?: valid | train, max_blocks?} or, for all rows of
        a file, {..., path, block_length} -> {loss, num_tokens}.
        """
        import numpy as np

        if request.get("data_cache"):
            with BlockCache(Path(request["data_cache"])) as cache:
                part = request.get("part") or "valid"
                count = cache.size(part)
                wanted = min(count, int(request.get("max_blocks") or count))
                rows = np.arange(wanted) * count // max(wanted, 1)  # Spread: blocks lie sorted by document length.
                blocks = cache.read(part, rows) if len(rows) else None
        else:
            blocks = self._blocks_of(request)
        if blocks is None or not blocks.num_targets:
            raise DataError("there is nothing to evaluate on", hint="Hold out more rows, or give a larger file.")
        result = held_out_loss(
            self._model(request),
            tokens_NT=blocks.tokens,
            targets_NT=(blocks.flags & IS_TARGET).astype(np.bool_),
            positions_NT=blocks.positions(),
        )
        return asdict(result)

    def sample(self, request: Request, _progress: Progress = ignore_progress) -> Reply:
        """Continue a text greedily.

        {base_dir, masters_dir, manifest, prompt, max_new_tokens?} -> {text, num_tokens}; `text` does not
        repeat the prompt.
        """
        import torch

        model = self._model(request)
        tokenizer = self._session.tokenizer(Path(request["base_dir"]))
        ids = tokenizer(str(request["prompt"]), split_special_tokens=True)["input_ids"]
        if not ids:
            raise NodeError("the prompt is empty", exit_code=ExitCode.USAGE)
        input_ids = torch.tensor([ids], device=next(model.parameters()).device)
        with torch.inference_mode():
            output = model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=int(request.get("max_new_tokens") or 64),
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
        new = output[0, len(ids) :].tolist()
        return {"text": tokenizer.decode(new, skip_special_tokens=True), "num_tokens": len(new)}

    def _model(self, request: Request) -> Any:
        _use_threads(request)
        return self._session.model(
            Path(request["base_dir"]),
            masters_dir=Path(request["masters_dir"]),
            manifest=request["manifest"],
            device=choose_device(request.get("device") or "auto"),
        )

    def _blocks_of(self, request: Request) -> Blocks:
        rows = load_rows(Path(request["path"]))
        tokenizer = self._session.tokenizer(Path(request["base_dir"]))
        blocks, _ = make_blocks(rows.train, tokenizer, block_length=int(request["block_length"]))
        return blocks


def _use_threads(request: Request) -> None:
    import torch

    torch.set_num_threads(int(request.get("threads") or fair_threads()))


def _genesis(request: Request) -> Genesis:
    return open_genesis(Path(request["genesis_path"]).read_bytes())


def _digest(manifest: Mapping[str, str]) -> str:
    return manifest_digest(manifest).hex() if manifest else ""


def _contributed(done: Contributed) -> Reply:
    return {
        "num_tokens": done.steps.num_tokens,
        "num_steps": done.steps.num_steps,
        "loss_first": done.steps.loss_first,
        "loss_last": done.steps.loss_last,
        "stopped_by": done.steps.stopped_by,
        "micro_batch": done.steps.micro_batch,
        "codec": CODEC_PACKED,
        "num_bytes": done.num_bytes,
        "rank": done.rank,
        "encode_ms": done.encode_ms,
    }


def main() -> None:
    """Answer the daemon's calls until it is gone."""
    from fullrank_node.child_side import serve

    serve(Trainer().handlers())


if __name__ == "__main__":
    main()

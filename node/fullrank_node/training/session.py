"""The model as it stays loaded between two requests, and the masters that refresh it.

The base is loaded once. Adapted tensors are copied from the float32 masters, cast to what the device
computes in, and only where their hash has changed since the last request.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.model.base_load import load_base, load_tokenizer
from fullrank_node.model.master import MasterStore
from fullrank_node.training.hardware import compute_dtype

if TYPE_CHECKING:
    import torch


class ModelSession:
    """One loaded base model, brought to any state of the masters."""

    def __init__(self) -> None:
        self._base_dir: Path | None = None
        self._device: torch.device | None = None
        self._model: Any = None
        self._tokenizer: Any = None
        self._loaded: dict[str, str] = {}

    def model(self, base_dir: Path, *, masters_dir: Path, manifest: Mapping[str, str], device: "torch.device") -> Any:
        """The model with the weights of `manifest`, in evaluation mode and without gradients.

        `manifest` holds the SHA-256 (hex) of every adapted tensor by name.

        Raises:
            NodeError: When the base cannot be loaded, lacks a tensor of the manifest, or a master is not whole.
        """
        import torch

        fits = (self._base_dir, self._device) == (base_dir, device) and self._loaded.keys() <= manifest.keys()
        if self._model is None or not fits:
            self.forget()
            self._model = (
                load_base(base_dir).to(device=device, dtype=compute_dtype(device)).requires_grad_(requires_grad=False)
            )
            self._base_dir, self._device = base_dir, device
        masters = MasterStore(masters_dir)
        parameters = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, sha256 in manifest.items():
                if self._loaded.get(name) == sha256:
                    continue
                if name not in parameters:
                    raise NodeError(f"the base in {base_dir} has no tensor {name}", exit_code=ExitCode.CONFIG)
                parameter = parameters[name]
                master = masters.read(sha256, tuple(parameter.shape), name=name)
                self._loaded.pop(name, None)
                parameter.copy_(torch.from_numpy(master))
                self._loaded[name] = sha256
        return self._model.eval()

    def tokenizer(self, base_dir: Path) -> Any:
        """The tokenizer of a base.

        Raises:
            NodeError: When there is none that transformers can read.
        """
        if self._tokenizer is None or self._tokenizer[0] != base_dir:
            self._tokenizer = (base_dir, load_tokenizer(base_dir))
        return self._tokenizer[1]

    def adopt(self, base_dir: Path, model: Any, *, device: "torch.device") -> None:
        """Keep a base that was just loaded for something else, instead of loading it again."""
        self.forget()
        self._model = model.to(device=device, dtype=compute_dtype(device)).requires_grad_(requires_grad=False)
        self._base_dir, self._device = base_dir, device

    def forget(self) -> None:
        """Drop the model and free its memory."""
        self._model, self._base_dir, self._device, self._loaded = None, None, None, {}

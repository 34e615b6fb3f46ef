"""Loading the base: the model, what fingerprints it, and its float32 masters.

Implements protocol section 3 (hash of every tensor as float32) and the genesis part of section 6
(denormals and negative zeros of adapted tensors become +0 before the first round).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.model.base import base_differs, check_base_files
from fullrank_protocol.state import canonical_float32, tensor_sha256
from fullrank_protocol.wire import objects_pb2 as wire

if TYPE_CHECKING:
    from fullrank_node.model.master import MasterStore
    from fullrank_protocol.genesis import Genesis

ROUTER_NAMES = frozenset({"gate", "router", "shared_expert_gate"})
"""Last part of the names of mixture-of-experts routers: small changes there re-route every token."""


class HasModules(Protocol):
    """A genesis, as a value or as a wire message."""

    @property
    def modules(self) -> Iterable[Any]:
        """Adapted tensors: `name`, `out_features`, `in_features`."""


def load_base(path: Path) -> Any:
    """Load a causal language model as float32 on the CPU, in evaluation mode. Runs no code of the base.

    Raises:
        NodeError: When it is no causal language model that transformers knows, it is quantised, or
            its weights are incomplete.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(path, **options)
        if getattr(config, "quantization_config", None) is not None:
            raise NodeError(
                f"the base in {path} is quantised",
                hint="Use the unquantised model: updates are added to float32 weights.",
                exit_code=ExitCode.CONFIG,
            )
        model, info = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise NodeError(
            f"the base in {path} is not a causal language model that transformers can load: {_first_line(error)}",
            hint="Give a text generation model (Llama, Qwen, Mistral, Gemma, ...) in the Hugging Face format.",
            exit_code=ExitCode.CONFIG,
        ) from error
    if absent := sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]):
        raise NodeError(
            f"the base in {path} is not a causal language model, or is incomplete: it has no {absent[0]}"
            + (f" and {len(absent) - 1} more" if len(absent) > 1 else ""),
            hint="Give a text generation model with all of its weight files.",
            exit_code=ExitCode.CONFIG,
        )
    return model.eval()


def load_tokenizer(path: Path) -> Any:
    """Load the base's own tokenizer.

    Raises:
        NodeError: When there is none that transformers can read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise NodeError(
            f"the base in {path} has no tokenizer that transformers can load: {_first_line(error)}",
            hint="The directory needs tokenizer.json and tokenizer_config.json.",
            exit_code=ExitCode.CONFIG,
        ) from error
    if not tokenizer.is_fast:
        raise NodeError(
            f"the tokenizer of the base in {path} has no fast version, which masking answers needs",
            hint="Write the tokenizer as tokenizer.json.",
            exit_code=ExitCode.CONFIG,
        )
    return tokenizer


def fingerprint(model: Any) -> list[wire.TensorHash]:
    """Name, shape and SHA-256 (float32, little-endian) of every parameter, ascending by name.

    Tied parameters count once, under the first name that the model lists.
    """
    return [
        wire.TensorHash(name=name, shape=list(parameter.shape), sha256=tensor_sha256(_float32(parameter)))
        for name, parameter in sorted(model.named_parameters())
    ]


def check_base(model: Any, path: Path, genesis: "Genesis") -> None:
    """Compare a loaded base with the genesis, files first, then tensor by tensor.

    Raises:
        NodeError: Naming the first file or tensor that differs.
    """
    check_base_files(path, genesis)
    parameters = dict(model.named_parameters())
    required = {tensor.name: tensor for tensor in genesis.base.tensors}
    for name in sorted(parameters.keys() | required.keys()):
        if name not in required:
            raise base_differs(name, found="a tensor", required="none of that name", path=path)
        if name not in parameters:
            raise base_differs(name, found="no such tensor", required="one", path=path)
        found_shape, required_shape = tuple(parameters[name].shape), tuple(required[name].shape)
        if found_shape != required_shape:
            raise base_differs(name, found=f"shape {found_shape}", required=f"{required_shape}", path=path)
        found = tensor_sha256(_float32(parameters[name]))
        if found != required[name].sha256:
            raise base_differs(
                name, found=f"SHA-256 {found.hex()[:16]}", required=required[name].sha256.hex()[:16], path=path
            )


def adaptable_modules(model: Any) -> list[wire.Module]:
    """Every linear layer but mixture-of-experts routers, and the embeddings, ascending by parameter name.

    The head is among them where it has a matrix of its own; where it shares that of the embeddings, it changes with
    them. Resolved here once: what "all linear layers" means differs between library versions.

    Raises:
        NodeError: When there is no linear layer. Transposed layers (`Conv1D`, as GPT-2 has) are not adapted.
    """
    from torch import nn

    listed = {name for name, _ in model.named_parameters()}  # A shared matrix once.
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    layers = {
        f"{name}.weight": layer
        for name, layer in model.named_modules()
        if (layer is embeddings and isinstance(layer, nn.Embedding)) or type(layer) is nn.Linear
        if name.rpartition(".")[2] not in ROUTER_NAMES and f"{name}.weight" in listed
    }
    if not any(layer is not embeddings and layer is not head for layer in layers.values()):
        raise NodeError(
            f"{type(model).__name__} has no linear layer to adapt besides its head",
            hint="Models of the GPT-2 kind (Conv1D layers) are not supported; Llama, Qwen, Mistral and Gemma are.",
            exit_code=ExitCode.CONFIG,
        )
    shapes = {name: layer.weight.shape for name, layer in sorted(layers.items())}
    return [
        wire.Module(name=name, kind=wire.LINEAR, out_features=shape[0], in_features=shape[1])
        for name, shape in shapes.items()
    ]


def embedding_layers(model: Any) -> tuple[str, str | None]:
    """Names of a language model's input embeddings, and of the head layer that shares their matrix.

    Returns:
        The second is None where the head has a matrix of its own, or there is no head.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(layer): name for name, layer in model.named_modules()}
    shared = head is not None and head.weight is embeddings.weight
    return names[id(embeddings)], names[id(head)] if shared else None


def embedding_layers_of_base(path: Path) -> tuple[str, str | None]:
    """`embedding_layers` of a base directory; reads its configuration alone, no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return embedding_layers(AutoModelForCausalLM.from_config(config))


def import_masters(model: Any, genesis: HasModules, masters: "MasterStore") -> dict[str, str]:
    """Write the adapted tensors of a base as float32 masters: the state of the genesis.

    Returns:
        The manifest, SHA-256 by tensor name.
    """
    parameters = dict(model.named_parameters())
    return {
        module.name: masters.write(module.name, canonical_float32(_float32(parameters[module.name])))
        for module in genesis.modules
    }


def _float32(parameter: Any) -> npt.NDArray[np.float32]:
    return cast("npt.NDArray[np.float32]", parameter.detach().float().cpu().contiguous().numpy())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]

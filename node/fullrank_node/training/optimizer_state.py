"""What training remembers between two contributions: AdamW's state, rounding residuals, place in the data.

AdamW's moments and the residuals belong to one A, for one swarm, member, mode and rank (protocol/decisions/0015). Of
what they say about it, only the size of the gradients holds for the next A, too: second moments go on from their
mean over components. The place in the data outlives even that. All of it is one file, replaced when a delta is
finished: a node killed in between repeats that delta and no more.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fullrank_node.files import write_atomically

if TYPE_CHECKING:
    import torch

_VERSION = "fullrank-training-2"
_FILE_NAME = "training.safetensors"

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """A point at which a delta was finished.

    Attributes:
        key: Names the A that moments and residuals belong to.
        data: Fingerprint of the data cache that `position` counts in.
        position: Blocks consumed so far, over all passes.
        num_steps: AdamW's step count, for its bias correction.
        moments: First and second moments by parameter name.
        means: Slow means of the gradients by parameter name; empty where the optimiser kept none.
        num_mean_steps: Steps that they have seen.
        residuals: What rounding has taken from each B so far, by module name.
    """

    key: str = ""
    data: str = ""
    position: int = 0
    num_steps: int = 0
    moments: Mapping[str, tuple[Float32Array, Float32Array]] = field(default_factory=dict)
    means: Mapping[str, Float32Array] = field(default_factory=dict)
    num_mean_steps: int = 0
    residuals: Mapping[str, Float32Array] = field(default_factory=dict)

    def position_in(self, data: str) -> int:
        """Where to go on in a data cache; 0 when it is not the one that was read before."""
        return self.position if self.data == data else 0


def state_key(*, swarm: bytes, member: bytes, mode: str, rank: int, period: int) -> str:
    """Names one A: moments and residuals of another one are of no use as they are."""
    return f"{swarm.hex()}:{member.hex()}:{mode}:{rank}:{period}"


def state_for(state: TrainingState, key: str, *, component_axes: Mapping[str, int]) -> TrainingState:
    """What of a state helps to go on with the A that `key` names.

    All of it, where it is the same A. Where only the period is another, rows of the new A are drawn as those of the old
    one were, so every component of B has gradients of the same size in the mean: second moments become their mean over
    components, and the step count goes on. Without that, AdamW would have to learn them anew, and most of what a
    period can learn would be lost (protocol/decisions/0015). First moments, means and residuals point somewhere else.

    Args:
        state: As saved.
        key: See `state_key`.
        component_axes: The axis along which the components of each parameter's B lie, by parameter name.
    """
    if state.key == key:
        return state
    if state.key.rpartition(":")[0] != key.rpartition(":")[0] or not state.moments.keys() <= component_axes.keys():
        return forgotten(state)
    moments = {
        name: (np.zeros_like(first), _mean_over(second, component_axes[name]))
        for name, (first, second) in state.moments.items()
    }
    return replace(state, moments=moments, means={}, num_mean_steps=0, residuals={})


def forgotten(state: TrainingState) -> TrainingState:
    """The place in the data, and nothing else."""
    return TrainingState(data=state.data, position=state.position)


def _mean_over(values: Float32Array, axis: int) -> Float32Array:
    mean = np.broadcast_to(values.mean(axis=axis, keepdims=True, dtype=np.float64), values.shape)
    found: Float32Array = np.array(mean, dtype=np.float32)
    return found


def load_state(directory: Path) -> TrainingState:
    """The state as last saved, or a fresh one when there is none that can be read."""
    try:
        with safe_open(directory / _FILE_NAME, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("version") != _VERSION:
                return TrainingState()
            arrays: dict[str, Float32Array] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):  # Losing it costs a few steps of warming up, and no more.
        return TrainingState()
    facts = json.loads(metadata["facts"])
    first = {name.removeprefix("first."): array for name, array in arrays.items() if name.startswith("first.")}
    return TrainingState(
        **facts,
        moments={name: (array, arrays[f"second.{name}"]) for name, array in first.items()},
        means={name.removeprefix("mean."): array for name, array in arrays.items() if name.startswith("mean.")},
        residuals={
            name.removeprefix("residual."): array for name, array in arrays.items() if name.startswith("residual.")
        },
    )


def save_state(directory: Path, state: TrainingState) -> None:
    """Replace the saved state.

    Raises:
        NodeError: When the disk is full.
    """
    arrays: dict[str, Float32Array] = {}
    for name, (first, second) in state.moments.items():
        arrays |= {f"first.{name}": first, f"second.{name}": second}
    arrays |= {f"mean.{name}": array for name, array in state.means.items()}
    arrays |= {f"residual.{name}": array for name, array in state.residuals.items()}
    names = ("key", "data", "position", "num_steps", "num_mean_steps")
    facts = {name: getattr(state, name) for name in names}
    directory.mkdir(parents=True, exist_ok=True)
    metadata = {"version": _VERSION, "facts": json.dumps(facts)}
    write_atomically(directory / _FILE_NAME, cast("bytes", save(arrays, metadata=metadata)))


def restore_moments(
    optimizer: "torch.optim.Optimizer", parameters: Mapping[str, "torch.nn.Parameter"], state: TrainingState
) -> bool:
    """Give the optimiser the moments of `state`; False, and nothing done, when they do not fit the parameters."""
    import torch

    from fullrank_node.training.optimizer import AveragedAdamW

    if state.moments.keys() != parameters.keys():
        return False
    if any(state.moments[name][0].shape != tuple(parameter.shape) for name, parameter in parameters.items()):
        return False
    for name, parameter in parameters.items():
        first, second = state.moments[name]
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.num_steps)),
            "exp_avg": torch.from_numpy(first.copy()).to(parameter.device),
            "exp_avg_sq": torch.from_numpy(second.copy()).to(parameter.device),
        }
        if isinstance(optimizer, AveragedAdamW):
            mean = state.means.get(name, np.zeros_like(first))
            optimizer.state[parameter] |= {
                "mean_step": torch.tensor(float(state.num_mean_steps)),
                "mean": torch.from_numpy(mean.copy()).to(parameter.device),
            }
    return True


def read_moments(
    optimizer: "torch.optim.Optimizer", parameters: Mapping[str, "torch.nn.Parameter"]
) -> dict[str, tuple[Float32Array, Float32Array]]:
    """Copies of AdamW's moments by parameter name."""
    states = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
    return {name: (_copied(state["exp_avg"]), _copied(state["exp_avg_sq"])) for name, state in states.items()}


def read_means(
    optimizer: "torch.optim.Optimizer", parameters: Mapping[str, "torch.nn.Parameter"]
) -> dict[str, Float32Array]:
    """Copies of the slow means by parameter name; empty where the optimiser keeps none."""
    states = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
    return {name: _copied(state["mean"]) for name, state in states.items() if "mean" in state}


def _copied(tensor: "torch.Tensor") -> Float32Array:
    return np.array(tensor.float().cpu().numpy())

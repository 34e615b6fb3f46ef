"""What this machine trains on: device, number type, threads.

Float32 masters stay on the disk whatever is chosen here; this decides only how the model computes.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fullrank_node.errors import ExitCode, NodeError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cuda", "mps", "cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The device training runs on, for people.

    Attributes:
        device: `cuda`, `mps` or `cpu`.
        memory_bytes: Of the device; of the machine for `cpu` and `mps`.
        dtype: Number type of the forward and backward pass.
    """

    device: str
    name: str
    memory_bytes: int
    num_cores: int
    dtype: str


def available_cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fair_threads(*, nodes_on_machine: int = 1, limit: int | None = None) -> int:
    """Threads for one of several training processes on one machine.

    Three processes with two threads each on two cores are many times slower than with one thread
    each (measured: 2.7 s against 0.36 s a step), so cores are shared out and never oversubscribed.
    """
    share = max(1, available_cores() // max(1, nodes_on_machine))
    return min(share, limit) if limit else share


def choose_device(wanted: str = "auto") -> "torch.device":
    """The device to train on.

    Raises:
        NodeError: When the device is unknown or this machine does not have it.
    """
    import torch

    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind = wanted.partition(":")[0]
    present: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if kind not in present:
        raise NodeError(f"found device {wanted!r}, required one of {', '.join(DEVICES)}", exit_code=ExitCode.CONFIG)
    if not present[kind]():
        raise NodeError(
            f"this machine has no usable {kind} device",
            hint="Set train.device to auto or cpu, or install a torch build for the device.",
            exit_code=ExitCode.CONFIG,
        )
    return torch.device(wanted)


def compute_dtype(device: "torch.device") -> "torch.dtype":
    """Bfloat16 where the device is built for it, float32 elsewhere."""
    import torch

    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32


def describe_hardware(wanted: str = "auto") -> Hardware:
    """What `doctor` and `status` say about the device.

    Raises:
        NodeError: When the device is unknown or this machine does not have it.
    """
    import psutil
    import torch

    device = choose_device(wanted)
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
    else:
        name, memory = device.type.upper(), psutil.virtual_memory().total
    return Hardware(
        device=device.type,
        name=name,
        memory_bytes=memory,
        num_cores=available_cores(),
        dtype=str(compute_dtype(device)).removeprefix("torch."),
    )

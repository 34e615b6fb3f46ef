"""What an arm of the benchmark is: a way in which nodes learn from their blocks, round after round."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from fullrank_protocol.delta import Delta

if TYPE_CHECKING:
    from learning.run import Run

Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]

Weights = Mapping[str, Float32Array]
"""Every parameter of a model by name."""

ADAPTER = "adapter"
WHOLE = "whole"


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterRound:
    """Where an arm stands after a round.

    Attributes:
        models: The model that the nodes share, or one for each node that learns alone.
        num_bytes: What each contribution of this round was sent in; empty where nothing is sent.
        roundings: How often the weights have been rounded to float32 since the base.
        merged: The round's deltas, expanded, each with its weight, where the arm has such.
    """

    models: tuple[Weights, ...]
    num_bytes: tuple[float, ...]
    roundings: int
    merged: tuple[tuple[Delta, float], ...] = ()


class Arm(ABC):
    """One way of learning; its fields are all that tells it from others.

    Attributes:
        trains: What a step trains, `adapter` or `whole`: they differ in time.
    """

    trains: ClassVar[str]

    @property
    @abstractmethod
    def name(self) -> str:
        """Short and unique."""

    @property
    @abstractmethod
    def anchor_rate(self) -> float:
        """Middle of the rates that are tried first."""

    @abstractmethod
    def rounds(self, run: "Run") -> Iterator[AfterRound]:
        """Learn, and stop after every round to be looked at.

        Raises:
            NodeError: The loss has become infinite, or a delta cannot be encoded.
            RejectError: The weights have become infinite.
        """

    def to_json(self) -> dict[str, Any]:
        """Kind and fields."""
        return {"kind": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]

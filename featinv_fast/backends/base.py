"""What a backend is: it says why it cannot serve a request, or loads the engine."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from featinv_fast.config import Precision
from featinv_fast.engine.folder import EngineFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """How an engine is to be run.

    Attributes:
        engine: the checked engine folder.
        device: where to run; never "auto".
        precision: `None` is the engine's own.
        threads: CPU threads of one operation; `None` leaves the choice to the backend's library.
        trust_engine: run native code of the engine (TensorRT plans) that was not built here.
        kernels: what the torch backend's layers call. "auto": fused operations on an NVIDIA GPU, each by the provider
            that suits it, and plain layers on a CPU; "off": plain layers; a provider's name, or one for each operation:
            fused operations by that provider and no other.
        compiled: whether the torch backend compiles what runs in every step, and the decoder, by `torch.compile`.
        two_streams: whether the torch backend runs the ControlNet beside the U-Net's encoder, on a second CUDA stream.
        specialization: when TensorRT for RTX compiles kernels for the shapes at hand: see `RtxSession`.
    """

    engine: EngineFolder
    device: torch.device
    precision: Precision | None = None
    threads: int | None = None
    trust_engine: bool = False
    kernels: str | Mapping[str, str] = "auto"
    compiled: bool = False
    two_streams: bool = False
    specialization: str = "auto"


class Session(abc.ABC):
    """An engine loaded by a backend. Not safe for concurrent calls: `Runtime` serialises them.

    Attributes:
        backend: name of the backend.
        device: where the graphs run and where `run` returns its result.
        precision: of the graphs' arithmetic.
        providers: for each fused operation that its layers call, the provider asked for.
        compiled: the graphs that `torch.compile` compiles.
        two_streams: whether the ControlNet runs beside the U-Net's encoder.
        specialization: when kernels are compiled for the shapes at hand; None where they never are at run time.
    """

    backend: str
    device: torch.device
    precision: Precision
    providers: Mapping[str, str] = {}
    compiled: tuple[str, ...] = ()
    two_streams: bool = False
    specialization: str | None = None

    @abc.abstractmethod
    def run(self, graph: str, *inputs: Tensor) -> Tensor:
        """Run a graph of the engine.

        Args:
            graph: a name of `EngineFolder.graph_specs`.
            inputs: float32 tensors on `device`, in the order of the graph's spec.

        Returns:
            The graph's output, float32 on `device`, not shared with a later call.
        """

    def capture_problems(self) -> list[str]:
        """Why calls of `run` cannot become part of a CUDA graph; empty when they can."""
        return [f"the {self.backend} backend launches its work itself"]


class Backend(Protocol):
    """One way to run engines."""

    name: str

    def problems_here(self, device: torch.device) -> list[str]:
        """Why this backend can run no engine on `device` here; empty when it can."""

    def not_supported_reasons(self, request: Request) -> list[str]:
        """Why this backend cannot serve `request` here; empty when it can."""

    def load(self, request: Request) -> Session:
        """Load the engine. Call it only where there are no reasons not to."""

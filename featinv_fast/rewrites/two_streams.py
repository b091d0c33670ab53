"""Exact: the ControlNet beside the U-Net's encoder, each on a CUDA stream of its own.

Neither needs the other before their results are added, and at small batches one network's kernels leave most of a GPU
idle: 31% fewer kernels wait for another one. Two streams also share the GPU's caches and cost two waits a step, and
with large batches there is nothing idle to fill. Not yet run on a GPU, so it is off unless it is asked for;
`benchmarks/gpu_suite.py` measures it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featinv_fast.models import Denoiser
from featinv_fast.rewrites.shared_prefix import ForkedDenoiser, take_children


class SideBySideDenoiser(ForkedDenoiser):
    """A denoiser whose ControlNet runs on a second stream. Both streams can be captured in one CUDA graph."""

    def __init__(self, denoiser: ForkedDenoiser) -> None:
        nn.Module.__init__(self)
        take_children(self, denoiser)
        self._side: torch.cuda.Stream | None = None  # made when it is needed: copies of this module have their own

    def encode(
        self, x: Tensor, condition: Tensor, time: Tensor, embedded: Tensor, context: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As `Denoiser.encode`. When it returns, the caller's stream waits for both."""
        main = torch.cuda.current_stream(x.device)
        if self._side is None:
            self._side = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
        self._side.wait_stream(main)
        try:
            with torch.cuda.stream(self._side):
                controls = self.controlnet(x, condition, time, context)
            activations = self.unet.encoder(x, embedded, context)
        finally:
            # Also after an error: the inputs, which the caller may free from now on, are read on the other stream, and
            # a capture with a stream that nobody waits for would fail for that reason and hide the true one.
            main.wait_stream(self._side)
        if not torch.cuda.is_current_stream_capturing():
            # Their memory is the side stream's: nobody else's work on it may have that back before `main` is done. In
            # a graph, nobody else is there, and memory that is noted so would not be used again within it.
            for control in controls:
                control.record_stream(main)
        return controls, activations


def side_by_side(denoiser: Denoiser) -> SideBySideDenoiser:
    """`denoiser` of an `EngineModel`, taken apart and put together again for two streams.

    Args:
        denoiser: weights loaded and layers fused; do not use it afterwards.
    """
    assert type(denoiser) is ForkedDenoiser, "not a denoiser of an engine, or the rewrite was applied before"
    return SideBySideDenoiser(denoiser)


def stream_problems(device: torch.device) -> list[str]:
    """Why there are no two streams on `device`; empty where there are."""
    return [] if device.type == "cuda" else [f"two streams are for NVIDIA GPUs, not for {device}"]

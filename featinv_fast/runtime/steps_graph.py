"""Some steps of the sampling loop, and the decoder behind them, on static tensors and as a CUDA graph."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from featinv_fast.backends import Session
from featinv_fast.backends.cuda_launch import capture
from featinv_fast.runtime.sampling import Plan, aligned_rows, denoise


class StepsGraph:
    """Some steps and, with `decode`, the decoder behind them, for one batch size: static tensors and their graph.

    Args:
        session: the engine.
        plan, condition, latents: of a run like those to come: their shapes count.
        batch: items of the static tensors.
        count: steps; none for the decoder alone.
        decode: whether the decoder follows.

    Attributes:
        size: steps and decoders.
        latents: [batch, 4, h, w], where the work begins and what it ends with.
        image: [batch, 3, 8h, 8w] where the decoder follows and the work was warmed up.
    """

    def __init__(
        self, session: Session, plan: Plan, condition: Tensor, latents: Tensor, batch: int, count: int, *, decode: bool
    ) -> None:
        self.batch, self.count, self.decode = batch, count, decode
        self.size = count + decode
        self.image: Tensor | None = None
        self._session = session
        self.latents = torch.zeros((batch, *latents.shape[1:]), dtype=torch.float32, device=session.device)
        # Noise and history are always there, multiplied by zero where a sampler has none: one graph serves them all.
        self._history = torch.zeros_like(self.latents)
        self._noise = aligned_rows(self.latents.new_zeros(count, *self.latents.shape))
        self._condition = None
        if count:
            shape = (batch, *condition.shape[1:])
            self._condition = condition.new_zeros(shape).contiguous(memory_format=torch.channels_last)
        self._plan = dataclasses.replace(
            plan,
            time_bias=aligned_rows(plan.time_bias.new_zeros(count, *plan.time_bias.shape[1:])),
            coefficients=aligned_rows(plan.coefficients.new_zeros(count, *plan.coefficients.shape[1:])),
            control_scales=torch.zeros_like(plan.control_scales),
            guidance_scale=None if plan.guidance_scale is None else torch.zeros_like(plan.guidance_scale),
        )
        self._captured: Any = None

    def warm_up(self, stream: Any, caller: Any) -> None:
        """Run a step and the decoder once on blank items, so that libraries and kernels are ready to be captured.

        Every step of the graph launches what the first one does: the rows of its tables are aligned alike.

        Args:
            stream: to run on; not the one to capture on. What cuBLAS writes to meanwhile belongs to a stream, and torch
                frees it with any graph that was captured there: it has to be memory of the graphs' own pool.
            caller: the stream on which the tensors were made.
        """
        stream.wait_stream(caller)
        with torch.cuda.stream(stream):
            self._work(min(self.count, 1))
        caller.wait_stream(stream)

    def capture(self, stream: Any, pool: Any) -> None:
        """Capture the work.

        Raises:
            RuntimeError: it cannot be captured, or memory ran out.
        """
        self._captured = capture(lambda: self._work(self.count), stream, pool)

    def start(self, plan: Plan, condition: Tensor, latents: Tensor) -> None:
        """Write what holds for all steps. Items beyond the batch keep what they have: nobody reads their results."""
        self.latents[: len(latents)].copy_(latents)
        if self._condition is None:
            return
        self._condition[: len(condition)].copy_(condition)
        self._plan.control_scales.copy_(plan.control_scales)
        if self._plan.guidance_scale is not None and plan.guidance_scale is not None:
            self._plan.guidance_scale.copy_(plan.guidance_scale)
        self._history.zero_()

    def load_rows(self, plan: Plan, steps: range) -> None:
        """Write the rows of as many steps as the graph has."""
        self._plan.time_bias.copy_(plan.time_bias[steps.start : steps.stop])
        self._plan.coefficients.copy_(plan.coefficients[steps.start : steps.stop])

    def load_noise(self, place: int, noise: Tensor) -> None:
        """Write the noise [B, 4, h, w] of one step of the graph. The others' is multiplied by zero."""
        self._noise[place, : len(noise)].copy_(noise)

    def replay(self) -> None:
        """Launch the graph on the current stream."""
        self._captured.replay()

    def _work(self, count: int) -> None:
        latents, history = self.latents, self._history
        for step in range(count):
            assert self._condition is not None
            latents, history = denoise(
                self._session, self._plan, step, self._condition, latents, self._noise[step], history
            )
        if count:
            self.latents.copy_(latents)
            self._history.copy_(history)
        if self.decode:
            image = self._session.run("decoder", self.latents)
            if self.image is None:
                self.image = torch.empty_like(image)
            self.image.copy_(image)

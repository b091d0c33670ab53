"""The sampling loop and the decoder as CUDA graphs on static tensors, one set for each bucket of batch sizes.

A step of the denoiser launches about a thousand kernels, which takes a CPU longer than a GPU needs to run them; a graph
launches them at once. Written for NVIDIA GPUs and checked on a CPU with a double of torch's graphs that records
operations and repeats them; not yet run on a GPU.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from featinv_fast.backends import Session, is_out_of_memory
from featinv_fast.backends.capture_thread import in_capture_thread
from featinv_fast.errors import BackendUnavailableError
from featinv_fast.runtime.graph_cache import GraphCache
from featinv_fast.runtime.sampling import Plan, sample, start_noise
from featinv_fast.runtime.steps_graph import StepsGraph

logger = logging.getLogger(__name__)


class CudaGraphs(enum.StrEnum):
    """How the loop uses CUDA graphs."""

    AUTO = "auto"  # as STEP where that is possible; call by call where it is not, which the log and `info` explain
    OFF = "off"  # every operation is launched on its own
    STEP = "step"  # one graph for a step and one for the decoder: they serve any number of steps, and Ctrl-C is heard
    LOOP = "loop"  # one graph for all steps and the decoder: Ctrl-C is heard when the batch is done


class Loop:
    """The loop and the decoder for one session, operation by operation.

    Args:
        session: the engine.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(
        self,
        plan: Plan,
        condition: Tensor,
        latents: Tensor,
        generators: Sequence[torch.Generator],
        on_step: Callable[[], object],
        *,
        decode: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Run all steps on one batch; see `sampling.sample`.

        Returns:
            The final latents [B, 4, h, w] and, with `decode`, the images [B, 3, 8h, 8w].
        """
        final = sample(self.session, plan, condition, latents, generators, on_step)
        return final, self.session.run("decoder", final) if decode else None


class GraphLoop(Loop):
    """The same by CUDA graphs, which are captured when a bucket first needs them; `GraphCache` says how many are kept.

    Args:
        session: an engine whose work can be captured.
        mode: AUTO falls back to single launches, once and for all, where a capture fails.
        largest: most items of a batch.

    Raises:
        BackendUnavailableError: graphs were asked for by name, and the session's work cannot be captured.
    """

    def __init__(self, session: Session, mode: CudaGraphs, largest: int) -> None:
        super().__init__(session)
        self.mode = mode
        self.largest = largest
        self.reasons = [] if mode is CudaGraphs.OFF else session.capture_problems()
        if self.reasons and mode is not CudaGraphs.AUTO:
            raise self._refusal(self.reasons)
        self._graphs = GraphCache()
        self._warming: Any = None
        self._stream: Any = None

    def __call__(
        self,
        plan: Plan,
        condition: Tensor,
        latents: Tensor,
        generators: Sequence[torch.Generator],
        on_step: Callable[[], object],
        *,
        decode: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Run all steps on one batch; see `Loop`.

        Raises:
            BackendUnavailableError: graphs were asked for by name, and the work cannot be captured.
        """
        if self.mode is not CudaGraphs.OFF and not self.reasons:
            # Graphs are launched, and events recorded, on the current device. Their tensors are written outside of
            # inference mode too, unless all of it is inside.
            with torch.cuda.device(self.session.device), torch.inference_mode():
                whole = self.mode is CudaGraphs.LOOP
                # Captured before anything is drawn from the generators: a fallback finds them untouched.
                steps = self._graph(plan, condition, latents, len(plan.table) if whole else 1, decode=decode and whole)
                decoder = steps
                if steps is not None and decode and not whole:
                    decoder = self._graph(plan, condition, latents, 0, decode=True)
                if steps is not None and decoder is not None:
                    final = self._replay(steps, plan, condition, latents, generators, on_step)
                    return final, self._decode(decoder, steps, plan, condition, final) if decode else None
        return super().__call__(plan, condition, latents, generators, on_step, decode=decode)

    def info(self) -> dict[str, Any]:
        """What runs, as plain data: "mode", the "captured" graphs, and the "reasons" why there are none."""
        mode = CudaGraphs.OFF if self.reasons else CudaGraphs.STEP if self.mode is CudaGraphs.AUTO else self.mode
        captured = [{"batch": g.batch, "steps": g.count, "decoder": g.decode} for g in self._graphs]
        return {"mode": str(mode), "captured": captured, "reasons": self.reasons}

    def _graph(self, plan: Plan, condition: Tensor, latents: Tensor, count: int, *, decode: bool) -> StepsGraph | None:
        """The graph of so many steps for this batch's bucket; `None` where it cannot be captured.

        Running out of memory gives that of all graphs back, and is raised.
        """
        batch = bucket(len(latents), self.largest)
        # Of the plan, only the number of branches is frozen in a graph.
        key = (batch, count, decode, len(plan.control_scales) if count else 0)
        graph = self._graphs.get(key)
        if graph is not None:
            return graph
        self._graphs.make_room(count + decode)
        if self._stream is None:
            self._warming = torch.cuda.Stream(self.session.device)  # type: ignore[no-untyped-call]
            self._stream = torch.cuda.Stream(self.session.device)  # type: ignore[no-untyped-call]
        caller = torch.cuda.current_stream()
        try:
            graph = made = StepsGraph(self.session, plan, condition, latents, batch, count, decode=decode)
            in_capture_thread(lambda: made.warm_up(self._warming, caller), self._stream.device)
            problem = _capture_problem(made, self._stream, self._graphs.pool)
        except Exception as error:
            if is_out_of_memory(error):
                self._graphs.clear()
            raise
        if problem is not None:
            self._refuse(problem)
            return None
        self._graphs.put(key, graph)
        return graph

    def _refuse(self, error: Exception) -> None:
        reasons = [f"a capture failed: {str(error).partition(chr(10))[0]}"]
        if self.mode is not CudaGraphs.AUTO:
            raise self._refusal(reasons) from error
        self._graphs.clear()
        self.reasons = reasons
        logger.warning("no CUDA graphs, launching operation by operation from now on: %s", self.reasons[0])

    def _refusal(self, reasons: list[str]) -> BackendUnavailableError:
        return BackendUnavailableError(
            "the sampling loop cannot run as CUDA graphs here",
            given=f"cuda_graphs={str(self.mode)!r}, device {self.session.device}",
            reasons={self.session.backend: reasons},
            remedy="use cuda_graphs='auto' or 'off', or the torch backend on an NVIDIA GPU",
            command_remedy="leave out --cuda-graphs, or name --backend torch on an NVIDIA GPU",
        )

    def _replay(
        self,
        steps: StepsGraph,
        plan: Plan,
        condition: Tensor,
        latents: Tensor,
        generators: Sequence[torch.Generator],
        on_step: Callable[[], object],
    ) -> Tensor:
        """All steps by graphs; the final latents [B, 4, h, w]."""
        steps.start(plan, condition, latents)
        before: Any = None
        for first in range(0, len(plan.table), steps.count):
            chosen = range(first, first + steps.count)
            steps.load_rows(plan, chosen)
            for place, step in enumerate(chosen):
                if plan.table.C[step] != 0.0:
                    steps.load_noise(place, start_noise(generators, latents.shape[1:]))
            steps.replay()
            # One replay is ahead of the one waited for: the GPU is never idle, and Ctrl-C is heard after a step.
            now = torch.cuda.Event()  # type: ignore[no-untyped-call]
            now.record()
            if before is not None:
                _finish(before, steps.count, on_step)
            before = now
        _finish(before, steps.count, on_step)
        return steps.latents[: len(latents)].clone()

    def _decode(self, decoder: StepsGraph, steps: StepsGraph, plan: Plan, condition: Tensor, final: Tensor) -> Tensor:
        """The images [B, 3, 8h, 8w]; where the steps' graph goes on to them, they are there."""
        if decoder is not steps:
            decoder.start(plan, condition, final)
            decoder.replay()
        assert decoder.image is not None
        return decoder.image[: len(final)].clone()


def bucket(count: int, largest: int) -> int:
    """The batch size whose graphs serve `count` items: 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on, `largest` at most."""
    power = 1 << (count - 1).bit_length()
    halfway = 3 * power // 4
    size = halfway if power > 2 and count <= halfway else power
    return max(count, min(size, largest))


def _capture_problem(graph: StepsGraph, stream: Any, pool: Any) -> Exception | None:
    """Capture; what stands in the way where it is not memory, which is raised."""
    try:
        in_capture_thread(lambda: graph.capture(stream, pool), stream.device)
    except RuntimeError as error:
        # What a failed capture says at its end may hide what made it fail.
        cause = error.__context__ if isinstance(error.__context__, Exception) else error
        if is_out_of_memory(cause):
            raise cause from None
        if is_out_of_memory(error):
            raise
        return cause
    return None


def _finish(event: Any, steps: int, on_step: Callable[[], object]) -> None:
    event.synchronize()
    for _ in range(steps):
        on_step()

"""Graphs of an engine compiled by `torch.compile` on first use, for the torch backend.

The batch is a free size in the compiled code: there is one code for a single item and one for more, and on a CPU
another one from the sizes on where torch's convolutions are computed differently. Never a call runs uncompiled: what
cannot be compiled is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from featinv_fast.backends.compiler import quiet_torch
from featinv_fast.backends.memory import is_out_of_memory
from featinv_fast.errors import BackendUnavailableError

# What runs in every step, and the decoder. The others run once for an image or a call, and their sizes vary more.
COMPILED_GRAPHS = ("denoiser", "denoiser_unguided", "decoder")
COMPILER = "inductor"


class CompiledGraph:
    """A graph that is compiled when it first runs, and again for sizes of batches that its code is not for.

    Args:
        name: of the graph.
        graph: with its weights, on its device.
    """

    def __init__(self, name: str, graph: Callable[..., Tensor]) -> None:
        self.name = name
        # Beyond Dynamo's limit of codes for one function it would run uncompiled, with a warning; `fullgraph` makes
        # that an error.
        self._run: Callable[..., Tensor] = torch.compile(
            _function_of_its_own(graph), backend=COMPILER, fullgraph=True, dynamic=False
        )

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run the graph; those of its inputs with four axes are batches.

        Raises:
            BackendUnavailableError: it cannot be compiled.
            OutOfMemoryError: of torch; memory ran out.
        """
        with quiet_torch():
            from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

            try:
                return self._run(*map(_with_free_batch, inputs))
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                cause: Any = getattr(error, "inner_exception", error)
                if is_out_of_memory(cause):
                    raise cause from None
                raise BackendUnavailableError(
                    f"torch cannot compile the graph {self.name}",
                    given=f"torch {torch.__version__}",
                    reasons={"torch": [f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"]},
                    remedy="leave out compiled; the layers then run one by one",
                    command_remedy="leave out --compiled; the layers then run one by one",
                ) from error


def _function_of_its_own(graph: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`graph` as a function whose code object is new: Dynamo counts by them, and would all graphs of a class together.

    With a second engine in the process, the limit would be reached by what neither of them does alone.
    """

    def run(*inputs: Tensor) -> Tensor:
        return graph(*inputs)

    return FunctionType(run.__code__.replace(), run.__globals__, closure=run.__closure__)


def _with_free_batch(x: Tensor) -> Tensor:
    """`x`, with its first axis marked as of any size where it is a batch of several items."""
    if x.ndim != 4 or len(x) == 1:
        return x
    x = x.detach()  # another tensor of the same values: the mark stays ours
    torch._dynamo.mark_dynamic(x, 0)  # noqa: SLF001 -- documented
    return x

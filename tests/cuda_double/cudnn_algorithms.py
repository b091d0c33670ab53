"""Which algorithm cuDNN runs a convolution by: torch's rule (aten/src/ATen/native/cudnn/Conv_v8.cpp) on the CPU.

Each thread keeps the algorithm of every convolution that it has run. The key has the shapes, layouts, types and
alignments, `deterministic` and `allow_tf32`, but not `benchmark`: what ran once untimed stays untimed in that thread.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

Convolution = tuple[Any, ...]


class Algorithms:
    """The algorithms of a process.

    Attributes:
        timings: the convolutions whose algorithms were timed, each time.
        captured: (convolution, whether its algorithm was timed) of all that were recorded in captures.
    """

    def __init__(self) -> None:
        self.timings: list[Convolution] = []
        self.captured: list[tuple[Convolution, bool]] = []
        self._cache = threading.local()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Look at every convolution."""
        convolve = F.conv2d

        def conv2d(x: Tensor, weight: Tensor, *arguments: Any, **named: Any) -> Tensor:
            self.choose(x, weight, arguments[1:], tuple(named.items()))
            return convolve(x, weight, *arguments, **named)

        patch.setattr(F, "conv2d", conv2d)

    def choose(self, x: Tensor, weight: Tensor, *options: Any) -> bool:
        """The algorithm of a convolution: whether it is a timed one."""
        known: dict[Convolution, bool] = self._cache.__dict__
        flags = torch.backends.cudnn
        tensors = tuple((t.dtype, t.shape, t.stride(), t.data_ptr() % 32) for t in (x, weight))
        key = str((*tensors, options, flags.deterministic, flags.allow_tf32))
        capturing = torch.cuda.is_current_stream_capturing()
        if key not in known:
            known[key] = torch.backends.cudnn.benchmark
            if known[key]:
                if capturing:
                    torch.cuda.current_stream().capture.spoil("operation not permitted when stream is capturing")
                self.timings.append(key)
        if capturing:
            self.captured.append((key, known[key]))
        return known[key]

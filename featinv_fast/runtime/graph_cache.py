"""The captured graphs of a loop: a bounded number of them, those used last."""

from __future__ import annotations

import collections
from collections.abc import Hashable, Iterator
from typing import Any

import torch

from featinv_fast.runtime.steps_graph import StepsGraph

# Steps and decoders in all graphs together, each about a thousand kernels: one for a step and one for the decoder for
# every bucket of batches, with and without guidance, or two whole loops of 50 steps.
LARGEST = 128


class GraphCache:
    """Graphs by what they are for. A graph goes with the static tensors that it owns.

    All share one pool of memory for what only lives within a replay.

    Args:
        largest: most steps and decoders; the newest graph is kept in any case.
    """

    def __init__(self, largest: int = LARGEST) -> None:
        self.largest = largest
        self._graphs: collections.OrderedDict[Hashable, StepsGraph] = collections.OrderedDict()
        self._pool: Any = None

    def __iter__(self) -> Iterator[StepsGraph]:
        """The graphs, last used last."""
        return iter(tuple(self._graphs.values()))  # a copy: another thread may ask while this one captures

    def get(self, key: Hashable) -> StepsGraph | None:
        """The graph for `key`, which counts as used now; `None` where there is none."""
        if key in self._graphs:
            self._graphs.move_to_end(key)
        return self._graphs.get(key)

    def make_room(self, size: int) -> None:
        """Give up those that were not used for longest, until `size` more steps and decoders fit."""
        while self._graphs and sum(graph.size for graph in self._graphs.values()) + size > self.largest:
            self._graphs.popitem(last=False)

    def put(self, key: Hashable, graph: StepsGraph) -> None:
        """Keep a graph that was captured from `pool`."""
        self._graphs[key] = graph

    def clear(self) -> None:
        """Give all up."""
        self._graphs.clear()

    @property
    def pool(self) -> Any:
        """For the next capture. A new one where no graph holds it: torch's allocator takes none that was given back."""
        if not self._graphs:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

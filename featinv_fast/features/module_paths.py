"""Maps that modules inside a network give: read by forward hooks, which end the pass where nothing more is needed."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Seen:
    """A module as it was seen in a pass.

    Attributes:
        path: its name in the network; "" is the network itself.
        shape: of what it gave, the batch first; () where that was no tensor.
        runs: how often it ran.
    """

    path: str
    shape: tuple[int, ...]
    runs: int

    @property
    def gives_map(self) -> bool:
        """Whether it ran once, of an image, and gave vectors at several positions."""
        several = sum(edge > 1 for edge in self.shape[1:]) >= 2
        return self.runs == 1 and several and len(self.shape) in (3, 4) and self.shape[0] == 1


def survey(model: torch.nn.Module, run: Callable[[], object]) -> tuple[Seen, ...]:
    """The modules that `run` runs on one image, in the order in which they end: what contains others comes after."""
    shapes: dict[str, tuple[int, ...]] = {}
    runs: dict[str, int] = {}

    def look(path: str, output: object) -> None:
        tensor = tensor_of(output)
        runs[path] = runs.get(path, 0) + 1
        shapes.pop(path, None)  # its place is where it ends last
        shapes[path] = () if tensor is None else tuple(tensor.shape)

    with _hooked(dict(model.named_modules(remove_duplicate=False)), look):
        run()
    return tuple(Seen(path, shape, runs[path]) for path, shape in shapes.items())


def tensor_of(output: Any) -> Tensor | None:
    """What a module gives, where it is a tensor or begins with one, as the blocks and outputs of transformers do."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


class Taps:
    """Keeps what modules give while a network runs.

    Args:
        model: the network.
        paths: of the modules.
        stop: whether the pass ends once all of them have run.
    """

    def __init__(self, model: torch.nn.Module, paths: Iterable[str], *, stop: bool) -> None:
        self._modules = {path: model.get_submodule(path) for path in paths}
        self._stop = stop
        self._outputs: dict[str, Tensor] = {}

    def run(self, forward: Callable[[], T]) -> T | None:
        """What `forward` returns; None where its pass was ended."""
        with _hooked(self._modules, self._keep):
            try:
                return forward()
            except _EndOfPassError as end:
                if end.taps is not self:
                    raise
                return None

    def output(self, path: str) -> Tensor:
        """What the module of this path gave: it is one that a survey has seen give a map."""
        return self._outputs[path]

    def _keep(self, path: str, output: object) -> None:
        tensor = tensor_of(output)
        assert tensor is not None, "a survey has seen a map"
        ends = self._stop and len({*self._outputs, path}) == len(self._modules)
        # What runs after the module may change its output in place.
        self._outputs[path] = tensor if ends else tensor.clone()
        if ends:
            raise _EndOfPassError(self)


class _EndOfPassError(BaseException):
    """Everything is read. No `Exception`, which models may catch."""

    def __init__(self, taps: Taps) -> None:
        super().__init__()
        self.taps = taps


@contextlib.contextmanager
def _hooked(modules: Mapping[str, torch.nn.Module], look: Callable[[str, object], None]) -> Iterator[None]:
    """Call `look(path, output)` for each run of the modules in this thread; others may use the network meanwhile."""
    thread = threading.get_ident()

    def hook_of(path: str) -> Callable[[torch.nn.Module, Any, Any], None]:
        def hook(module: torch.nn.Module, arguments: Any, output: Any) -> None:  # noqa: ARG001 -- as torch calls it
            if threading.get_ident() == thread:
                look(path, output)

        return hook

    handles = [module.register_forward_hook(hook_of(path)) for path, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""Engines at hand: what `Runtime` is asked with, and sessions that misbehave on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from featinv_fast import Runtime
from featinv_fast.backends import Session

BACKENDS = ("torch", "onnxruntime")


@pytest.fixture(scope="session")
def runtimes(tiny_engine: Path) -> dict[str, Runtime]:
    """The tiny engine on each backend, on one thread: there is too little work for more. Do not change them."""
    return {backend: Runtime(tiny_engine, backend=backend, threads=1) for backend in BACKENDS}


@pytest.fixture(scope="session", params=BACKENDS)
def runtime(request: pytest.FixtureRequest, runtimes: dict[str, Runtime]) -> Runtime:
    """The tiny engine on one backend after the other. Do not change it."""
    return runtimes[request.param]


@pytest.fixture
def own_runtime(tiny_engine: Path) -> Runtime:
    """The tiny engine on torch, to do with as a test likes."""
    return Runtime(tiny_engine, backend="torch", threads=1)


class Watched(Session):
    """A session that tells `before(graph, inputs)` of each call, which may raise."""

    def __init__(self, session: Session, before: Callable[[str, tuple[Tensor, ...]], None]) -> None:
        self.backend, self.device, self.precision = session.backend, session.device, session.precision
        self.session = session
        self.before = before

    def run(self, graph: str, *inputs: Tensor) -> Tensor:
        self.before(graph, inputs)
        return self.session.run(graph, *inputs)


@pytest.fixture
def watched() -> type[Watched]:
    """The class of sessions that tell of their calls."""
    return Watched


@pytest.fixture
def watch() -> Callable[..., None]:
    """`watch(runtime, before)`: put a `Watched` session in place of the runtime's own."""

    def watch(runtime: Runtime, before: Callable[[str, tuple[Tensor, ...]], None]) -> None:
        runtime._executor.session = Watched(runtime._executor.session, before)

    return watch

"""What an op is: a name, its providers (best first) and the one list of cases that serves everybody.

An op lives in a folder of `featinv_kernels/ops`:

- `reference.py`: the maths in plain torch, fp32 inside; also what runs on a CPU
- `triton_kernel.py`: the fused kernel and its launcher; the only file that imports `triton`
- `cases.py`: the shapes, dtypes and options that tests, benchmarks and the support table share
- `op.py`: the public function, the opaque `torch.library` op behind it, and its registered `OpSpec`
- `README.md`: the maths, bytes and flops, and when the kernel pays

A new op needs these files and a line in `featinv_kernels/__init__.py`; the tests that hold for every op find it
in the registry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from featinv_kernels.errors import KernelArgumentError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What a provider is asked to serve. Hashable, so that a choice is made once per kind of request.

    Attributes:
        device: where the tensors are.
        dtype: the dtype that may vary; each `op.py` says which argument's it is.
        shape: the size of the problem; each `op.py` says how it reads.
    """

    device: torch.device
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One point at which an op is tested, timed and listed in the support table.

    Attributes:
        label: a short name, unique within the op.
        shape: as in `Request`.
        dtype: as in `Request`.
        full_size: a shape of the full model. A CPU is too slow for it: it is compiled ahead of time for every target,
            and run on a GPU. All other cases also run on a CPU, through the reference and Triton's interpreter.
        options: what else the op's `make_inputs` needs to know, e.g. which optional tensors are present.
    """

    label: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    full_size: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def request(self, device: torch.device) -> Request:
        """The request that this case makes on `device`."""
        return Request(device=device, dtype=self.dtype, shape=self.shape)


def no_reasons(_: Request) -> list[str]:
    """Of a provider, or of an op's own limits, that refuses nothing."""
    return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provider:
    """One way to compute an op.

    Attributes:
        name: e.g. "reference" or "triton".
        load: imports and returns the implementation, which takes the op's tensors and returns its outputs.
        not_supported_reasons: why a request cannot be served; an empty list means that it can.
        not_preferred_reasons: why "auto" should leave a request that could be served to another provider. If all that
            can serve have such reasons, the first of them serves.
    """

    name: str
    load: Callable[[], Callable[..., Any]]
    not_supported_reasons: Callable[[Request], list[str]]
    not_preferred_reasons: Callable[[Request], list[str]] = no_reasons


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OpSpec:
    """An op with everything that is known about it.

    Attributes:
        name: of the op, of its folder and, after `featinv::`, of its node in a graph.
        function: the public function.
        providers: the candidates for `provider="auto"`, best first.
        cases: where the op is tested, timed and listed.
        make_inputs: the keyword arguments of `function` for a case, on a device, always the same ones. On the meta
            device they have no values and cost no memory.
    """

    name: str
    function: Callable[..., Any]
    providers: tuple[Provider, ...]
    cases: tuple[Case, ...]
    make_inputs: Callable[[Case, torch.device], dict[str, Any]]

    @property
    def small_cases(self) -> tuple[Case, ...]:
        """The cases that a CPU can run in a test."""
        return tuple(case for case in self.cases if not case.full_size)

    def provider(self, name: str) -> Provider:
        """The provider called `name`.

        Raises:
            KernelArgumentError: there is none.
        """
        for provider in self.providers:
            if provider.name == name:
                return provider
        raise KernelArgumentError(
            f"{self.name} has no provider of this name",
            given=repr(name),
            expected=["auto", *(p.name for p in self.providers)],
            remedy='use provider="auto"',
        )


OPS: dict[str, OpSpec] = {}


def register(spec: OpSpec) -> OpSpec:
    """Add an op to `OPS`."""
    assert spec.name not in OPS, f"the op {spec.name} is registered twice"
    OPS[spec.name] = spec
    return spec

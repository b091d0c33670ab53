"""Which compiled forms of the kernels the native library holds: what the ops' cases launch, more and less specialised.

Triton specialises a kernel when it launches it: integers that are 1 become constants, multiples of 16 allow wide memory
accesses. A library has to choose before, so each launch of a case gives up to three forms:

1. just as Triton would compile it;
2. with the same multiples of 16, but no integer that happened to be 1 as a constant: another batch size;
3. without any assumption: odd sizes and misaligned tensors, slower but right.

The types, absent tensors and compile-time values are those of the case in all three.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from featinv_kernels.ahead_of_time import launches_of, specialisation
from featinv_kernels.launches import Launch
from featinv_kernels.providers import TRITON_DTYPES
from featinv_kernels.spec import OPS, Case


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """A kernel with everything that is fixed when it is compiled.

    Attributes:
        op: whose kernel it is.
        kernel: the jitted function.
        types: of its parameters, in Triton's names; "constexpr" for what is compiled in.
        values: what is compiled in, by name.
        multiples_of_16: the parameters of which that is assumed.
        options: Triton's own: `num_warps`, `num_stages`, `enable_fp_fusion`.
    """

    op: str
    kernel: Any
    types: dict[str, str]
    values: dict[str, Any]
    multiples_of_16: tuple[str, ...]
    options: dict[str, Any]

    @property
    def key(self) -> tuple[Any, ...]:
        """What an argument list is matched with: forms of one key serve the same launches."""
        return (
            self.kernel.__name__,
            tuple(self.types.items()),
            tuple((name, type(value).__name__, value) for name, value in self.values.items()),
            self.multiples_of_16,
        )


def forms_of_launch(op: str, launch: Launch) -> list[Form]:
    """The three forms of a launch, the most specialised first; they may be equal."""
    types, values, aligned = specialisation(launch)
    chosen = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    ones = {name for name, value in values.items() if name not in chosen and value is not None}
    as_compiled = Form(
        op=op, kernel=launch.kernel, types=types, values=values, multiples_of_16=aligned, options=launch.options
    )
    without_ones = dataclasses.replace(
        as_compiled,
        types={name: "i32" if name in ones else kind for name, kind in types.items()},
        values={name: value for name, value in values.items() if name not in ones},
    )
    return [as_compiled, without_ones, dataclasses.replace(without_ones, multiples_of_16=())]


def collect_forms(op_names: Iterable[str] = (), *, full_size_only: bool = False) -> list[Form]:
    """Every form that the library holds, each once, sorted by the kernel's name.

    Args:
        op_names: the ops; all of them if none is named.
        full_size_only: the full model's shapes, and not the small and odd ones of the tests.

    Raises:
        KeyError: there is no such op.
        ValueError: two launches differ in their options alone, so that nothing would tell their forms apart.
    """
    found: dict[tuple[Any, ...], Form] = {}
    for name in op_names or OPS:
        op = OPS[name]
        for case in (case for case in op.cases if _is_compiled(case, full_size_only)):
            for form in (form for launch in launches_of(op, case) for form in forms_of_launch(name, launch)):
                if found.setdefault(form.key, form).options != form.options:
                    raise ValueError(
                        f"{form.kernel.__name__} is launched with {found[form.key].options} and {form.options} for the "
                        "same types and compile-time values; let a compile-time value tell them apart"
                    )
    return sorted(found.values(), key=lambda form: form.kernel.__name__)


def _is_compiled(case: Case, full_size_only: bool) -> bool:
    return case.dtype in TRITON_DTYPES and (case.full_size or not full_size_only)

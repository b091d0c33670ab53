"""The table of what each kernel needs on each GPU generation: `python -m featinv_kernels.support SUPPORT.md`.

Rows are the specialisations that the ops' cases ask for: every case of the full model, and the first small case of each
dtype. The numbers are those of the installed Triton's compiler.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from featinv_kernels.ahead_of_time import (
    CAPABILITIES,
    compile_launch,
    launches_of,
    resources_of,
    specialisation,
    specialisation_key,
)
from featinv_kernels.launches import Launch
from featinv_kernels.providers import TRITON_DTYPES
from featinv_kernels.spec import OPS, Case, OpSpec

TABLE = Path(__file__).with_name("SUPPORT.md")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Specialisation:
    """One kernel as it is compiled for one or more cases.

    Attributes:
        op: whose kernel it is.
        cases: the labels of all cases that run it.
        launch: of the first of them.
    """

    op: OpSpec
    cases: tuple[str, ...]
    launch: Launch

    @property
    def row(self) -> tuple[str, ...]:
        """The table's columns that are known without compiling: op, kernel, cases, dtype, blocks, threads."""
        types, values, _ = specialisation(self.launch)
        pointers = (kind.removeprefix("*") for kind in types.values() if kind.startswith("*"))
        blocks = [f"{name.removeprefix('BLOCK_').lower()} {v}" for name, v in values.items() if "BLOCK" in name]
        return (
            self.op.name,
            self.launch.kernel.__name__.removesuffix("_kernel"),
            ", ".join(self.cases),
            next(pointers),
            ", ".join(blocks).replace("block ", ""),
            str(32 * self.launch.options["num_warps"]),
        )


def compiled_cases(op: OpSpec) -> list[Case]:
    """The cases whose kernels are compiled ahead of time."""
    first_of_dtype = {case.dtype: case for case in reversed(op.small_cases) if case.dtype in TRITON_DTYPES}
    small = [case for case in op.small_cases if case in first_of_dtype.values()]
    return [case for case in op.cases if case.full_size] + small


def specialisations() -> list[Specialisation]:
    """Every distinct kernel that the compiled cases of all ops ask for."""
    found: dict[tuple[object, ...], Specialisation] = {}
    for op in OPS.values():
        for case in compiled_cases(op):
            for launch in launches_of(op, case):
                key = specialisation_key(launch)
                known = found.get(key)
                labels = (case.label,) if known is None else (*known.cases, case.label)
                found[key] = Specialisation(op=op, cases=labels, launch=launch if known is None else known.launch)
    return list(found.values())


def table_rows() -> list[tuple[str, ...]]:
    """All rows with their numbers; compiles everything for every target, which takes minutes."""
    rows = []
    for found in specialisations():
        needs = [resources_of(compile_launch(found.launch, capability)) for capability in CAPABILITIES]
        numbers = (f"{r.registers} / {r.shared_bytes} / {r.stack_bytes}" for r in needs)
        rows.append((*found.row, *numbers))
    return rows


def render(rows: Sequence[Sequence[str]], version: str) -> str:
    """The table as Markdown."""
    header = ("op", "kernel", "cases", "dtype", "blocks", "threads", *(f"sm_{c}" for c in CAPABILITIES))
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(
        [
            "# What the kernels need",
            "",
            f"Compiled ahead of time by Triton {version}, without a GPU, by `python -m featinv_kernels.support`.",
            "For each target: registers of a thread / bytes of shared memory of a block / bytes of a thread's stack,",
            "to which registers that do not fit are spilled.",
            "",
            *lines,
            "",
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Write the table to the given path, or over the package's own."""
    import triton

    path = Path(arguments[0]) if arguments else TABLE
    path.write_text(render(table_rows(), triton.__version__), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

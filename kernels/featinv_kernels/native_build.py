"""Compiles the kernels ahead of time and writes them as C sources: a step of building the native library.

CMake runs `python -m featinv_kernels.native_build`; kernels/csrc/table.h says what is written. It needs Triton, which
brings its own assembler, but neither a GPU nor CUDA.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featinv_kernels.native_forms import Form, collect_forms

# PTX for the oldest GPUs, in the oldest version of the language that any driver understands which can load it at all.
PTX_CAPABILITY = 80
PTX_VERSION = 80
PTX = "ptx"

_TYPES = {
    "*fp32": "FEATINV_FLOAT32",
    "*fp16": "FEATINV_FLOAT16",
    "*bf16": "FEATINV_BFLOAT16",
    "*u8": "FEATINV_UINT8",
    "i32": "FEATINV_INTEGER",
    "i64": "FEATINV_INTEGER",
    "fp32": "FEATINV_REAL",
}
_WORD = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
    """A form compiled for one target.

    Attributes:
        target: "sm_90" and so on, or "ptx".
        code: a cubin, or PTX text that ends with a zero byte.
        threads: of a program.
        shared_bytes: of a program.
    """

    target: str
    code: bytes
    threads: int
    shared_bytes: int


def compile_form(form: Form, targets: Sequence[int]) -> list[Image]:
    """Machine code of `form` for each compute capability (90 is sm_90), then PTX.

    Raises:
        ValueError: the kernel asks at launch for something that the library does not offer.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    attributes = {(form.kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in form.multiples_of_16}
    source = ASTSource(form.kernel, signature=form.types, constexprs=form.values, attrs=attributes)
    compiled = {}
    for capability in sorted({*targets, PTX_CAPABILITY}):
        options = form.options | ({"ptx_version": PTX_VERSION} if capability == PTX_CAPABILITY else {})
        compiled[capability] = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        _check_launchable(form, compiled[capability].metadata)
    return [
        *(_image(compiled[capability], "cubin", f"sm_{capability}") for capability in targets),
        _image(compiled[PTX_CAPABILITY], "ptx", PTX),
    ]


def _check_launchable(form: Form, metadata: Any) -> None:
    features = {
        "several thread blocks a program": metadata.num_ctas != 1,
        "scratch memory": metadata.global_scratch_size != 0,
        "a cooperative launch": metadata.launch_cooperative_grid,
        "a launch that depends on another's progress": metadata.launch_pdl,
        "another name for its machine code": metadata.name != form.kernel.__name__,
    }
    asked = [feature for feature, needed in features.items() if needed]
    if asked:
        raise ValueError(f"{form.kernel.__name__} needs {', '.join(asked)}, which the native library does not offer")


def _image(compiled: Any, kind: str, target: str) -> Image:
    code = compiled.asm[kind]
    return Image(
        target=target,
        code=code if isinstance(code, bytes) else code.encode("ascii") + b"\0",
        threads=32 * compiled.metadata.num_warps,
        shared_bytes=compiled.metadata.shared,
    )


def _compile_numbered(number: int, ops: Sequence[str], full_size_only: bool, targets: Sequence[int]) -> list[Image]:
    # A jitted function cannot be sent to another process; the list of forms is the same in each.
    return compile_form(collect_forms(ops, full_size_only=full_size_only)[number], targets)


def compile_all(ops: Sequence[str], full_size_only: bool, targets: Sequence[int], jobs: int) -> list[list[Image]]:
    """The images of each form of `collect_forms`, compiled by `jobs` processes."""
    forms = collect_forms(ops, full_size_only=full_size_only)
    if jobs == 1:
        return [compile_form(form, targets) for form in forms]
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in an unknown state
    with concurrent.futures.ProcessPoolExecutor(max_workers=jobs, mp_context=context) as pool:
        futures = [pool.submit(_compile_numbered, i, ops, full_size_only, targets) for i in range(len(forms))]
        return [future.result() for future in futures]


def write_sources(folder: Path, forms: Sequence[Form], images: Sequence[Sequence[Image]]) -> list[Path]:
    """Write `kernels_table.c` and, for each target, `kernels_<target>.c` with the code of all forms.

    Args:
        folder: where to.
        forms: sorted by the kernel's name.
        images: of each form, in the order of the targets.

    Returns:
        The files.
    """
    columns = list(zip(*images, strict=True))
    offsets = []
    paths = []
    for column in columns:
        path = folder / f"kernels_{column[0].target}.c"
        starts, words = _pack([image.code for image in column])
        lines = [", ".join(words[i : i + 8]) for i in range(0, len(words), 8)]
        path.write_text(
            f"#include <stdint.h>\nextern const uint64_t featinv_code_{column[0].target}[];\n"
            f"const uint64_t featinv_code_{column[0].target}[] = {{\n" + ",\n".join(lines) + "};\n"
        )
        offsets.append(starts)
        paths.append(path)
    table = folder / "kernels_table.c"
    table.write_text(_table(forms, images, offsets))
    return [table, *paths]


def _pack(codes: Sequence[bytes]) -> tuple[list[int], list[str]]:
    """Where each code starts, in words, and all of them as C literals; 64-bit words are the fewest to parse."""
    starts: list[int] = []
    words: list[str] = []
    for code in codes:
        starts.append(len(words))
        padded = code + bytes(-len(code) % _WORD)
        words += [f"0x{int.from_bytes(padded[i : i + _WORD], 'little'):x}u" for i in range(0, len(padded), _WORD)]
    return starts, words


def _table(forms: Sequence[Form], images: Sequence[Sequence[Image]], offsets: Sequence[Sequence[int]]) -> str:
    targets = [image.target for image in images[0]]
    lines = ['#include "table.h"', *(f"extern const uint64_t featinv_code_{target}[];" for target in targets)]
    for i, (form, row) in enumerate(zip(forms, images, strict=True)):
        assert len(form.types) <= 64, f"{form.kernel.__name__} has more parameters than table.h allows"
        lines.append(f"static const struct parameter parameters_{i}[] = {{")
        lines += [f"    {{{_parameter(form, name)}}}," for name in form.types]
        lines += ["};", f"static const struct image images_{i}[] = {{"]
        for image, starts in zip(row, offsets, strict=True):
            number = 0 if image.target == PTX else int(image.target.removeprefix("sm_"))
            data = f"(const char *)(featinv_code_{image.target} + {starts[i]})"
            lines.append(f"    {{{data}, {number}, {image.threads}, {image.shared_bytes}}},")
        lines.append("};")
    lines.append("const struct kernel featinv_kernels[] = {")
    for i, (form, row) in enumerate(zip(forms, images, strict=True)):
        name, description = _quoted(form.kernel.__name__), _quoted(_description(form, row))
        lines.append(f"    {{{name}, {description}, parameters_{i}, {len(form.types)}, images_{i}}},")
    lines += [
        "};",
        f"const size_t featinv_kernels_count = {len(forms)};",
        f"const size_t featinv_image_count = {len(targets)};",
    ]
    return "\n".join(lines) + "\n"


def _parameter(form: Form, name: str) -> str:
    """The members of a `struct parameter`."""
    kind = form.types[name]
    if kind != "constexpr":
        passed_as = "PASSED_AS_32_BITS" if kind in ("i32", "fp32") else "PASSED_AS_64_BITS"
        return f"{_quoted(name)}, {_TYPES[kind]}, {passed_as}, {int(name in form.multiples_of_16)}, 0, 0.0"
    value = form.values[name]
    if value is None:
        return f"{_quoted(name)}, FEATINV_NONE, COMPILED_IN, 0, 0, 0.0"
    if isinstance(value, int):
        return f"{_quoted(name)}, FEATINV_INTEGER, COMPILED_IN, 0, {int(value)}, 0.0"
    if isinstance(value, float):
        return f"{_quoted(name)}, FEATINV_REAL, COMPILED_IN, 0, 0, {value!r}"
    raise ValueError(
        f"{name} of {form.kernel.__name__} is {value!r}; compile-time values must be integers, truth values or floats"
    )


def _description(form: Form, row: Sequence[Image]) -> str:
    parameters: list[dict[str, Any]] = []
    for name, kind in form.types.items():
        if kind == "constexpr":
            parameters.append({"name": name, "type": kind, "value": form.values[name]})
        else:
            parameters.append({"name": name, "type": kind, "multiple_of_16": name in form.multiples_of_16})
    images = [
        {"target": i.target, "bytes": len(i.code), "threads": i.threads, "shared_bytes": i.shared_bytes} for i in row
    ]
    return json.dumps({"kernel": form.kernel.__name__, "op": form.op, "parameters": parameters, "images": images})


def _quoted(text: str) -> str:
    """A C string; JSON's escapes of ASCII text are C's, too."""
    return json.dumps(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile and write; the command line is CMakeLists.txt's."""
    parser = argparse.ArgumentParser(prog="python -m featinv_kernels.native_build", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the C sources")
    parser.add_argument("--targets", type=int, nargs="+", required=True, help="compute capabilities, such as 80 90")
    parser.add_argument("--ops", nargs="*", default=[], help="ops to compile; all if none is named")
    parser.add_argument("--full-size-only", action="store_true", help="only the shapes of the full model")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    options = parser.parse_args(arguments)
    # Source lines in the machine code help a profiler and would double its size.
    os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")
    forms = collect_forms(options.ops, full_size_only=options.full_size_only)
    images = compile_all(options.ops, options.full_size_only, options.targets, options.jobs)
    options.out.mkdir(parents=True, exist_ok=True)
    write_sources(options.out, forms, images)
    size = sum(len(image.code) for row in images for image in row)
    sys.stdout.write(f"{len(forms)} kernels, {size / 1e6:.1f} MB of code\n")


if __name__ == "__main__":
    main()

"""The native library, built with CMake for two ops and two GPU generations: C, C++ and Python, all without a GPU."""

import ctypes
import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from featinv_kernels import OPS
from featinv_kernels.ahead_of_time import launches_of
from featinv_kernels.errors import KernelError
from featinv_kernels.native import native_implementation, uncompiled_launches
from featinv_kernels.native_forms import collect_forms
from featinv_kernels.native_library import NativeLibrary, NativeLibraryError

pytest.importorskip("triton", reason="triton is optional")

ROOT = Path(__file__).parents[2]
BUILT_OPS = ("sampler_step", "to_uint8")
OPTIONS = {
    "FEATINV_OPS": ";".join(BUILT_OPS),
    "FEATINV_TARGETS": "80;90",
    "FEATINV_FULL_SIZE_ONLY": "ON",
    "FEATINV_JOBS": "1",
    "CMAKE_BUILD_TYPE": "Release",
    "Python_EXECUTABLE": sys.executable,
}
NO_DRIVER, NOT_COMPILED = 1, 4
# Those whose launches the library was built for.
COMPILED_CASES = [
    pytest.param(OPS[name], case, id=f"{name}-{case.label}")
    for name in BUILT_OPS
    for case in OPS[name].cases
    if case.full_size
]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver; test_native_agrees_with_triton runs")


def run(*command, **options):
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """The build folder; workers of one run share it."""
    beside_python = str(Path(sys.executable).parent)  # where wheels of cmake and ninja put their programs
    path = os.pathsep.join((beside_python, os.environ["PATH"]))
    cmake = shutil.which("cmake", path=path)
    if cmake is None or not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        pytest.skip("building needs CMake and a C compiler")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "native_build"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "built").exists():
            definitions = [f"-D{name}={value}" for name, value in OPTIONS.items()]
            generator = ("-G", "Ninja") if shutil.which("ninja", path=path) else ()
            run(cmake, "-S", ROOT, "-B", folder, *generator, *definitions, env={**os.environ, "PATH": path})
            run(cmake, "--build", folder, "-j", "2", env={**os.environ, "PATH": path})
            (folder / "built").touch()
    return folder


@pytest.fixture(scope="session")
def library(build):
    return NativeLibrary(build / "libfeatinv_kernels.so")


def test_everything_declared_is_exported_and_nothing_needs_cuda(build):
    header = (ROOT / "kernels/csrc/featinv_kernels.h").read_text(encoding="utf-8")
    declared = re.findall(r"FEATINV_API [\w ]+[ *](featinv_\w+)\(", header)
    assert len(declared) == 8
    opened = ctypes.CDLL(str(build / "libfeatinv_kernels.so"))
    assert all(hasattr(opened, name) for name in declared)
    content = (build / "libfeatinv_kernels.so").read_bytes()
    assert b"libcuda.so.1\0" in content  # looked up when it is needed ...
    assert b"libcudart" not in content
    assert b"/triton" not in content  # ... and nothing tells where it was built
    assert str(ROOT).encode() not in content


def test_the_cpp_interface_and_launches_on_a_driver_that_takes_notes(build):
    for program in ("test_library", "test_launch"):
        environment = os.environ | {"LD_LIBRARY_PATH": str(build / "kernels/csrc/tests/double")}
        output = run(build / "kernels/csrc/tests" / program, env=environment)
        assert output.endswith(", 0 failures\n"), output


@no_gpu
def test_cpp_without_a_driver_says_so(build):
    output = run(build / "kernels/csrc/tests/test_library")
    assert output.startswith("no driver: the NVIDIA driver (libcuda.so.1) cannot be loaded")
    assert output.endswith(", 0 failures\n"), output


def test_kernels_are_listed(library):
    kernels = library.kernels()
    forms = collect_forms(BUILT_OPS, full_size_only=True)
    assert [kernel["kernel"] for kernel in kernels] == [form.kernel.__name__ for form in forms]
    assert {kernel["op"] for kernel in kernels} == set(BUILT_OPS)
    for kernel, form in zip(kernels, forms, strict=True):
        assert [parameter["name"] for parameter in kernel["parameters"]] == form.kernel.arg_names
        assert [image["target"] for image in kernel["images"]] == ["sm_80", "sm_90", "ptx"]
        assert all(image["threads"] == 32 * form.options["num_warps"] for image in kernel["images"])
        assert all(image["bytes"] > 1000 for image in kernel["images"])


@pytest.mark.parametrize(("op", "case"), COMPILED_CASES)
def test_launches_of_compiled_cases_are_found_in_their_fastest_form(library, op, case):
    kernels = library.kernels()
    launches = launches_of(op, case)
    assert launches
    for launch in launches:
        kernel = kernels[library.find(launch)]
        assert kernel["kernel"] == launch.kernel.__name__
        for parameter in kernel["parameters"]:
            value = launch.arguments[parameter["name"]]
            if parameter["type"] == "constexpr":
                assert parameter["value"] == value
            elif isinstance(value, int):
                assert value != 1
                assert parameter["multiple_of_16"] == (value % 16 == 0)
            elif isinstance(value, torch.Tensor):
                assert parameter["multiple_of_16"]


def test_other_sizes_are_served_by_forms_that_assume_less(library):
    op = OPS["to_uint8"]
    case = next(case for case in op.cases if case.label == "odd_3x5")
    (launch,) = launches_of(op, case)
    kernel = library.kernels()[library.find(launch)]
    assert not any(parameter.get("multiple_of_16") for parameter in kernel["parameters"])


def test_what_is_not_compiled_is_refused_by_name(library):
    op = OPS["to_uint8"]
    case = next(case for case in op.cases if case.dtype == torch.bfloat16)
    (launch,) = launches_of(op, case)
    with pytest.raises(NativeLibraryError, match="given: p_image is bfloat16 tensor") as caught:
        library.find(launch)
    assert caught.value.status == NOT_COMPILED
    assert "remedy" in str(caught.value)
    implementation = op.provider("triton").load()
    inputs = op.make_inputs(case, torch.device("meta"))
    assert uncompiled_launches(library, implementation, inputs) == [caught.value.problem]


@no_gpu
def test_without_a_driver_the_answer_is_clean(library):
    assert library.driver_problem().startswith("no driver: the NVIDIA driver (libcuda.so.1) cannot be loaded")
    op = OPS["to_uint8"]
    (launch,) = launches_of(op, next(case for case in op.cases if case.full_size))
    with pytest.raises(NativeLibraryError, match="no driver") as caught:
        library.launch(launch, device=0, stream=0)
    assert caught.value.status == NO_DRIVER


LAUNCH_ON_THE_DOUBLE = """
import ctypes, logging, sys
sys.modules["triton"] = None  # nobody needs it to run the kernels
from pathlib import Path
import torch
from featinv_kernels import OPS, native
from featinv_kernels.native_library import NativeLibrary
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
library = NativeLibrary(Path(sys.argv[1]))
op = OPS["sampler_step"]
inputs = op.make_inputs(next(case for case in op.cases if case.full_size), torch.device("cpu"))
with native.sent_to(lambda launch: library.launch(launch, device=0, stream=0x77)):
    outputs = op.provider("triton").load()(*inputs.values())
print(library.driver_problem(), ctypes.CDLL("libcuda.so.1").double_launches())
"""


def test_launches_from_python_reach_the_driver_without_triton(build):
    environment = os.environ | {"LD_LIBRARY_PATH": str(build / "kernels/csrc/tests/double")}
    output = run(sys.executable, "-c", LAUNCH_ON_THE_DOUBLE, str(build / "libfeatinv_kernels.so"), env=environment)
    assert re.fullmatch(r"kernel \d+ runs on cuda:0 from machine code for sm_80\nNone 1\n", output), output


def test_a_file_that_is_no_library_is_an_error(tmp_path):
    path = tmp_path / "libfeatinv_kernels.so"
    path.write_bytes(b"no library")
    with pytest.raises(KernelError, match="cannot be opened"):
        NativeLibrary(path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("op", "case"), COMPILED_CASES)
def test_native_agrees_with_triton(library, op, case, monkeypatch):
    monkeypatch.setattr("featinv_kernels.native.installed_library", lambda: library)
    inputs = op.make_inputs(case, torch.device("cuda"))
    launcher = op.provider("triton").load()
    outputs = native_implementation(launcher)(*inputs.values())
    torch.testing.assert_close(outputs, launcher(*inputs.values()), rtol=0, atol=0)

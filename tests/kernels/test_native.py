"""The provider `native`, and what is compiled for it; without building the library."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from featinv_kernels import OPS, ProviderUnavailableError, Request, choose, native, not_supported_reasons
from featinv_kernels.ahead_of_time import launches_of
from featinv_kernels.errors import KernelError
from featinv_kernels.launches import Launch
from featinv_kernels.native_library import NativeLibraryError

ROOT = Path(__file__).parents[2]
EVERY_OP = [pytest.param(op, id=op.name) for op in OPS.values()]


class Library:
    """Stands in for an open library: it serves what it is told to."""

    def __init__(self, *, problem=None, uncompiled=()):
        self.problem, self.uncompiled, self.launched = problem, uncompiled, []

    def driver_problem(self):
        return self.problem

    def find(self, launch):
        if launch.kernel.__name__ in self.uncompiled:
            raise NativeLibraryError(f"{launch.kernel.__name__} is not compiled", 4)
        return 0

    def launch(self, launch, *, device, stream):
        self.launched.append((launch.kernel.__name__, device, stream))


@pytest.fixture(name="installed")
def _installed(monkeypatch):
    """`installed(library)` puts a library in the place of the installed one."""

    def install(library):
        choose.cache_clear()
        monkeypatch.setattr(native, "installed_library", lambda: library)

    yield install
    choose.cache_clear()


@pytest.fixture(name="gpu")
def _gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))


def request_of(op, case=None):
    return (case or next(case for case in op.cases if case.dtype == torch.float32)).request(torch.device("cuda"))


@pytest.mark.parametrize("op", EVERY_OP)
def test_every_op_with_a_triton_kernel_has_the_provider(op):
    names = [provider.name for provider in op.providers]
    assert names.index("native") == names.index("triton") + 1


@pytest.mark.parametrize("op", EVERY_OP)
def test_without_the_library_everything_works_and_the_reason_is_told(op, installed):
    installed(None)
    case = op.small_cases[0]
    inputs = op.make_inputs(case, torch.device("cpu"))
    assert op.function(**inputs) is not None
    reasons = not_supported_reasons(op.name, "native", case.request(torch.device("cpu")))
    assert reasons == ["this installation has no native library", "it needs CUDA tensors, given cpu tensors"]
    with pytest.raises(ProviderUnavailableError, match="no native library"):
        op.function(**inputs, provider="native")


def test_a_library_without_a_driver_or_of_another_version_is_refused(installed, gpu, monkeypatch):
    installed(Library(problem="no driver: it is not there"))
    assert not_supported_reasons("geglu", "native", request_of(OPS["geglu"])) == ["no driver: it is not there"]

    def fail():
        raise KernelError("the native library is of another version", given="interface 2")

    monkeypatch.setattr(native, "installed_library", fail)
    (reason,) = not_supported_reasons("geglu", "native", request_of(OPS["geglu"]))
    assert "another version" in reason


@pytest.mark.parametrize("op", EVERY_OP)
def test_used_on_request_and_never_unasked(op, installed, gpu):
    installed(Library())
    assert not_supported_reasons(op.name, "native", request_of(op)) == []
    assert choose(op, request_of(op), "native").name == "native"
    assert choose(op, request_of(op)).name != "native"


def test_cases_that_were_not_compiled_are_refused(installed, gpu):
    op = OPS["group_norm_silu"]
    installed(Library(uncompiled=("group_norm_merge_kernel",)))
    large = next(case for case in op.cases if case.label == "decoder_256x256x128")
    small = next(case for case in op.cases if case.label == "one_tile")
    assert not_supported_reasons(op.name, "native", request_of(op, large)) == [
        "group_norm_merge_kernel is not compiled"
    ]
    assert not_supported_reasons(op.name, "native", request_of(op, small)) == []


@pytest.mark.parametrize(
    ("dtype", "capability", "reason"),
    [(torch.float64, (9, 0), "given torch.float64"), (torch.float32, (7, 5), "it needs compute capability 8.0")],
)
def test_dtypes_and_gpus_that_triton_does_not_serve_are_refused(installed, gpu, monkeypatch, dtype, capability, reason):
    installed(Library())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    request = Request(device=torch.device("cuda"), dtype=dtype, shape=(4, 64))
    (given,) = not_supported_reasons("geglu", "native", request)
    assert reason in given


def test_launches_go_to_the_tensors_stream(installed, monkeypatch):
    library = Library()
    installed(library)
    monkeypatch.setattr(torch.cuda, "device", torch.device)  # a device is a context manager, too
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0x77))
    op = OPS["geglu"]
    inputs = op.make_inputs(op.small_cases[0], torch.device("meta", 3))
    implementation = native.native_implementation(op.provider("triton").load())
    assert implementation(*inputs.values()).shape == op.small_cases[0].shape
    ((name, device, stream),) = library.launched
    assert (name, stream) == ("geglu_kernel", 0x77)
    assert device == inputs["x"].device.index


DESCRIBE_LAUNCHES = """
import json, sys
if sys.argv[1] == "without":
    sys.modules["triton"] = None
import torch
from featinv_kernels import OPS
from featinv_kernels.ahead_of_time import launches_of
plain = lambda v: [str(v.dtype), *v.shape, *v.stride()] if isinstance(v, torch.Tensor) else v
print(json.dumps([
    (op.name, case.label, each.kernel.__name__, each.grid, {k: plain(v) for k, v in each.arguments.items()})
    for op in OPS.values() for case in op.cases for each in launches_of(op, case)
]))
"""


def test_launchers_work_without_triton_and_launch_the_same():
    pytest.importorskip("triton", reason="triton is optional")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    described = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", DESCRIBE_LAUNCHES, mode],
                capture_output=True,
                check=True,
                timeout=300,
                env=environment,
            ).stdout
        )
        for mode in ("with", "without")
    ]
    assert described[0] == described[1]
    assert {op for op, *_ in described[0]} == set(OPS)


def launch_of(**changes):
    launch = launches_of(OPS["to_uint8"], OPS["to_uint8"].cases[0])[0]
    return Launch(kernel=launch.kernel, grid=launch.grid, arguments=launch.arguments, options=launch.options | changes)


def test_three_forms_of_a_launch():
    pytest.importorskip("triton", reason="triton is optional")
    from featinv_kernels.native_forms import forms_of_launch

    as_compiled, without_ones, without_assumptions = forms_of_launch("to_uint8", launch_of())
    assert as_compiled.values == {"stride_pixel": 1, "BLOCK": 1024}
    assert as_compiled.types["stride_pixel"] == "constexpr"
    assert {"p_image", "size"} <= set(as_compiled.multiples_of_16)
    assert without_ones.values == {"BLOCK": 1024}
    assert without_ones.types["stride_pixel"] == "i32"
    assert without_ones.multiples_of_16 == as_compiled.multiples_of_16
    assert without_assumptions.multiples_of_16 == ()
    assert without_assumptions.types == without_ones.types


def test_every_kernel_is_collected_once_and_all_ops_can_be_described():
    pytest.importorskip("triton", reason="triton is optional")
    from featinv_kernels.native_build import Image, _table
    from featinv_kernels.native_forms import collect_forms

    forms = collect_forms()
    assert {form.op for form in forms} == set(OPS)
    assert len({form.key for form in forms}) == len(forms)
    assert len(collect_forms(full_size_only=True)) < len(forms)
    assert {form.op for form in collect_forms(["geglu"])} == {"geglu"}
    image = Image(target="ptx", code=b"\0", threads=128, shared_bytes=0)
    table = _table(forms, [[image]] * len(forms), [list(range(len(forms)))])
    assert f"featinv_kernels_count = {len(forms)};" in table


def test_launches_that_only_options_tell_apart_are_an_error(monkeypatch):
    pytest.importorskip("triton", reason="triton is optional")
    from featinv_kernels import native_forms

    number = iter(range(100))
    monkeypatch.setattr(native_forms, "launches_of", lambda *_: [launch_of(num_warps=2 + next(number))])
    with pytest.raises(ValueError, match="to_uint8_kernel is launched with"):
        native_forms.collect_forms(["to_uint8"])


def test_a_compile_time_value_that_c_cannot_express_is_an_error():
    pytest.importorskip("triton", reason="triton is optional")
    from featinv_kernels.native_build import _parameter
    from featinv_kernels.native_forms import forms_of_launch

    form = forms_of_launch("to_uint8", launch_of())[0]
    form.values["BLOCK"] = "ieee"
    with pytest.raises(ValueError, match="BLOCK of to_uint8_kernel is 'ieee'"):
        _parameter(form, "BLOCK")


def wheel(folder, **environment):
    """The names in a wheel that is built from this checkout."""
    script = "import sys; from scikit_build_core.build import build_wheel; print(build_wheel(*sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_is_pure_unless_the_library_is_asked_for(tmp_path):
    pytest.importorskip("scikit_build_core", reason="wheels are built by scikit-build-core")
    path = wheel(tmp_path, FEATINV_NATIVE="")
    names = zipfile.ZipFile(path).namelist()
    assert path.name.endswith("-py3-none-any.whl")
    assert "featinv_kernels/native.py" in names
    assert not [name for name in names if name.startswith("featinv_kernels/lib/")]


def test_wheel_with_the_library_contains_it_and_finds_it(tmp_path):
    pytest.importorskip("scikit_build_core", reason="wheels are built by scikit-build-core")
    pytest.importorskip("triton", reason="triton is optional")
    options = "FEATINV_OPS=to_uint8;FEATINV_TARGETS=80;FEATINV_FULL_SIZE_ONLY=ON;FEATINV_JOBS=1"
    path = wheel(tmp_path, FEATINV_NATIVE="1", SKBUILD_CMAKE_DEFINE=options)
    assert "-py3-none-" in path.name
    assert not path.name.endswith("-any.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "installed")
    script = (
        # Before an editable installation, which finds this checkout wherever the path leads.
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in type(f).__module__]\n"
        f"sys.path.insert(0, {str(tmp_path / 'installed')!r})\n"
        "from featinv_kernels.native_library import installed_library\n"
        "print(*sorted({kernel['op'] for kernel in installed_library().kernels()}))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout == "to_uint8\n"
    assert (tmp_path / "installed/featinv_kernels/lib/featinv_kernels.h").is_file()

"""The Triton kernels compile for every GPU generation that is supported; this needs no GPU."""

import os

import pytest

from featinv_kernels.ahead_of_time import CAPABILITIES, compile_launch, resources_of
from featinv_kernels.support import specialisations

pytest.importorskip("triton", reason="triton is optional")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile")

# What a block of threads may use: CUDA C++ programming guide, "Technical specifications per compute capability".
SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
POINTERS = {"fp32": "*fp32", "fp16": "*fp16", "bf16": "*bf16"}


def sampler_step_variants():
    """(name, kernel, types of the arguments, compile-time values, options) for each dtype of eps and set of terms."""
    from featinv_kernels.ops.sampler_step import triton_kernel as module

    floats = ("p_latents", "p_coefficients", "p_noise", "p_history", "p_new_latents", "p_new_history")
    # Triton makes absent tensors and integers equal to 1 compile-time values, and large integers 64-bit ones.
    situations = {
        "all terms": ("i32", {}),
        "two terms": ("i32", {"p_noise": None, "p_history": None}),
        "one element": ("i32", {"size": 1}),
        "more than 2**31 elements": ("i64", {}),
    }
    for dtype, pointer in POINTERS.items():
        for label, (size_type, values) in situations.items():
            types = dict.fromkeys(floats, "*fp32") | {"p_eps": pointer, "size": size_type}
            values = values | {"BLOCK": module.BLOCK}
            yield f"sampler_step, eps {dtype}, {label}", module.sampler_step_kernel, types, values, module.OPTIONS


def to_uint8_variants():
    """As `sampler_step_variants`, for each dtype of the image and kind of strides."""
    from featinv_kernels.ops.to_uint8 import triton_kernel as module

    sizes = ("size", "blocks", "stride_image", "stride_channel", "stride_pixel")
    situations = {
        "contiguous": ("i32", {"stride_pixel": 1}),
        "channels last": ("i32", {"stride_channel": 1}),
        "one pixel": ("i32", {"blocks": 1, "stride_channel": 1, "stride_pixel": 1}),
        "images far apart": ("i64", {}),
    }
    for dtype, pointer in POINTERS.items():
        for label, (stride_type, values) in situations.items():
            types = {"p_image": pointer, "p_bytes": "*u8"} | dict.fromkeys(sizes, "i32") | {"stride_image": stride_type}
            values = values | {"BLOCK": module.BLOCK}
            yield f"to_uint8, {dtype}, {label}", module.to_uint8_kernel, types, values, module.OPTIONS


def share_of(capability, items):
    """Every fifth item: the targets share the work, and writing the support table compiles everything for all."""
    return items[CAPABILITIES.index(capability) :: len(CAPABILITIES)]


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_of_every_op_compile(capability):
    found = specialisations()
    first_of_kernel = {one.launch.kernel.__name__: one for one in reversed(found)}
    for one in {id(one): one for one in (*first_of_kernel.values(), *share_of(capability, found))}.values():
        compiled = compile_launch(one.launch, capability)
        assert f".target sm_{capability}" in compiled.asm["ptx"], one.row
        needs = resources_of(compiled)
        assert needs.registers > 0, one.row
        assert needs.stack_bytes == 0, one.row
        assert needs.shared_bytes <= SHARED_BYTES[capability], one.row


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_that_promise_the_references_rounding_compile(capability):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for name, kernel, types, values, options in share_of(capability, [*sampler_step_variants(), *to_uint8_variants()]):
        signature = {arg: "constexpr" if arg in values else types[arg] for arg in kernel.arg_names}
        source = ASTSource(kernel, signature=signature, constexprs=values)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert len(compiled.asm["cubin"]) > 0, name
        # no product is fused with an addition
        assert "fma.rn.f32" not in compiled.asm["ptx"], name

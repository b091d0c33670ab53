"""The Triton kernels compile for every GPU generation that is supported; this needs no GPU."""

import os

import pytest

pytest.importorskip("triton", reason="triton is optional")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile")

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


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100])
def test_kernels_compile(capability, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, kernel, types, values, options in (*sampler_step_variants(), *to_uint8_variants()):
        signature = {arg: "constexpr" if arg in values else types[arg] for arg in kernel.arg_names}
        source = ASTSource(kernel, signature=signature, constexprs=values)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert f".target sm_{capability}" in compiled.asm["ptx"], name
        assert len(compiled.asm["cubin"]) > 0, name
        # the kernels promise the reference's rounding: no product is fused with an addition
        assert "fma.rn.f32" not in compiled.asm["ptx"], name

import ml_dtypes
import numpy as np
import pytest
import torch

from featinv_fast.config import FeatureSpec
from featinv_fast.errors import ArgumentTypeError
from featinv_fast.features import normalise

SPEC = FeatureSpec(channels=3, height=2, width=5)
# Small integers: exact in every accepted type.
VALUES = np.arange(2 * 3 * 2 * 5, dtype=np.float32).reshape(2, 3, 2, 5)


def check(features):
    result = normalise(features, SPEC)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert not result.requires_grad
    assert np.array_equal(result.numpy(), VALUES)


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", np.longdouble, ml_dtypes.bfloat16])
def test_a3_numpy_types_and_byte_orders(dtype):
    check(VALUES.astype(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a3_torch_types(dtype):
    check(torch.from_numpy(VALUES.copy()).to(dtype))


def test_a3_read_only_and_non_contiguous_arrays():
    frozen = VALUES.copy()
    frozen.setflags(write=False)
    check(frozen)
    check(np.asfortranarray(VALUES))
    check(np.flip(np.flip(VALUES, 3).copy(), 3))
    check(torch.from_numpy(VALUES.copy()).to(memory_format=torch.channels_last))
    check(torch.from_numpy(np.repeat(VALUES, 2, axis=3))[..., ::2])


def test_a3_the_input_is_not_written():
    frozen = VALUES.copy()
    frozen.setflags(write=False)
    normalise(frozen, SPEC).zero_()
    assert frozen.max() == VALUES.max()


def test_a9_gradients_are_detached():
    check(torch.from_numpy(VALUES.copy()).requires_grad_() * 1)
    check(torch.nn.Parameter(torch.from_numpy(VALUES.copy())))
    with torch.inference_mode():
        inferred = torch.from_numpy(VALUES.copy())
    check(inferred)


def test_a_signalling_nan_becomes_a_quiet_one():
    values = VALUES.astype(np.float64)
    values.view(np.uint64)[1, 2, 0, 3] = 0x7FF0_0000_0000_0001
    result = normalise(values, SPEC)
    assert np.isnan(result[1, 2, 0, 3])
    assert result.isnan().sum() == 1


def test_float64_beyond_float32_becomes_infinite():
    result = normalise(VALUES.astype(np.float64) * 1e300, SPEC)
    assert torch.isinf(result).sum() == VALUES.size - 1


@pytest.mark.parametrize(
    "features",
    [
        VALUES.astype(np.int64),
        VALUES.astype(bool),
        VALUES.astype(np.complex64),
        VALUES.astype(object),
        VALUES.astype(str),
        np.ma.masked_less(VALUES, 3),
        torch.from_numpy(VALUES).int(),
        torch.from_numpy(VALUES).bool(),
        torch.from_numpy(VALUES).to(torch.float8_e4m3fn),
        torch.from_numpy(VALUES).to(torch.complex64),
        torch.from_numpy(VALUES).to_sparse(),
        torch.empty(VALUES.shape, device="meta"),
        VALUES.tolist(),
        [[VALUES[0]], [VALUES[1]]],
        iter(VALUES),
        "features.npy",
        None,
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}-{getattr(value, 'layout', '')}",
)
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_a9_other_kinds_are_type_errors(features):
    with pytest.raises(ArgumentTypeError, match="expected: a numpy array or torch tensor") as caught:
        normalise(features, SPEC)
    assert isinstance(caught.value, TypeError)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a9_nested_tensors_are_type_errors(layout):
    nested = torch.nested.nested_tensor([torch.zeros(3, 2), torch.zeros(4, 2)], layout=layout)
    with pytest.raises(ArgumentTypeError, match="nested"):
        normalise(nested, SPEC)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a9_quantised_tensors_are_type_errors():
    quantised = torch.quantize_per_tensor(torch.from_numpy(VALUES), 1.0, 0, torch.qint8)
    with pytest.raises(ArgumentTypeError, match="quantised"):
        normalise(quantised, SPEC)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a3_maps_on_a_gpu_stay_there():
    result = normalise([torch.from_numpy(VALUES).cuda().half(), VALUES[0]], SPEC)
    assert result.device.type == "cuda"
    assert np.array_equal(result.cpu().numpy(), np.concatenate([VALUES, VALUES[:1]]))

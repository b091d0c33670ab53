"""What `invert` takes for feature maps, what it refuses, and what becomes of bad ones among good ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from featinv_fast import Runtime
from featinv_fast.config import FeatureLayout
from featinv_fast.engine import open_engine
from featinv_fast.errors import (
    ArgumentTypeError,
    FeatureLayoutError,
    FeatureShapeError,
    NonFiniteFeatureError,
    NumericalError,
)
from featinv_fast.features import FeatureStatisticsWarning, items_at


@pytest.fixture(scope="module")
def reference(runtimes, tiny_maps):
    """The latents of three maps."""
    return runtimes["torch"].invert(tiny_maps[:3], output_type="latent", seed=5).images


@pytest.fixture
def latents(runtimes):
    """`latents(features)`: the same call as the reference's with features in another form."""
    return lambda features, **options: (
        runtimes["torch"].invert(features, output_type="latent", seed=5, **options).images
    )


@pytest.mark.parametrize("shape", [(2, 7, 5, 5), (2, 6, 5, 4), (2, 6), (6,), (2, 6, 5, 5, 1), ()])
def test_a1_a_wrong_shape_says_what_was_expected(runtimes, shape):
    with pytest.raises(FeatureShapeError, match="6x5x5") as caught:
        runtimes["torch"].invert(torch.ones(shape))
    assert caught.value.given
    assert caught.value.remedy
    with pytest.raises(FeatureShapeError):
        runtimes["torch"].encode_condition(torch.ones(shape))


def test_a1_features_of_another_known_backbone_are_recognised(runtimes):
    with pytest.raises(FeatureShapeError, match="convnext_base"):
        runtimes["torch"].invert(torch.ones(1, 1024, 9, 9))


def test_a2_layouts_are_converted_where_the_shape_tells_them_apart(reference, latents, tiny_maps):
    maps = tiny_maps[:3]
    tokens = torch.cat([torch.zeros(3, 1, 6), maps.flatten(2).transpose(1, 2)], dim=1)
    for features in (maps.permute(0, 2, 3, 1), tokens):
        assert np.array_equal(latents(features), reference)


def test_a2_an_ambiguous_layout_must_be_named(tiny_engine, restage, tmp_path, tiny_maps):
    # 6x6x6: no shape tells which axis holds the channels.
    spec = dataclasses.replace(open_engine(tiny_engine).manifest.features, height=None, width=None)
    runtime = Runtime(restage(tiny_engine, tmp_path / "unsized.engine", features=spec), backend="torch")
    maps = torch.nn.functional.pad(tiny_maps[:1], (0, 1, 0, 1), value=0.5)  # [1, 6, 6, 6]
    with pytest.raises(FeatureLayoutError, match="layout="):
        runtime.invert(maps)
    named = runtime.invert(maps, layout="nchw", output_type="latent").images
    turned = runtime.invert(maps.permute(0, 2, 3, 1), layout="nhwc", output_type="latent").images
    assert np.array_equal(named, turned)
    assert not np.array_equal(named, runtime.invert(maps, layout="nhwc", output_type="latent").images)


def test_a2_pooled_vectors_for_an_engine_of_pooled_vectors(tiny_engine, restage, tmp_path, tiny_maps):
    spec = dataclasses.replace(open_engine(tiny_engine).manifest.features, layout=FeatureLayout.POOLED)
    runtime = Runtime(restage(tiny_engine, tmp_path / "pooled.engine", features=spec))
    vectors = tiny_maps[:2, :, 0, 0]  # [2, 6]
    assert runtime.invert(vectors).images.shape == (2, 16, 16, 3)
    assert torch.equal(
        runtime.encode_condition(vectors),
        Runtime(tiny_engine).encode_condition(vectors[:, :, None, None].expand(-1, -1, 5, 5)),
    )
    with pytest.raises(FeatureShapeError, match="pooled"):
        runtime.invert(tiny_maps)
    runtime.warmup()


def _read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    "convert",
    [
        lambda maps: maps.numpy(),
        list,
        lambda maps: [maps[:1].numpy(), maps[1], maps[2:]],
        lambda maps: _read_only(maps.numpy()),
        lambda maps: maps.numpy().astype(">f4"),
        lambda maps: maps.numpy().astype(np.float64),
        lambda maps: maps.double().requires_grad_(),
        lambda maps: maps.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        lambda maps: maps.repeat_interleave(2, dim=3)[..., ::2],
        lambda maps: np.flip(np.flip(maps.numpy(), 0).copy(), 0),
    ],
    ids=["numpy", "list", "mixed", "read-only", "big-endian", "float64", "gradient", "strided", "sliced", "reversed"],
)
def test_a3_every_form_gives_the_same_images_in_the_same_order(reference, latents, tiny_maps, convert):
    assert np.array_equal(latents(convert(tiny_maps[:3])), reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a3_half_precision_maps_are_taken_as_they_are(latents, tiny_maps, dtype):
    halves = tiny_maps[:3].to(dtype)
    assert np.array_equal(latents(halves), latents(halves.float()))


def test_a3_a_single_map_is_a_batch_of_one(reference, latents, tiny_maps, relative_norm):
    assert relative_norm(torch.from_numpy(latents(tiny_maps[0])), torch.from_numpy(reference[:1])) <= 1e-5


@pytest.mark.parametrize(
    "features", [torch.ones(1, 6, 5, 5, dtype=torch.int32), np.ones((1, 6, 5, 5), np.uint8), "maps.npy", None, 3.0]
)
def test_a3_integers_and_what_is_no_array_are_refused(runtimes, features):
    with pytest.raises(ArgumentTypeError):
        runtimes["torch"].invert(features)


@pytest.mark.filterwarnings("ignore:.*quantize", "ignore:.*nested")
@pytest.mark.parametrize(
    "convert",
    [
        lambda maps: maps.to_sparse(),
        lambda maps: torch.quantize_per_tensor(maps, 0.1, 0, torch.qint8),
        lambda maps: maps.to(torch.complex64),
        lambda maps: maps.to("meta"),
        lambda maps: torch.nested.nested_tensor([maps[0], maps[1, :, :3]]),
    ],
    ids=["sparse", "quantised", "complex", "meta", "nested"],
)
def test_a9_tensors_without_plain_values_are_refused(runtimes, tiny_maps, convert):
    with pytest.raises(TypeError) as caught:
        runtimes["torch"].invert(convert(tiny_maps))
    assert isinstance(caught.value, ArgumentTypeError)
    assert caught.value.remedy


def test_a9_gradients_are_not_followed(runtime, tiny_maps):
    images = runtime.invert(tiny_maps[:1].clone().requires_grad_(), output_type="torch").images
    assert not images.requires_grad


@pytest.fixture
def spoilt(tiny_maps):
    """Four maps, of which the second holds a NaN and the last an infinity."""
    maps = tiny_maps[:4].clone()
    maps[1, 2, 3, 4] = float("nan")
    maps[3, 0, 0, 0] = float("-inf")
    return maps


def test_a4_a_bad_map_is_raised_before_any_work(own_runtime, watch, spoilt):
    calls = []
    watch(own_runtime, lambda graph, _: calls.append(graph))
    with pytest.raises(NonFiniteFeatureError, match=r"feature map 1 .*\n.*1 of 150 values"):
        own_runtime.invert(spoilt)
    with pytest.raises(NonFiniteFeatureError, match="feature map 1"):
        own_runtime.encode_condition(spoilt)
    assert calls == []


@pytest.mark.parametrize("samples", [1, 2])
def test_a4_the_other_maps_are_returned(runtime, spoilt, samples):
    inversion = runtime.invert(spoilt, errors="return", samples=samples, seed=5)
    bad = [row for row in range(4 * samples) if row // samples in (1, 3)]
    assert list(inversion.errors) == bad
    assert all(isinstance(error, NonFiniteFeatureError) for error in inversion.errors.values())
    assert inversion.ok.tolist() == [row not in bad for row in range(4 * samples)]
    assert not inversion.images[bad].any()
    assert inversion.latents[bad].isnan().all()
    # The others are what they are without the bad ones.
    good = inversion.ok.nonzero()[0]
    alone = runtime.invert(spoilt[[0, 2]], samples=samples, seed=(5 + good).tolist())
    assert np.abs(inversion.images[good].astype(int) - alone.images).max() <= 1
    assert inversion.images[good].std() > 1


def test_a4_nothing_but_bad_maps(own_runtime, watch, spoilt):
    calls = []
    watch(own_runtime, lambda graph, _: calls.append(graph))
    inversion = own_runtime.invert(spoilt[[1, 3]], errors="return", output_type="pil")
    assert inversion.images == [None, None]
    assert not inversion.ok.any()
    assert calls == []


@pytest.mark.parametrize(("samples", "subject"), [(1, "row 41"), (2, "sample 0 of feature map 41")])
def test_a4_errors_and_warnings_name_items_by_their_places_in_the_whole_run(runtimes, spoilt, samples, subject):
    maps = spoilt.clone()
    maps[0] *= 2e38
    maps[2] = 0.0
    with items_at([41, 42, 44, 47]), pytest.warns(FeatureStatisticsWarning, match=r"item\(s\) 44\."):
        errors = runtimes["torch"].invert(maps, steps=1, errors="return", samples=samples).errors
    with items_at(40), pytest.raises(NumericalError, match="row 40"):
        runtimes["torch"].encode_condition(maps[:1])
    assert list(errors) == [row for row in range(4 * samples) if row // samples != 2]
    assert str(errors[0]).startswith(f"{subject} gave NaN")
    assert str(errors[samples]).startswith("feature map 42 holds NaN")
    assert str(errors[4 * samples - 1]).startswith("feature map 47 holds NaN")


def test_a5_unusual_values_warn_with_the_statistic(tiny_engine, restage, tmp_path, tiny_maps):
    spec = dataclasses.replace(open_engine(tiny_engine).manifest.features, absolute_max=2.0)
    runtime = Runtime(restage(tiny_engine, tmp_path / "statistics.engine", features=spec), backend="torch")
    maps = tiny_maps[:3].clone()
    runtime.invert(maps)  # a warning would be an error here
    maps[1] = 0.0
    maps[2, 0, 0, 0] = -100.0
    with pytest.warns(FeatureStatisticsWarning, match="100 where 8") as caught:
        inversion = runtime.invert(maps)
    (record,) = caught
    assert record.filename == __file__
    assert (record.message.zero_items, record.message.outlying_items) == ((1,), (2,))
    assert (record.message.largest, record.message.limit) == (100.0, 8.0)
    assert inversion.ok.all()


@pytest.mark.parametrize("features", [[], torch.empty(0, 6, 5, 5), np.empty((0, 5, 5, 6), np.float32), np.empty(0)])
@pytest.mark.parametrize(
    ("output_type", "shape"),
    [("uint8", (0, 16, 16, 3)), ("float", (0, 3, 16, 16)), ("torch", (0, 3, 16, 16)), ("latent", (0, 4, 8, 8))],
)
def test_a7_an_empty_batch_gives_an_empty_result_without_a_device_call(
    own_runtime, watch, features, output_type, shape
):
    calls = []
    watch(own_runtime, lambda graph, _: calls.append(graph))
    inversion = own_runtime.invert(features, output_type=output_type)
    assert tuple(inversion.images.shape) == shape
    assert (len(inversion), inversion.errors, inversion.seeds) == (0, {}, ())
    assert own_runtime.encode_condition(features).shape == (0, 32, 8, 8)
    assert calls == []


def test_a7_an_empty_batch_of_latents(own_runtime, watch):
    calls = []
    watch(own_runtime, lambda graph, _: calls.append(graph))
    assert own_runtime.decode(torch.empty(0, 4, 8, 8)).shape == (0, 16, 16, 3)
    assert own_runtime.decode(torch.empty(0, 4, 8, 8), output_type="pil") == []
    assert calls == []

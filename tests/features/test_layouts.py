import numpy as np
import pytest
import torch

from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.errors import ArgumentError, FeatInvError, FeatureLayoutError, FeatureShapeError
from featinv_fast.features import known_spec, normalise

C, H, W = 6, 3, 4
SPEC = FeatureSpec(channels=C, height=H, width=W, backbone="net", layer="final")
SQUARE = FeatureSpec(channels=C, height=3, width=3)
UNSIZED = FeatureSpec(channels=C)
POOLED = FeatureSpec(channels=C, height=2, width=3, layout=FeatureLayout.POOLED)


def maps(batch=2, channels=C, height=H, width=W):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


def tokens(batch):
    """[B, C, H, W] as [B, 1+N, C] with a class token of 1000s."""
    flat = batch.flatten(2).transpose(1, 2)
    return torch.cat([torch.full_like(flat[:, :1], 1000.0), flat], dim=1)


def check(result, expected):
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert torch.equal(result, expected)


@pytest.mark.parametrize("spec", [SPEC, UNSIZED])
def test_batch_and_single_map_in_both_orders(spec):
    batch = maps()
    check(normalise(batch, spec), batch)
    check(normalise(batch[1], spec), batch[1:])
    check(normalise(batch.permute(0, 2, 3, 1), spec), batch)
    check(normalise(batch[1].permute(1, 2, 0).contiguous(), spec), batch[1:])


def test_a2_nhwc_is_converted():
    swin = known_spec("swinv2_base_window12to24_192to384")
    raw = maps(1, 1024, 12, 12)
    check(normalise(raw.permute(0, 2, 3, 1).contiguous(), swin), raw)
    check(normalise(raw, swin), raw)


def test_a2_tokens_lose_the_class_token_and_fill_row_by_row():
    square = maps(2, C, 3, 3)
    check(normalise(tokens(square), SQUARE), square)
    check(normalise(tokens(square), UNSIZED, layout="tokens"), square)
    oblong = maps()
    check(normalise(tokens(oblong), SPEC), oblong)


@pytest.mark.parametrize("prefix", [0, 2, 5])
def test_a2_tokens_lose_as_many_as_the_spec_says(prefix):
    square = maps(2, C, 3, 3)
    flat = tokens(square)[:, 1:]
    given = torch.cat([torch.full((2, prefix, C), 1000.0), flat], dim=1)
    spec = FeatureSpec(channels=C, height=3, width=3, layout=FeatureLayout.TOKENS, prefix_tokens=prefix)
    check(normalise(given, spec), square)
    check(normalise(given[0], spec), square[:1])
    with pytest.raises(FeatureShapeError, match=f"tokens behind {prefix}"):
        normalise(tokens(square), spec)


def test_a2_one_token_map_only_where_declared():
    square = maps(1, C, 3, 3)
    single = tokens(square)[0]  # [10, 6], the shape of ten pooled vectors too
    declared = FeatureSpec(channels=C, height=3, width=3, layout=FeatureLayout.TOKENS)
    check(normalise(single, declared), square)
    check(normalise(single, SQUARE, layout="tokens"), square)
    with pytest.raises(FeatureShapeError, match="pooled vector"):
        normalise(single, SQUARE)


def test_a2_pooled_vectors_fill_the_map_of_an_engine_trained_so():
    vectors = torch.arange(2.0 * C).reshape(2, C)
    expected = vectors[:, :, None, None].expand(2, C, 2, 3)
    check(normalise(vectors, POOLED), expected)
    check(normalise(vectors[0], POOLED), expected[:1])
    check(normalise(vectors, POOLED, layout="pooled"), expected)
    check(normalise(vectors[:, :, None, None], POOLED), expected)
    unsized = FeatureSpec(channels=C, layout=FeatureLayout.POOLED)
    check(normalise(vectors, unsized), vectors[:, :, None, None])


def test_a2_pooled_vectors_are_refused_elsewhere():
    with pytest.raises(FeatureShapeError, match="not a pooled vector"):
        normalise(torch.zeros(2, C), SPEC)
    with pytest.raises(FeatureLayoutError, match="not trained on pooled"):
        normalise(torch.zeros(2, C), SPEC, layout="pooled")
    with pytest.raises(FeatureShapeError, match="pool the map"):
        normalise(maps(2, C, 2, 3), POOLED)


@pytest.mark.parametrize(
    ("shape", "spec", "readings"),
    [
        ((2, C, 5, C), UNSIZED, {"nchw", "nhwc"}),
        ((2, C, C, C), FeatureSpec(channels=C, height=C, width=C), {"nchw", "nhwc"}),
        ((C, 5, C), UNSIZED, {"nchw", "nhwc", "tokens"}),
        ((10, 10, C), UNSIZED, {"nhwc", "tokens"}),
        ((2, 10, C), FeatureSpec(channels=C, layout=FeatureLayout.TOKENS), {"nhwc", "tokens"}),
    ],
)
def test_a2_an_ambiguous_shape_needs_layout(shape, spec, readings):
    features = torch.randn(shape)
    with pytest.raises(FeatureLayoutError, match="layout=") as caught:
        normalise(features, spec)
    assert {name for name in ("nchw", "nhwc", "tokens") if repr(name) in str(caught.value)} == readings
    results = {tuple(normalise(features, spec, layout=name).shape) for name in readings}
    assert all(result[1] == C for result in results)


def test_a2_the_named_layout_decides_between_equal_shapes():
    cube = FeatureSpec(channels=C, height=C, width=C, layout=FeatureLayout.NHWC)
    features = torch.randn(2, C, C, C)
    check(normalise(features, cube, layout="nchw"), features)
    check(normalise(features, cube, layout=FeatureLayout.NHWC), features.permute(0, 3, 1, 2))


def test_a2_a_known_size_settles_what_the_channels_leave_open():
    wide = FeatureSpec(channels=C, height=5, width=C)
    features = torch.randn(2, C, 5, C)
    check(normalise(features, wide), features)
    check(normalise(features.permute(0, 2, 3, 1), wide), features)


def test_a1_wrong_shapes_say_what_was_expected():
    for shape in [(2, C + 1, H, W), (2, C, H, W + 1), (C,), (), (1, 2, C, H, W), (2, C, 0, W)]:
        with pytest.raises(FeatureShapeError) as caught:
            normalise(torch.zeros(shape), SPEC)
        assert "net, layer final: 6x3x4" in str(caught.value)
        assert f"shape {list(shape)}" in str(caught.value)
    with pytest.raises(FeatureShapeError, match="6xHxW"):
        normalise(torch.zeros(2, C, 0, W), UNSIZED)


def test_a1_another_known_backbone_is_recognised():
    with pytest.raises(FeatureShapeError, match=r"convnext_base\.fb_in22k_ft_in1k, layer 2"):
        normalise(torch.zeros(1, 512, 18, 18), known_spec("convnext_base"))
    with pytest.raises(FeatureShapeError, match="swinv2_base"):
        normalise(torch.zeros(1, 12, 12, 1024), known_spec("convnext_base"))
    with pytest.raises(FeatureShapeError, match=r"layer final: 1024x9x9.*layer 3: 1024x9x9"):
        normalise(torch.zeros(1, 1024, 9, 9), known_spec("convnext_base", "0"))


def test_a1_a_contradicted_layout_names_the_one_that_fits():
    with pytest.raises(FeatureShapeError, match="fits layout='nchw'"):
        normalise(maps(), SPEC, layout="nhwc")


def test_an_unknown_layout_is_refused():
    with pytest.raises(ArgumentError, match="nchw"):
        normalise(maps(), SPEC, layout="chwn")


def test_a3_lists_keep_their_order_and_mix_kinds():
    batch = maps(4)
    items = [batch[0], batch[1].permute(1, 2, 0).numpy(), batch[2:]]
    check(normalise(items, SPEC), batch)
    check(normalise(tuple(tokens(maps(2, C, 3, 3))), SQUARE, layout="tokens"), maps(2, C, 3, 3))
    vectors = [torch.arange(6.0), torch.ones(6)]
    check(normalise(vectors, POOLED), normalise(torch.stack(vectors), POOLED))


def test_a3_maps_of_different_sizes_do_not_make_one_batch():
    with pytest.raises(FeatureShapeError, match="differ in size"):
        normalise([torch.zeros(C, 3, 3), torch.zeros(C, 3, 4)], UNSIZED)
    with pytest.raises(FeatureShapeError, match=r"features\[1\]"):
        normalise([torch.zeros(C, H, W), torch.zeros(C, H, W + 1)], SPEC)


@pytest.mark.parametrize("spec", [SPEC, UNSIZED, POOLED])
def test_a7_empty_batches(spec):
    size = (spec.height or 1, spec.width or 1)
    for empty in ([], (), np.zeros(0), torch.zeros(0), [np.zeros(0)]):
        assert normalise(empty, spec).shape == (0, C, *size)


def test_a7_empty_batches_with_a_shape():
    assert normalise(torch.zeros(0, C, H, W), SPEC).shape == (0, C, H, W)
    assert normalise(torch.zeros(0, H, W, C), SPEC).shape == (0, C, H, W)
    assert normalise(torch.zeros(0, 10, C), SQUARE).shape == (0, C, 3, 3)
    assert normalise(torch.zeros(0, C), POOLED).shape == (0, C, 2, 3)
    assert normalise([torch.zeros(0, C, H, W), maps(1)], SPEC).shape == (1, C, H, W)
    # Nothing is turned the wrong way round where there is nothing to turn.
    assert normalise(torch.zeros(0, C, C, C), FeatureSpec(channels=C, height=C, width=C)).shape == (0, C, C, C)
    with pytest.raises(FeatureShapeError):
        normalise(torch.zeros(0, C + 1, H, W), SPEC)


def test_normalising_twice_changes_nothing():
    once = normalise(maps().permute(0, 2, 3, 1), SPEC)
    check(normalise(once, SPEC), once)


def test_errors_belong_to_the_family():
    with pytest.raises(FeatInvError) as caught:
        normalise(torch.zeros(1), SPEC)
    assert isinstance(caught.value, ValueError)
    assert caught.value.given
    assert caught.value.expected
    assert caught.value.remedy

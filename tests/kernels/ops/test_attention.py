"""Attention: groups of items, views without copies, the opt-in provider, and which arguments are refused."""

import importlib.machinery
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from featinv_kernels import OPS, KernelArgumentError, Request, attention, choose, not_supported_reasons, providers


def tensors(batch, queries, groups, keys, heads=2, head_size=40):
    generator = torch.Generator().manual_seed(1)
    shapes = ((batch, queries), (groups, keys), (groups, keys))
    return [torch.randn((*shape, heads, head_size), generator=generator) for shape in shapes]


@pytest.mark.parametrize("provider", ["torch", "reference"])
def test_each_half_of_a_guided_batch_attends_to_its_own_prompt(provider):
    q, k, v = tensors(6, 9, 2, 77)
    output = attention(q, k, v, provider=provider)
    for item in range(6):
        group = item // 3
        expected = F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in (q[item], k[group], v[group])))
        torch.testing.assert_close(output[item], expected.transpose(0, 1))


@pytest.mark.parametrize("provider", ["torch", "reference"])
def test_slices_of_a_packed_projection_are_taken_as_they_are(provider):
    packed = torch.randn((2, 16, 3, 2, 40), generator=torch.Generator().manual_seed(2))
    views = packed.unbind(2)
    expected = attention(*(t.contiguous() for t in views), provider=provider)
    torch.testing.assert_close(attention(*views, provider=provider), expected)


def test_what_is_not_a_number_stays_in_its_item():
    q, k, v = tensors(3, 5, 3, 7)
    k[1, 2, 0, 3] = float("nan")
    output = attention(q, k, v)
    assert output[1, :, 0].isnan().all()
    assert output[[0, 2]].isfinite().all()
    assert output[1, :, 1].isfinite().all()


def test_scale_is_that_of_the_head_size_unless_given():
    q, k, v = tensors(1, 5, 1, 7)
    torch.testing.assert_close(attention(q, k, v), attention(q, k, v, 40**-0.5))
    torch.testing.assert_close(attention(q, k, v, 0.0), v.mean(dim=1, keepdim=True).expand(1, 5, 2, 40))


def xformers_ops():
    """A stand-in for xformers' module: the same function, computed by torch."""
    module = types.ModuleType("xformers.ops")

    def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None):
        assert query.shape[0] == key.shape[0] == value.shape[0]
        heads_second = (t.transpose(1, 2) for t in (query, key, value))
        return F.scaled_dot_product_attention(*heads_second, scale=scale).transpose(1, 2)

    module.memory_efficient_attention = memory_efficient_attention
    return module


def test_xformers_gets_the_layout_as_it_is(monkeypatch):
    package = types.ModuleType("xformers")
    package.__spec__ = importlib.machinery.ModuleSpec("xformers", None)
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", xformers_ops())
    q, k, v = tensors(4, 9, 2, 77)
    output = OPS["attention"].provider("xformers").load()(q, k, v, 0.3)
    assert output.is_contiguous()
    torch.testing.assert_close(output, attention(q, k, v, 0.3, provider="reference"))


@pytest.fixture
def _gpu_with_everything(monkeypatch):
    choose.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(providers, "_is_installed", lambda _: True)
    yield
    choose.cache_clear()


@pytest.mark.usefixtures("_gpu_with_everything")
def test_xformers_serves_only_when_asked():
    request = Request(device=torch.device("cuda"), dtype=torch.float16, shape=(2, 1024, 8, 40, 2, 77))
    assert not_supported_reasons("attention", "xformers", request) == []
    assert choose(OPS["attention"], request).name != "xformers"
    assert choose(OPS["attention"], request, "xformers").name == "xformers"


@pytest.mark.usefixtures("_gpu_with_everything")
def test_an_unpreferred_provider_serves_when_asked_and_says_why_it_was_not_chosen(caplog):
    op = OPS["attention"]
    request = Request(device=torch.device("cuda"), dtype=torch.float32, shape=(2, 1024, 8, 40, 2, 77))
    with caplog.at_level("INFO", logger="featinv_kernels"):
        assert choose(op, request).name == "torch"
    assert "it computes fp32 without matrix units" in caplog.text
    assert choose(op, request, "triton").name == "triton"


@pytest.mark.usefixtures("_gpu_with_everything")
def test_reasons_from_the_shape():
    request = Request(device=torch.device("cuda"), dtype=torch.float16, shape=(9000, 64, 8, 512, 1, 77))
    assert not_supported_reasons("attention", "triton", request) == [
        "it takes heads of at most 256 channels, given 512",
        "it takes at most 65535 heads of all items together, given 72000",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(4, 9, 80)}, "q is not tokens by heads"),
        ({"k": torch.zeros(2, 0, 2, 40)}, "k is not tokens by heads"),
        ({"k": torch.zeros(2, 77, 2, 80)}, "k has the wrong shape"),
        ({"v": torch.zeros(2, 76, 2, 40)}, "v has the wrong shape"),
        ({"v": torch.zeros(2, 77, 2, 40, dtype=torch.float16)}, "v and q differ in dtype"),
        ({"q": torch.zeros(3, 9, 2, 40)}, "cannot be divided among the groups"),
        ({"k": torch.zeros(2, 77, 2, 40, device="meta")}, "k and q are on different devices"),
        ({"provider": "flash"}, "no provider of this name"),
    ],
)
def test_refused_arguments(change, message):
    q, k, v = tensors(4, 9, 2, 77)
    with pytest.raises(KernelArgumentError, match=message):
        attention(**({"q": q, "k": k, "v": v} | change))

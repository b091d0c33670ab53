"""Networks whose layers call fused operations against the same networks without them."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from featinv_fast.backends.torch_ import TorchSession
from featinv_fast.checks.options import LAYER_OPS, layer_providers
from featinv_fast.config import Precision
from featinv_fast.errors import ArgumentError
from featinv_fast.models.layers import ResidualBlock, Upsample
from featinv_fast.rewrites.engine_model import DTYPES, EngineModel, storage_dtypes
from featinv_fast.rewrites.folded_biases import fold_biases
from featinv_fast.rewrites.fused_layers import FusedGroupNorm, PointwiseConv, plain_upsample
from featinv_fast.rewrites.fused_ops import fuse_ops, provider_problems
from featinv_fast.rewrites.upsample_products import UpsampleProducts
from featinv_kernels import OPS, phase_weights

EXACT = 1e-10
# A change of summation order moves the golden outputs by 2e-6.
FP32 = 5e-6
BATCH = 3


def fused(model, prompts, kernels="reference") -> EngineModel:
    """An engine's networks with fused operations; `model` keeps its own layers."""
    network = copy.deepcopy(EngineModel(model, prompts)).eval()
    fuse_ops(network, layer_providers(kernels))
    return network


def calls_of(model, prompts, dtype):
    """Inputs of every graph, by its name; odd where sizes are free."""
    config = model.config
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    size = config.latent_size
    (row,) = EngineModel(model, prompts).graphs()["time_embedding"](torch.tensor([481.0], dtype=dtype))
    latents, condition = random(BATCH, 4, size, size), random(BATCH, config.channels, size, size)
    scales = 0.5 + 0.5 * torch.rand(2, config.control_count, generator=generator, dtype=dtype)
    return {
        "condition_encoder": (random(BATCH, config.feature_channels, 5, 7),),
        "denoiser": (latents, condition, row, torch.tensor(1.75, dtype=dtype), scales),
        "denoiser_unguided": (latents, condition, row, scales[:1]),
        "decoder": (latents,),
    }


def with_own_row(graphs, inputs, timestep=481.0):
    """The inputs with the time bias that these graphs make."""
    (row,) = graphs["time_embedding"](torch.tensor([timestep], dtype=inputs[0].dtype))
    return tuple(row if x.ndim == 1 else x for x in inputs)


@pytest.fixture(scope="module")
def tiny(tiny_config, make_model):
    """The tiny model in float64 and its prompts."""
    model = make_model(tiny_config, dtype=torch.float64)
    prompts = torch.randn(2, tiny_config.context_tokens, tiny_config.context_channels, dtype=torch.float64)
    return model, prompts


def test_biases_are_moved_exactly(tiny, relative_norm):
    model, prompts = tiny
    network = copy.deepcopy(EngineModel(model, prompts))
    blocks = [block for block in network.modules() if isinstance(block, ResidualBlock)]
    skips = sum(isinstance(block.skip, nn.Conv2d) for block in blocks)
    assert fold_biases(network) == len(blocks) + skips > len(blocks) > 0
    assert all(block.conv_in.bias is None for block in blocks)
    assert fold_biases(network) == 0
    plain, graphs = EngineModel(model, prompts).graphs(), network.graphs()
    fuse_ops(network, layer_providers("torch"))
    for name, inputs in calls_of(model, prompts, torch.float64).items():
        expected = plain[name](*inputs)
        for folded in (graphs, network.graphs()):  # alone, and with fused operations
            assert relative_norm(folded[name](*with_own_row(folded, inputs)), expected) <= EXACT, name


@pytest.mark.parametrize("kernels", ["reference", "torch", "auto"])
def test_exact_in_float64(tiny, relative_norm, kernels):
    model, prompts = tiny
    plain, graphs = EngineModel(model, prompts).graphs(), fused(model, prompts, kernels).graphs()
    for name, inputs in calls_of(model, prompts, torch.float64).items():
        assert relative_norm(graphs[name](*inputs), plain[name](*inputs)) <= EXACT, name


def test_on_the_golden_checkpoint(golden, golden_model, relative_norm):
    """Against the official code, one guided step and the decoder in fp32."""
    graphs = fused(golden_model, golden.prompts).graphs()
    condition = graphs["condition_encoder"](golden.inputs["in.features"])
    assert relative_norm(condition, golden.expected["condition.nchw"]) <= FP32
    (row,) = graphs["time_embedding"](torch.tensor([481.0]))
    scales = torch.ones(2, golden.config.control_count)
    eps = graphs["denoiser"](golden.inputs["in.latent"], condition, row, torch.tensor(1.75), scales)
    cond, uncond = golden.expected["eps.t481.cond"], golden.expected["eps.t481.uncond"]
    assert relative_norm(eps, uncond + 1.75 * (cond - uncond)) <= FP32
    assert relative_norm(graphs["decoder"](golden.inputs["in.decode"]), golden.expected["decode.image"]) <= FP32


def test_every_layer_that_has_an_operation_calls_it(tiny):
    model, prompts = tiny
    network = copy.deepcopy(EngineModel(model, prompts))
    before = [type(module).__name__ for module in network.modules()]
    counts = fuse_ops(network, layer_providers("reference"))
    for kind, op in (
        ("GroupNorm", "group_norm_silu"),
        ("LayerNorm", "layer_norm"),
        ("FeedForward", "geglu"),
        ("UpsampleProducts", "upsample_conv"),
        ("ConditionEncoder", "resize_conv"),
        ("Fork", "fork"),
    ):
        assert counts[op] == before.count(kind) > 0, kind
    assert counts["attention"] == before.count("SelfAttention") + before.count("CrossAttention")
    assert set(counts) == {*LAYER_OPS, "layer_norm", "fork", "convolution", "pointwise"}
    assert {type(m).__name__ for m in network.modules()} >= {"PointwiseConv"}
    assert not [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert fuse_ops(network, layer_providers("reference")) == {}  # a second time there is nothing left to do


def test_the_graphs_go_on_sharing_their_weights(tiny):
    graphs = fused(*tiny).graphs()
    guided, unguided = (dict(graphs[name].named_parameters()) for name in ("denoiser", "denoiser_unguided"))
    assert guided.keys() == unguided.keys()
    assert all(parameter is unguided[name] for name, parameter in guided.items())


def last(x: torch.Tensor) -> bool:
    """Whether a map lies in memory with its channels last, and not by chance."""
    return x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("graph", ["denoiser", "denoiser_unguided", "decoder", "condition_encoder"])
def test_maps_keep_their_channels_last(tiny_config, make_model, graph):
    """What a convolution or a norm is given needs no copy: nothing brings the channels to the front on the way."""
    model = make_model(tiny_config)
    prompts = torch.randn(2, tiny_config.context_tokens, tiny_config.context_channels)
    network = fused(model, prompts).graphs()[graph]
    first, strays = [], []

    def look(name):
        def hook(module, inputs):
            first.append(name)
            if not last(inputs[0]):
                strays.append(name)

        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | FusedGroupNorm | PointwiseConv):
            module.register_forward_pre_hook(look(name))
        if isinstance(module, nn.Conv2d):
            assert last(module.weight), name
    output = network(*calls_of(model, prompts, torch.float32)[graph])
    assert last(output)
    # Latents come as they are: the first convolution of each network brings them into the layout of its weights.
    entries = {"decoder": {"decoder.post_quant_conv", "decoder.conv_in"}, "condition_encoder": set()}
    networks = {f"denoiser.{part}.encoder.conv_in" for part in ("unet", "controlnet")}
    assert set(strays) <= entries.get(graph, networks)
    assert len(first) >= len(strays) + 2


@pytest.mark.parametrize("provider", ["auto", "reference"])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP32])
def test_doubled_convolutions_round_the_weights_once(
    tiny_config, make_model, relative_norm, tmp_path, precision, provider
):
    """Of an engine stored in fp16: what a GPU calls is as near to the model as its weights rounded in that form."""
    model = make_model(tiny_config, dtype=torch.float64)
    prompts = torch.randn(2, tiny_config.context_tokens, tiny_config.context_channels, dtype=torch.float64)
    stored = EngineModel(model, prompts)
    dtypes = storage_dtypes(stored, Precision.FP16)
    save_file({name: t.to(dtypes[name]) for name, t in stored.state_dict().items()}, tmp_path / "w.safetensors")
    kernels = {"attention": "reference", "upsample_conv": provider}
    session = TorchSession(
        tiny_config, tmp_path / "w.safetensors", device=torch.device("cpu"), precision=precision, kernels=kernels
    )
    layers = dict(session.graphs["denoiser"].named_modules()) | dict(session.graphs["decoder"].named_modules())
    networks = {"denoiser.unet": model.denoiser.unet, "decoder": model.autoencoder.decoder}
    originals = {
        f"{prefix}.{name}": module.conv.weight
        for prefix, network in networks.items()
        for name, module in network.named_modules()
        if isinstance(module, Upsample)
    }
    assert len(originals) > 1
    for name, weight in originals.items():
        form = phase_weights(weight) if provider == "reference" else weight
        given = layers[name].weight if provider == "reference" else layers[name].conv.weight
        assert given.dtype is DTYPES[precision]
        assert relative_norm(given, form) <= 1.001 * relative_norm(form.to(DTYPES[precision]), form), name


def test_an_upsample_comes_back_from_beside_its_products(tiny, tiny_config, make_model, relative_norm):
    plain = make_model(tiny_config, dtype=torch.float64).denoiser.unet.decoder.levels[0].upsample
    weight = plain.conv.weight.clone()
    back = plain_upsample(UpsampleProducts(plain.conv))
    assert relative_norm(back.conv.weight, weight) <= EXACT
    assert torch.equal(back.conv.bias, plain.conv.bias)


def test_heads_beyond_the_kernels_stay_torchs(tiny_config, make_model, monkeypatch):
    monkeypatch.setattr("featinv_fast.rewrites.fused_ops.LARGEST_HEAD", 1)
    network = EngineModel(make_model(tiny_config), torch.randn(2, 5, tiny_config.context_channels))
    assert "attention" not in fuse_ops(network, layer_providers("reference"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_accurate_as_plain_layers(tiny_config, make_model, relative_norm, dtype):
    truth_model = make_model(tiny_config, dtype=torch.float64)
    prompts = torch.randn(2, tiny_config.context_tokens, tiny_config.context_channels, dtype=torch.float64)
    half, half_prompts = copy.deepcopy(truth_model).to(dtype), prompts.to(dtype)
    truth, plain = EngineModel(truth_model, prompts).graphs(), EngineModel(half, half_prompts).graphs()
    graphs = fused(half, half_prompts).graphs()
    for name, inputs in calls_of(truth_model, prompts, torch.float64).items():
        expected, given = truth[name](*inputs), [x.float() for x in inputs]
        usual = relative_norm(plain[name](*given), expected)
        assert relative_norm(graphs[name](*given), expected) <= 2 * usual + torch.finfo(dtype).eps, name


def test_weights_that_stay_in_fp32_are_used_as_they_are(tiny_config, make_model):
    """An engine keeps in fp32 what does not fit fp16: a value beyond 65504 must not become infinite on the way."""
    model = make_model(tiny_config).half()
    prompts = torch.randn(2, tiny_config.context_tokens, tiny_config.context_channels).half()
    network = fused(model, prompts)
    for module in network.modules():
        if isinstance(module, FusedGroupNorm | nn.LayerNorm | nn.Conv2d) or type(module).__name__ == "FusedUpsample":
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.float(), requires_grad=False))
    graphs = network.graphs()
    for name, inputs in calls_of(make_model(tiny_config), prompts.float(), torch.float32).items():
        assert graphs[name](*inputs).isfinite().all(), name


def test_providers_by_name():
    assert layer_providers("auto") == dict.fromkeys(LAYER_OPS, "auto")
    assert layer_providers({"attention": "xformers"}) == {**dict.fromkeys(LAYER_OPS, "auto"), "attention": "xformers"}
    with pytest.raises(ArgumentError, match="no such operation") as caught:
        layer_providers({"sampler_step": "triton"})
    assert caught.value.expected == list(LAYER_OPS)
    with pytest.raises(ArgumentError, match="geglu has no provider") as caught:
        layer_providers({"geglu": "xformers"})
    assert caught.value.expected == ["auto", *(p.name for p in OPS["geglu"].providers)]
    assert "doctor" in caught.value.remedy


def test_a_provider_that_is_named_says_why_it_cannot_serve(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cpu = torch.device("cpu")
    assert provider_problems(layer_providers("auto"), cpu, torch.float16) == []
    assert provider_problems(layer_providers("reference"), cpu, torch.float16) == []
    problems = provider_problems(layer_providers({"geglu": "triton"}), cpu, torch.float16)
    assert problems[0].startswith("geglu by triton: ")
    assert any("it needs CUDA tensors" in problem for problem in problems)

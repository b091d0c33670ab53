"""The rewritten model against the plain one in float64, on the golden weights: exact means 1e-10."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from featinv_fast.config import ModelConfig, Precision
from featinv_fast.models import FeatInv
from featinv_fast.models.layers import ContextProjection, CrossAttention, ResidualBlock, TimeEmbedding
from featinv_fast.rewrites.constant_prompts import ConstantContext, constant_prompts
from featinv_fast.rewrites.engine_model import EngineModel, share_copy, storage_dtypes
from featinv_fast.rewrites.time_rows import RowSlice, time_rows
from featinv_fast.rewrites.upsample_products import is_kernel

EXACT = 1e-10
GUIDANCE_SCALE = 1.75
GRAPHS = {"condition_encoder", "time_embedding", "denoiser", "denoiser_unguided", "decoder"}


@pytest.fixture(scope="module")
def plain(golden_model) -> FeatInv:
    return copy.deepcopy(golden_model).double()


@pytest.fixture(scope="module")
def prompts(golden):
    return golden.prompts.double()


@pytest.fixture(scope="module")
def graphs(plain, prompts):
    return EngineModel(plain, prompts).eval().graphs()


@pytest.fixture(scope="module")
def inputs(golden, plain):
    """Latents and condition, float64."""
    return golden.inputs["in.latent"].double(), plain.condition_encoder(golden.inputs["in.features"].double())


def control_scales(config: ModelConfig, mode: str) -> torch.Tensor:
    """[2, 13], as the runtime makes them, and once with a value for each residual of each branch."""
    count = config.control_count
    rows = {
        "plain": torch.ones(2, count),
        # The official code's guess mode: deeper residuals count more, and the unconditional branch has no control.
        "guess": torch.stack([0.825 ** torch.arange(count - 1, -1, -1), torch.zeros(count)]),
        "distinct": torch.linspace(0.5, 1.5, 2 * count).reshape(2, count),
    }
    return rows[mode].double()


def branch(plain, inputs, timestep: float, prompt, scales):
    """One sequential pass of the plain model."""
    return plain.denoiser(*inputs, torch.tensor([timestep], dtype=torch.float64), prompt[None], scales[None])


@pytest.mark.parametrize("mode", ["plain", "guess", "distinct"])
@pytest.mark.parametrize("timestep", [1.0, 481.0])
def test_guided(golden, plain, prompts, graphs, inputs, relative_norm, timestep: float, mode: str):
    scales = control_scales(golden.config, mode)
    (row,) = graphs["time_embedding"](torch.tensor([timestep], dtype=torch.float64))
    guidance_scale = torch.tensor(GUIDANCE_SCALE, dtype=torch.float64)
    eps = graphs["denoiser"](*inputs, row, guidance_scale, scales)
    conditional, unconditional = (branch(plain, inputs, timestep, prompts[i], scales[i]) for i in range(2))
    expected = unconditional + GUIDANCE_SCALE * (conditional - unconditional)
    assert eps.dtype is torch.float64
    assert relative_norm(eps, expected) < EXACT
    # The two branches do differ: the comparison above could tell them apart.
    assert relative_norm(conditional, unconditional) > 1e-3


@pytest.mark.parametrize("mode", ["plain", "guess", "distinct"])
def test_unguided(golden, plain, prompts, graphs, inputs, relative_norm, mode: str):
    scales = control_scales(golden.config, mode)[:1]
    (row,) = graphs["time_embedding"](torch.tensor([481.0], dtype=torch.float64))
    eps = graphs["denoiser_unguided"](*inputs, row, scales)
    assert relative_norm(eps, branch(plain, inputs, 481.0, prompts[0], scales[0])) < EXACT


def test_one_batch_is_two_sequential_passes(golden, plain, prompts, inputs, relative_norm):
    """The plain denoiser itself: both branches at once against one after the other."""
    scales = control_scales(golden.config, "distinct")
    time = torch.tensor([481.0], dtype=torch.float64)
    guidance_scale = torch.tensor(GUIDANCE_SCALE, dtype=torch.float64)
    eps = plain.denoiser(*inputs, time, prompts, scales, guidance_scale)
    conditional, unconditional = (branch(plain, inputs, 481.0, prompts[i], scales[i]) for i in range(2))
    assert relative_norm(eps, unconditional + GUIDANCE_SCALE * (conditional - unconditional)) < EXACT


def test_items_of_a_batch_do_not_depend_on_one_another(golden, graphs, inputs, relative_norm):
    scales = control_scales(golden.config, "plain")
    (row,) = graphs["time_embedding"](torch.tensor([481.0], dtype=torch.float64))
    guidance_scale = torch.tensor(GUIDANCE_SCALE, dtype=torch.float64)
    both = graphs["denoiser"](*inputs, row, guidance_scale, scales)
    for i in range(2):
        alone = graphs["denoiser"](*(x[i : i + 1] for x in inputs), row, guidance_scale, scales)
        assert relative_norm(both[i : i + 1], alone) < EXACT


def test_time_rows_are_the_projections_of_all_residual_blocks(plain, graphs, relative_norm):
    timesteps = torch.tensor([1.0, 481.0, 999.0], dtype=torch.float64)
    biases = [
        block.time_projection(network.time_embedding(timesteps))
        for network in (plain.denoiser.controlnet, plain.denoiser.unet)
        for block in network.modules()
        if isinstance(block, ResidualBlock)
    ]
    assert relative_norm(graphs["time_embedding"](timesteps), torch.cat(biases, dim=1)) < EXACT


def test_time_rows_of_a_unet_with_a_guidance_embedding(tiny_config, make_model, relative_norm):
    config = dataclasses.replace(tiny_config, guidance_embedding_channels=8)
    model = make_model(config, dtype=torch.float64)
    prompts = torch.randn(2, config.context_tokens, config.context_channels, dtype=torch.float64)
    graphs = EngineModel(model, prompts).graphs()
    latents = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    condition = torch.randn(2, config.channels, 8, 8, dtype=torch.float64)
    time, guidance = (torch.tensor([value], dtype=torch.float64) for value in (481.0, 7.5))
    scales = torch.ones(1, config.control_count, dtype=torch.float64)
    (row,) = graphs["time_embedding"](time, guidance)
    eps = graphs["denoiser_unguided"](latents, condition, row, scales)
    expected = model.denoiser(latents, condition, time, prompts[:1], scales, guidance=guidance)
    assert relative_norm(eps, expected) < EXACT
    assert relative_norm(eps, model.denoiser(latents, condition, time, prompts[:1], scales)) > 1e-3


def test_condition_encoder_is_the_plain_one(golden, plain, graphs):
    features = golden.inputs["in.features"].double()
    assert torch.equal(graphs["condition_encoder"](features), plain.condition_encoder(features))


def test_decoder(golden, plain, graphs, relative_norm):
    latents = golden.inputs["in.decode"].double()
    assert relative_norm(graphs["decoder"](latents), plain.autoencoder.decode(latents)) < EXACT


def test_the_plain_model_is_left_as_it_was(golden_model, golden):
    before = {name: tensor.data_ptr() for name, tensor in golden_model.state_dict().items()}
    engine = EngineModel(golden_model, golden.prompts)
    assert {name: tensor.data_ptr() for name, tensor in golden_model.state_dict().items()} == before
    assert any(isinstance(module, ContextProjection) for module in golden_model.modules())
    assert isinstance(golden_model.denoiser.unet.time_embedding, TimeEmbedding)
    # What no rewrite changes is shared, not copied.
    shared = {tensor.data_ptr() for tensor in engine.state_dict().values()} & set(before.values())
    assert len(shared) > 0.9 * len(engine.state_dict()) - 2 * 23


def test_graphs_share_their_weights(graphs):
    guided, unguided = (dict(graphs[name].named_parameters()) for name in ("denoiser", "denoiser_unguided"))
    assert guided.keys() == unguided.keys()
    assert all(parameter is unguided[name] for name, parameter in guided.items())
    assert set(graphs) == GRAPHS


def test_share_copy_has_the_same_parameters_in_other_modules():
    layer = torch.nn.Linear(2, 2)
    copied = share_copy(layer)
    assert copied is not layer
    assert copied.weight is layer.weight


def test_counts_of_the_official_architecture():
    """23 cross-attentions and 32 residual blocks: every one of them is rewritten, and nothing else remains."""
    config = ModelConfig()
    with torch.device("meta"):
        denoiser = FeatInv(config).denoiser
        prompts = torch.empty(2, config.context_tokens, config.context_channels)
    attentions = sum(isinstance(module, CrossAttention) for module in denoiser.modules())
    assert constant_prompts(denoiser, prompts) == attentions == 23
    blocks = [block for block in denoiser.modules() if isinstance(block, ResidualBlock)]
    table = time_rows(denoiser)
    assert sum(isinstance(block.time_projection, RowSlice) for block in blocks) == len(blocks) == 32
    assert table.size == sum(block.conv_in.out_channels for block in blocks)
    left = [m for m in denoiser.modules() if isinstance(m, ContextProjection | TimeEmbedding)]
    assert left == []
    assert sum(isinstance(module, ConstantContext) for module in denoiser.modules()) == 23


def test_the_empty_structure_takes_an_engines_weights(tiny_config, make_model):
    prompts = torch.randn(2, tiny_config.context_tokens, tiny_config.context_channels)
    state = EngineModel(make_model(tiny_config), prompts).state_dict()
    empty = EngineModel.empty(tiny_config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert {n: t.shape for n, t in empty.state_dict().items()} == {n: t.shape for n, t in state.items()}
    empty.load_state_dict(state, strict=True, assign=True)


def test_storage_dtypes(tiny_config):
    engine = EngineModel.empty(tiny_config)
    kept = ("denoiser.unet.conv_out.weight", "denoiser.unet.conv_out.bias")
    dtypes = storage_dtypes(engine, Precision.FP16, kept)
    assert set(dtypes) == set(engine.state_dict())
    fp32 = {name for name, dtype in dtypes.items() if dtype is torch.float32}
    assert fp32 == {name for name in dtypes if name.startswith("time_embedding.") or is_kernel(name)} | set(kept)
    assert set(dtypes.values()) == {torch.float32, torch.float16}
    assert set(storage_dtypes(engine, Precision.FP32).values()) == {torch.float32}

"""What the branches of a guided step have in common is computed once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from featinv_fast.config import ModelConfig
from featinv_fast.models.layers import Conv2d, CrossAttention, SelfAttention
from featinv_fast.rewrites.constant_prompts import constant_prompts
from featinv_fast.rewrites.engine_model import share_copy
from featinv_fast.rewrites.shared_prefix import ForkedEncoder, ForkedTransformer, shared_prefix
from featinv_fast.rewrites.time_rows import time_rows

EXACT = 1e-10
BATCH = 3


def batches(network: nn.Module, kind: type[nn.Module], run) -> list[int]:
    """The batch size that each module of a kind is called with, in order."""
    seen: list[int] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        for module in network.modules()
        if isinstance(module, kind)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return seen


# No transformer at the finest level: the fork moves down. None at any level but the middle: it moves there.
@pytest.mark.parametrize(("attention_levels", "shared"), [((0,), 1), ((1,), 3), ((), 4)])
def test_equal_to_the_whole_batch(tiny_config, make_model, relative_norm, attention_levels, shared: int):
    config: ModelConfig = dataclasses.replace(tiny_config, attention_levels=attention_levels)
    denoiser = share_copy(make_model(config, dtype=torch.float64).denoiser)
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    constant_prompts(denoiser, random(2, config.context_tokens, config.context_channels))
    row = time_rows(denoiser)(torch.tensor([481.0], dtype=torch.float64))[0]
    forked = shared_prefix(share_copy(denoiser), 2)
    assert [m.shared for m in forked.modules() if isinstance(m, ForkedEncoder)] == [shared, shared]
    assert sum(isinstance(m, ForkedTransformer) for m in forked.modules()) == 2
    inputs = (
        random(BATCH, 4, 8, 8),
        random(BATCH, config.channels, 8, 8),
        row,
        None,
        random(2, config.control_count),
        torch.tensor(1.75, dtype=torch.float64),
    )
    assert relative_norm(forked(*inputs), denoiser(*inputs)) < EXACT
    assert forked.state_dict().keys() == denoiser.state_dict().keys()


def test_the_prefix_runs_on_the_items_alone(tiny_config, make_model):
    model = make_model(tiny_config)
    denoiser = share_copy(model.denoiser)
    constant_prompts(denoiser, torch.randn(2, tiny_config.context_tokens, tiny_config.context_channels))
    row = time_rows(denoiser)(torch.tensor([481.0]))[0]
    forked = shared_prefix(denoiser, 2)
    encoder = forked.unet.encoder
    inputs = (torch.randn(BATCH, 4, 8, 8), torch.randn(BATCH, 32, 8, 8), row, None, torch.ones(2, 6), torch.tensor(2.0))

    def run() -> None:
        forked(*inputs)

    assert batches(encoder, SelfAttention, run) == [BATCH, 2 * BATCH]
    assert batches(encoder, CrossAttention, run) == [2 * BATCH, 2 * BATCH]
    convolutions = batches(encoder, Conv2d, run)
    assert convolutions[:4] == [BATCH] * 4  # the first one, a residual block's two, the transformer's first
    assert set(convolutions[4:]) == {2 * BATCH}


def test_it_is_applied_once(tiny_config, make_model):
    forked = shared_prefix(share_copy(make_model(tiny_config).denoiser), 2)
    with pytest.raises(AssertionError, match="applied before"):
        shared_prefix(forked, 2)

"""The plain networks against what the official code computes. A change of summation order alone moves it by 2e-6."""

from __future__ import annotations

import pytest
import torch

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def condition(golden, golden_model):
    return golden_model.condition_encoder(golden.inputs["in.features"])


def test_condition_encoder(golden, condition, relative_norm):
    assert relative_norm(condition, golden.expected["condition.nchw"]) < TOLERANCE


@pytest.mark.parametrize("branch", ["cond", "uncond", "nocontrol"])
@pytest.mark.parametrize("timestep", [1, 481, 981])
def test_eps(golden, golden_model, condition, relative_norm, timestep, branch):
    name = "in.context" if branch == "cond" else "in.uncond_context"
    scale = 0.0 if branch == "nocontrol" else 1.0
    eps = golden_model.denoiser(
        golden.inputs["in.latent"],
        condition,
        torch.tensor([float(timestep)]),
        golden.inputs[name],
        torch.full((1, golden.config.control_count), scale),
    )
    assert relative_norm(eps, golden.expected[f"eps.t{timestep}.{branch}"]) < TOLERANCE


@pytest.mark.parametrize("guidance_scale", [1.75, 1.0])
def test_guided_eps_is_the_combination_of_the_branches(golden, golden_model, condition, relative_norm, guidance_scale):
    eps = golden_model.denoiser(
        golden.inputs["in.latent"],
        condition,
        torch.tensor([481.0]),
        golden.prompts,
        torch.ones(2, golden.config.control_count),
        torch.tensor(guidance_scale),
    )
    cond, uncond = golden.expected["eps.t481.cond"], golden.expected["eps.t481.uncond"]
    assert relative_norm(eps, uncond + guidance_scale * (cond - uncond)) < TOLERANCE


def test_control_residuals(golden, golden_model, condition, relative_norm):
    residuals = golden_model.denoiser.controlnet(
        golden.inputs["in.latent"][:1], condition[:1], torch.tensor([481.0]), golden.inputs["in.context"]
    )
    assert len(residuals) == golden.config.control_count == 13
    for i, residual in enumerate(residuals):
        assert relative_norm(residual, golden.expected[f"control.t481.{i:02d}"]) < TOLERANCE, i


def test_decoder(golden, golden_model, relative_norm):
    image = golden_model.autoencoder.decode(golden.inputs["in.decode"])
    assert relative_norm(image, golden.expected["decode.image"]) < TOLERANCE
    uint8 = (image * 127.5 + 127.5).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    difference = (uint8.int() - golden.expected["decode.uint8"].int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() <= 1e-3

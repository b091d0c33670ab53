"""Networks whose layers call the Triton kernels, in Triton's interpreter, which a process of its own is started for."""

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("triton", reason="triton is optional")

CODE = """
    import torch

    from featinv_fast.config import AutoencoderConfig, ModelConfig
    from featinv_fast.models import FeatInv
    from featinv_fast.rewrites.engine_model import EngineModel
    from featinv_fast.checks.options import layer_providers
    from featinv_fast.rewrites.fused_ops import fuse_ops

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ModelConfig(
        latent_size=4,
        channels=32,
        channel_multipliers=(1, 1),
        blocks_per_level=1,
        attention_levels=(0,),
        context_channels=16,
        context_tokens=5,
        feature_channels=6,
        condition_hidden_channels=16,
        autoencoder=AutoencoderConfig(channels=32, channel_multipliers=(1, 1), blocks_per_level=1),
    )
    model = FeatInv(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    prompts = torch.randn(2, 5, 16)
    plain = EngineModel(model, prompts).graphs()
    row = plain["time_embedding"](torch.tensor([481.0]))[0]
    latents, condition, scales = torch.randn(2, 4, 4, 4), torch.randn(2, 32, 4, 4), torch.ones(2, config.control_count)
    calls = {
        "condition_encoder": (torch.randn(2, 6, 3, 3),),
        "denoiser": (latents, condition, row, torch.tensor(1.75), scales),
        "decoder": (latents,),
    }
    expected = {name: plain[name](*inputs) for name, inputs in calls.items()}
    network = EngineModel(model, prompts)
    fuse_ops(network, layer_providers("triton"))
    graphs = network.graphs()
    for name, inputs in calls.items():
        error = (graphs[name](*inputs) - expected[name]).norm() / expected[name].norm()
        print(name, error.item(), flush=True)
"""
GRAPHS = ("condition_encoder", "denoiser", "decoder")
# A change of summation order moves the golden outputs by 2e-6.
FP32 = 5e-6


def test_the_triton_kernels_serve_every_layer():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(CODE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    errors = dict(line.split() for line in done.stdout.splitlines())
    assert tuple(errors) == GRAPHS
    assert all(0.0 < float(error) <= FP32 for error in errors.values()), errors

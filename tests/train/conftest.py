"""A tiny training objective, and images in folders."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from featinv_fast.train.objective import Objective
from featinv_fast.train.settings import RateShape, TrainingConfig


class Line(Objective):
    """Regression with dropout and noise: everything random that a real objective has."""

    def __init__(self, breaks_at=None):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.05), nn.BatchNorm1d(8), nn.Linear(8, 1))
            self.frozen = nn.Linear(4, 1).requires_grad_(requires_grad=False)
        nn.init.constant_(self.frozen.weight, 0.5)
        nn.init.zeros_(self.frozen.bias)
        self.loaded = []
        self.forwards = 0
        self.breaks_at = breaks_at

    length = 10

    def load(self, draws):
        self.loaded.append(draws)
        x = np.random.default_rng(0).normal(size=(self.length, 4)).astype(np.float32)
        return {"x": torch.from_numpy(x[draws % self.length])}

    def load_from(self, data, draws):
        return {"x": torch.from_numpy(data[draws])}

    def forward(self, batch, generator, average):
        assert average is None or len(average) == 6
        self.forwards += 1
        noise = torch.randn(len(batch["x"]), 1, generator=generator)
        loss = (self.network(batch["x"]) - self.frozen(batch["x"]) - 0.01 * noise).square().mean()
        if self.forwards == self.breaks_at:
            loss = loss * float("nan")
        return {"loss": loss, "twice": 2 * loss.detach()}

    def preview(self):
        return torch.linspace(-1, 1, 2 * 3 * 3 * 4 * 4).view(2, 3, 3, 4, 4)


@pytest.fixture
def line():
    """The objective's class."""
    return Line


@pytest.fixture
def line_config():
    """Its training, with everything that has a state."""
    return TrainingConfig(
        steps=12,
        batch_size=3,
        accumulation=2,
        learning_rate=0.01,
        warmup_steps=3,
        rate_shape=RateShape.COSINE,
        clip_norm=1.0,
        ema_decay=0.9,
        device="cpu",
        seed=7,
        log_every=2,
        checkpoint_every=3,
        image_every=6,
    )


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Two folders of noisy images of several sizes. Do not change them."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(5)
    for name, edges in (("cats", [(40, 30), (33, 50), (64, 64)]), ("dogs", [(20, 90), (48, 32)])):
        (root / name).mkdir()
        for i, (height, width) in enumerate(edges):
            coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((width, height)).save(root / name / f"{i}.png")
    return root


FEATINV = """
recipe = "controlnet"
folder = "run"
out = "featinv.safetensors"
base = "base.safetensors"
condition_hidden_channels = 16
[backbone]
name = "test_convnext"
weights = "random:0"
[data]
source = "pictures"
size = 64
crop = "center"
[training]
steps = 2
batch_size = 2
learning_rate = 1e-3
device = "cpu"
"""


@pytest.fixture
def featinv_folder(tmp_path, pictures, tiny_base):
    """A folder with images, a tiny base model that stores its prompts, and `recipe.toml` for FeatInv on them."""
    (tmp_path / "pictures").symlink_to(pictures)
    shutil.copy(tiny_base, tmp_path / "base.safetensors")
    (tmp_path / "recipe.toml").write_text(FEATINV)
    return tmp_path

"""What the recipes train towards: losses, starting points, and what learns."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from featinv_fast import samplers
from featinv_fast.checkpoints import Checkpoint, load_base, save_base
from featinv_fast.config import FeatureLayout, FeatureSpec, SamplingConfig
from featinv_fast.errors import ConfigError
from featinv_fast.features import Backbone, normalise
from featinv_fast.models import FeatInv
from featinv_fast.samplers import OFFICIAL_SCHEDULE
from featinv_fast.train import assembly, diffusion
from featinv_fast.train.autoencoder import AutoencoderObjective
from featinv_fast.train.average import learning
from featinv_fast.train.consistency import ConsistencyObjective, consistency
from featinv_fast.train.controlnet import ControlNetObjective
from featinv_fast.train.data import ImageFolder
from featinv_fast.train.diffusion import ddim_step
from featinv_fast.train.extractor import Extractor
from featinv_fast.train.inputs import Inputs
from featinv_fast.train.perceptual import LatentPerceptual, Perceptual
from featinv_fast.train.selection import select
from featinv_fast.train.settings import (
    AutoencoderRecipe,
    BackboneConfig,
    Cache,
    ControlNetRecipe,
    Crop,
    DataConfig,
    DistillRecipe,
    Learns,
    OwnPathConfig,
    PerceptualConfig,
    TrainingConfig,
)
from featinv_fast.train.student import Conditioned, make_student, student_tensors
from featinv_fast.train.trajectory import TrajectoryObjective, segments


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def prompts(tiny_config):
    shape = (1, tiny_config.context_tokens, tiny_config.context_channels)
    return {"cond": torch.randn(shape, generator=seeded(1)), "uncond": torch.randn(shape, generator=seeded(2))}


@pytest.fixture
def batch(tiny_config):
    """What cached inputs give for three images."""
    latents = (3, 4, tiny_config.latent_size, tiny_config.latent_size)
    return {
        "mean": torch.randn(latents, generator=seeded(3)),
        "log_variance": torch.full(latents, -4.0),
        "features": torch.randn(3, tiny_config.feature_channels, 3, 3, generator=seeded(4)),
    }


@pytest.fixture
def inputs(pictures, make_model, tiny_config):
    """Latents of the pictures; the batches of these tests bring latents and features along."""
    return Inputs(
        ImageFolder(select(pictures), size=16, crop=Crop.CENTER),
        DataConfig(source="pictures", crop=Crop.CENTER, size=16),
        make_model(tiny_config).autoencoder,
        image_size=16,
        extractor=None,
        folder=pictures,
        progress=False,
    )


COMMON = {
    "folder": "x",
    "out": "x.safetensors",
    "backbone": BackboneConfig(name="x"),
    "data": DataConfig(source="x"),
    "training": TrainingConfig(steps=1, ema_decay=0.95),
}


def recipe(**changes):
    return DistillRecipe(recipe="distill", teacher="x", **COMMON | changes)


def controlnet_recipe(**changes):
    return ControlNetRecipe(recipe="controlnet", base="x", **COMMON | changes)


# --- the start of a FeatInv training ---


@pytest.fixture
def base(make_model, tiny_config, prompts, tmp_path):
    tensors = {n: t for n, t in make_model(tiny_config).state_dict().items() if n.startswith(("denoiser.unet", "auto"))}
    return load_base(save_base(tmp_path / "base.safetensors", tiny_config, tensors, prompts))


def test_a_new_controlnet_changes_nothing(base, tiny_config, batch, prompts):
    model = assembly.featinv_from_base(base, tiny_config, seed=0)
    time = torch.tensor([5.0, 500.0, 999.0])
    x, scales = batch["mean"], torch.ones(1, tiny_config.control_count)
    eps = model.denoiser(x, model.condition_encoder(batch["features"]), time, prompts["cond"], scales)
    torch.testing.assert_close(eps, model.denoiser.unet(x, time, prompts["cond"]), rtol=0, atol=0)
    unet, controlnet = model.denoiser.unet, model.denoiser.controlnet
    for mine, theirs in ((controlnet.encoder, unet.encoder), (controlnet.time_embedding, unet.time_embedding)):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b)
            assert a.data_ptr() != b.data_ptr()
    learned = learning(model)
    assert all(name.startswith(("condition_encoder.", "denoiser.controlnet.")) for name in learned)
    assert len(learned) == 6 + len(list(controlnet.parameters()))
    again, other = (assembly.featinv_from_base(base, tiny_config, seed=seed) for seed in (0, 1))
    assert torch.equal(model.condition_encoder.conv_in.weight, again.condition_encoder.conv_in.weight)
    assert not torch.equal(model.condition_encoder.conv_in.weight, other.condition_encoder.conv_in.weight)


def test_a_training_goes_on_from_a_checkpoint_on_the_same_base(base, tiny_config, prompts, tmp_path):
    def checkpoint(model):
        return Checkpoint(
            config=tiny_config,
            tensors=model.state_dict(),
            prompts=prompts,
            text_encoder={},
            features=FeatureSpec(channels=tiny_config.feature_channels),
            sampling=SamplingConfig(),
            metadata={},
            adaptations=(),
            layout="featinv",
            path=tmp_path / "started.safetensors",
        )

    model, started = (assembly.featinv_from_base(base, tiny_config, seed=0) for _ in range(2))
    with torch.no_grad():
        for parameter in started.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert assembly.learn_on(model, checkpoint(started), checkpoint(started).features) == ()
    for (name, mine), theirs in zip(model.named_parameters(), started.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.requires_grad == name.startswith(("condition_encoder.", "denoiser.controlnet."))
        assert mine.data_ptr() != theirs.data_ptr() or not mine.requires_grad
    started = copy.deepcopy(started)  # the frozen parts of both share their memory
    with torch.no_grad():
        started.denoiser.unet.conv_out.bias.add_(1.0)
    with pytest.raises(ConfigError, match="conv_out"):
        assembly.learn_on(model, checkpoint(started), checkpoint(started).features)
    wider = dataclasses.replace(tiny_config, condition_hidden_channels=tiny_config.condition_hidden_channels + 8)
    with pytest.raises(ConfigError, match="condition_encoder"):
        assembly.learn_on(assembly.featinv_from_base(base, wider, seed=0), checkpoint(started), FeatureSpec(channels=6))


def test_prompts_come_from_the_base(base, prompts):
    assert torch.equal(assembly.base_prompts(base, None, None)["cond"], prompts["cond"])
    with pytest.raises(ConfigError, match="no text encoder"):
        assembly.base_prompts(base, "another prompt", None)


def test_features_and_prompt_are_dropped_together(make_model, tiny_config, inputs, batch, prompts):
    model = make_model(tiny_config)
    model.requires_grad_()

    def loss(drop, features, cond):
        objective = ControlNetObjective(model, inputs, {**prompts, "cond": cond}, controlnet_recipe(drop_features=drop))
        return objective(batch | {"features": features}, seeded(), None)["loss"]

    other = torch.roll(batch["features"], 1, dims=0)
    assert loss(1.0, batch["features"], prompts["cond"]) == loss(1.0, other, prompts["cond"] + 1)
    assert loss(0.0, batch["features"], prompts["cond"]) != loss(0.0, other, prompts["cond"])
    assert loss(0.0, batch["features"], prompts["cond"]) != loss(0.0, batch["features"], prompts["cond"] + 1)
    half = loss(0.5, batch["features"], prompts["cond"])
    assert half != loss(0.0, batch["features"], prompts["cond"])
    assert half != loss(1.0, batch["features"], prompts["cond"])


def test_the_loss_is_that_of_the_noise(make_model, tiny_config, inputs, batch, prompts):
    """Against the formula, written out."""
    model = make_model(tiny_config)
    generator = seeded(9)
    posterior = torch.randn(batch["mean"].shape, generator=generator)
    latents = (batch["mean"] + torch.exp(torch.tensor(-2.0)) * posterior) * tiny_config.autoencoder.latent_scale
    times = torch.randint(1000, (3,), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    a = torch.tensor(OFFICIAL_SCHEDULE.alphas_cumprod[times.numpy()]).view(3, 1, 1, 1)
    noisy = (a.sqrt() * latents + (1 - a).sqrt() * noise).float()
    condition = model.condition_encoder(batch["features"])
    scales = torch.ones(1, tiny_config.control_count)
    eps = torch.cat(
        [
            model.denoiser(noisy[i : i + 1], condition[i : i + 1], times[i : i + 1].float(), prompts["cond"], scales)
            for i in range(3)
        ]
    )
    objective = ControlNetObjective(model, inputs, prompts, controlnet_recipe(drop_features=0.0))
    given = objective(batch, seeded(9), None)["loss"]
    torch.testing.assert_close(given, (eps - noise).square().mean(), rtol=1e-5, atol=0)


def test_the_perceptual_loss_is_that_of_a_part_of_the_decoded_x0(make_model, tiny_config, inputs, batch, prompts):
    model = make_model(tiny_config)
    seen = []

    def perceptual(decoded, wanted):
        seen.append((decoded, wanted))
        return (decoded - wanted).square().mean()

    config = PerceptualConfig(layers=(0,), weight=3.0, share=0.5)
    second = LatentPerceptual(perceptual, model.autoencoder, config)
    settings = controlnet_recipe(drop_features=0.0)
    plain = ControlNetObjective(model, inputs, prompts, settings)(batch, seeded(9), None)
    both = ControlNetObjective(model, inputs, prompts, settings, second)(batch, seeded(9), None)
    ((decoded, wanted),) = seen
    assert len(decoded) == len(wanted) == 2  # half of three, and never none
    distance = (decoded - wanted).square().mean()
    torch.testing.assert_close(both["loss"], plain["loss"] + 3 * distance)
    torch.testing.assert_close(both["perceptual"], 3 * distance.detach())
    assert not wanted.requires_grad
    model.requires_grad_()
    latents = torch.randn(3, 4, 3, 3, generator=seeded())
    assert second(latents, latents) == 0.0  # what predicts the latents themselves has nothing to learn


@pytest.mark.parametrize(("layers", "share"), [((), 0.5), ((0,), 0.0), ((0,), 1.5)])
def test_perceptual_losses_of_nothing_are_refused(layers, share):
    with pytest.raises(ConfigError, match="perceptual"):
        PerceptualConfig(layers=layers, share=share)


# --- the model's own path ---


def test_a_share_of_the_latents_comes_from_where_the_model_itself_arrives(
    make_model, tiny_config, inputs, batch, prompts
):
    """With a predictor that means the same image at all times, jumps of DDIM keep the noise that they start with."""
    batch = batch | {"log_variance": torch.full_like(batch["mean"], -60.0)}
    latents = batch["mean"] * tiny_config.autoencoder.latent_scale
    settings = controlnet_recipe(drop_features=1.0, own_path=OwnPathConfig(share=0.5, jumps=3))
    objective = ControlNetObjective(make_model(tiny_config), inputs, prompts, settings)
    objective.model.condition_encoder = nn.Identity()  # so that the features themselves are seen
    wrong, calls = 0.0, []

    def predict(x, time, features, context):
        calls.append((x, time, features, context))
        a = diffusion.signal_share(time.long())
        return (x - a.sqrt() * (latents[: len(x)] + wrong)) / (1 - a).sqrt()

    objective._predict = predict
    jumps = set()
    for i in range(10):
        calls.clear()
        losses = objective(batch, seeded(i), None)
        assert losses["own_path"] < 1e-8
        *path, (x, time, features, context) = calls
        jumps.add(len(path))
        assert {len(x) for x, *_ in path} == {2}  # half of three, and never none
        assert torch.equal(path[0][1], torch.full((2,), 999.0))
        stops = torch.stack([stop for _, stop, *_ in path] + [time[:2]]).diff(dim=0)
        assert (stops <= 0).all()
        assert (stops.max(dim=0).values - stops.min(dim=0).values).max() <= 1  # equal ones, but for rounding
        ends, pure = (diffusion.signal_share(t.long()) for t in (time, path[0][1]))
        noise = (path[0][0] - pure.sqrt() * latents[:2]) / (1 - pure).sqrt()
        torch.testing.assert_close(x[:2], ends[:2].sqrt() * latents[:2] + (1 - ends[:2]).sqrt() * noise)
        # What follows the features is told them, whatever is dropped elsewhere.
        torch.testing.assert_close(features[:2], batch["features"][:2])
        assert torch.equal(context, torch.cat([prompts["cond"]] * 2 + [prompts["uncond"]]))
        assert (features[2:] == 0).all()
    assert jumps == {1, 2, 3}
    wrong = 0.5
    torch.testing.assert_close(objective(batch, seeded(), None)["own_path"], torch.tensor(0.25), rtol=1e-3, atol=0)


def test_the_losses_of_both_parts_are_weighted_by_their_shares(make_model, tiny_config, inputs, batch, prompts):
    model = make_model(tiny_config).requires_grad_()

    def losses(share):
        settings = controlnet_recipe(own_path=None if share is None else OwnPathConfig(share=share))
        return ControlNetObjective(model, inputs, prompts, settings)(batch, seeded(9), None)

    some, all_of_it = losses(0.5), losses(1.0)
    assert set(losses(None)) == {"loss"}
    assert all_of_it["loss"] == all_of_it["own_path"] > 0
    rest = (some["loss"] - 2 / 3 * some["own_path"]) * 3
    assert 0.5 < rest < 2  # an untrained model misses eps by about its variance
    all_of_it["loss"].backward()
    assert model.denoiser.controlnet.zero_convs[0].weight.grad.abs().sum() > 0


def test_a_student_learns_from_where_its_own_steps_lead(ideal):
    objective, batch = ideal(ConsistencyObjective, recipe(own_path=OwnPathConfig(share=1.0, jumps=3)))
    paths = []
    for i in range(10):
        objective.student.calls.clear()
        assert objective(batch, seeded(i), {})["loss"] < 1e-4
        paths.append(list(objective.student.calls))
        assert paths[-1][0] == [999.0] * 3
        assert set(paths[-1][-1]) <= set(range(19, 1000, 20))
    assert {len(path) for path in paths} == {2, 3, 4}  # one to three steps, and the one that learns
    assert not objective.teacher.calls  # the image itself is the target
    objective.student.drift = 0.5
    objective.student.calls.clear()
    losses = objective(batch, seeded(), {})
    missed = 0.5 * torch.tensor(objective.student.calls[-1]) / 1000
    expected = ((missed.square() + 1e-6).sqrt() - 1e-3).mean()
    torch.testing.assert_close(losses["own_path"], expected, rtol=1e-2, atol=1e-4)


def test_a_student_learns_from_its_teacher_beside_its_own_path(ideal):
    objective, batch = ideal(ConsistencyObjective, recipe(own_path=OwnPathConfig(share=0.5, jumps=1)))
    objective.teacher.latents = objective.student.latents = objective.student.latents[2:]  # of the last item
    objective(batch, seeded(), {})
    (taught,) = objective.teacher.calls
    path, averaged, online = objective.student.calls
    assert path == [999.0, 999.0]
    assert taught == online[2:]
    assert averaged == [max(taught[0] - 20, 0)]


@pytest.mark.parametrize(("share", "jumps"), [(0.0, 1), (1.5, 1), (0.5, 0)])
def test_an_own_path_of_nothing_is_refused(share, jumps):
    with pytest.raises(ConfigError, match="own path"):
        OwnPathConfig(share=share, jumps=jumps)


# --- few steps ---


@pytest.mark.parametrize(("steps", "original"), [(1, None), (4, None), (50, None), (3, 10)])
def test_the_consistency_function_is_the_samplers(steps, original):
    table = samplers.build("lcm", steps, original_inference_steps=original)
    z, eps = torch.randn(2, 4, 3, 3, generator=seeded(), dtype=torch.float64)[:, None]
    time = table.timesteps[-1]
    a = torch.tensor(OFFICIAL_SCHEDULE.alphas_cumprod[int(time)]).view(1, 1, 1, 1)
    given = consistency(z, eps, torch.tensor([time]), a)
    torch.testing.assert_close(given, table.A[-1] * z + table.B[-1] * eps, rtol=1e-10, atol=1e-12)


def test_at_time_zero_the_consistency_function_is_the_identity():
    z, eps = torch.randn(2, 1, 4, 3, 3, generator=seeded())
    assert torch.equal(consistency(z, eps, torch.zeros(1), torch.tensor(0.9991).view(1, 1, 1, 1)), z)


def test_a_step_is_the_samplers_step():
    table = samplers.build("ddim", 50)
    x, eps = torch.randn(2, 1, 4, 3, 3, generator=seeded(), dtype=torch.float64)
    a = torch.tensor(OFFICIAL_SCHEDULE.alphas_cumprod)
    given = ddim_step(x, eps, a[981], a[961])
    torch.testing.assert_close(given, table.A[0] * x + table.B[0] * eps, rtol=1e-10, atol=1e-12)


class Ideal(nn.Module):
    """Knows the only image there is: its eps leads every noisy latent straight back."""

    def __init__(self, latents, prompts):
        super().__init__()
        self.latents = latents
        self.register_buffer("prompts", torch.cat(list(prompts.values())))
        self.drift = 0.0  # makes the image depend on the time
        self.calls = []

    def __deepcopy__(self, memo):
        return self  # its average is itself

    def forward(self, x, time, *_):
        self.calls.append(time.tolist())
        a = diffusion.signal_share(time.long())
        latents = self.latents + self.drift * time.view(-1, 1, 1, 1) / 1000
        return (x - a.sqrt() * latents) / (1 - a).sqrt()

    def guided(self, x, time, *_):
        return self(x, time)


@pytest.fixture
def ideal(make_model, tiny_config, inputs, batch, prompts):
    """`ideal(kind, recipe)`: an objective whose teacher and student are both perfect, and its batch."""

    def make(kind, recipe):
        model = make_model(tiny_config)
        objective = kind(model, model, inputs, recipe, prompts)
        latents = batch["mean"] * tiny_config.autoencoder.latent_scale
        objective.teacher, objective.student = Ideal(latents, prompts), Ideal(latents, prompts)
        return objective, batch | {"log_variance": torch.full_like(batch["mean"], -60.0)}

    return make


def test_a_perfect_student_has_no_consistency_loss(ideal):
    objective, batch = ideal(ConsistencyObjective, recipe())
    losses = [objective(batch, seeded(i), {})["loss"].item() for i in range(10)]
    # The first time of the grid leads to time 0, where a little noise is left and the function is the identity.
    exact = [19 not in start for start in objective.teacher.calls]
    assert 5 < sum(exact) < 10
    assert all((loss < 1e-8) == clean for loss, clean in zip(losses, exact, strict=True))
    assert max(losses) < 0.02
    (start,), (target, online) = objective.teacher.calls[:1], objective.student.calls[:2]
    assert [max(time - 20, 0) for time in start] == target
    assert online == start
    times = np.concatenate(objective.teacher.calls)
    assert set(times) <= set(range(19, 1000, 20))
    objective.student.drift = 1.0
    assert objective(batch, seeded(), {})["loss"] > 0.01


def test_the_target_has_the_averaged_weights(make_model, tiny_config, inputs, batch, prompts):
    teacher = make_model(tiny_config)
    student = make_student(teacher, recipe())
    objective = ConsistencyObjective(teacher, student, inputs, recipe(), prompts)
    average = {name: p.detach().clone() for name, p in learning(objective).items()}
    same = objective(batch, seeded(), average)["loss"]
    for value in average.values():
        value.mul_(1.5)
    assert objective(batch, seeded(), average)["loss"] != same
    same.backward()
    assert all(p.grad is None for p in objective.teacher.parameters())


def test_segments_cover_the_teachers_path():
    found = segments(4, 50)
    assert [(s.time, s.end) for s in found] == [(751, 501), (501, 251), (251, 1), (1, 0)]
    assert found[0].path == tuple(range(981, 501, -20))
    assert found[1].path == (501, *range(481, 251, -20))
    assert found[3].path == (1,)
    with pytest.raises(ConfigError, match="no more steps"):
        segments(10, 10)


def test_a_perfect_student_follows_the_path(ideal):
    objective, batch = ideal(TrajectoryObjective, recipe(steps=4))
    objective._shares = torch.tensor([0.0, 1.0, 1.0, 1.0])
    losses = [objective(batch, seeded(i), None)["loss"].item() for i in range(10)]
    assert max(losses) < 1e-8
    # Pure noise at time 751 is not what the process makes there: the first segment has to be learned.
    objective._shares = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert objective(batch, seeded(), None)["loss"] > 1e-4
    objective.student.latents = objective.student.latents + 1
    objective._shares = torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert objective(batch, seeded(), None)["loss"] > 0.1


@pytest.mark.parametrize("learns", list(Learns))
def test_a_student_starts_as_its_teacher(make_model, tiny_config, batch, prompts, learns):
    teacher = make_model(tiny_config)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = make_student(teacher, recipe(learns=learns, lora_rank=2))
    x, time, features = batch["mean"], torch.tensor([5.0, 500.0, 999.0]), batch["features"]
    expected = Conditioned(teacher, prompts)(x, time, features)
    torch.testing.assert_close(Conditioned(student, prompts)(x, time, features), expected, rtol=1e-5, atol=1e-6)
    names = learning(student)
    assert any("unet" in name for name in names) == (learns is not Learns.CONTROLNET)
    assert any("controlnet" in name for name in names)
    assert all("lora_" in name for name in names) == (learns is Learns.LORA)
    with torch.no_grad():
        for parameter in names.values():
            parameter.add_(0.02)
    plain = FeatInv(student.config)
    plain.load_state_dict(student_tensors(student))
    changed = Conditioned(student, prompts)(x, time, features)
    assert (changed - expected).abs().max() > 1e-3
    torch.testing.assert_close(Conditioned(plain, prompts)(x, time, features), changed, rtol=1e-4, atol=1e-5)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_an_embedded_guidance_scale_is_an_input(make_model, tiny_config, batch, prompts):
    teacher = make_model(tiny_config)
    student = make_student(teacher, recipe(guidance_channels=16, guidance_scale=(1.0, 2.0)))
    assert student.config.guidance_embedding_channels == 16
    networks = Conditioned(student, prompts)
    x, time, features = batch["mean"], torch.tensor([5.0, 500.0, 999.0]), batch["features"]
    expected = Conditioned(teacher, prompts)(x, time, features)
    assert torch.equal(networks(x, time, features, torch.tensor([1.0, 1.5, 2.0])), expected)
    nn.init.normal_(student.denoiser.unet.time_embedding.guidance_projection.weight)
    assert not torch.equal(networks(x, time, features, torch.tensor([1.0, 1.5, 2.0])), expected)
    FeatInv(student.config).load_state_dict(student_tensors(student))


def test_guidance_is_the_runtimes(make_model, tiny_config, batch, prompts):
    networks = Conditioned(make_model(tiny_config), prompts)
    x, time, features = batch["mean"], torch.tensor([500.0]), batch["features"]
    scale = torch.tensor([1.0, 2.0, 3.0])
    swapped = Conditioned(make_model(tiny_config), {"cond": prompts["uncond"], "uncond": prompts["cond"]})
    cond, uncond = networks(x, time, features), swapped(x, time, features)
    expected = uncond + scale[:, None, None, None] * (cond - uncond)
    torch.testing.assert_close(networks.guided(x, time, features, scale), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(networks.guided(x, time, features, torch.ones(3)), cond)


# --- images, latents and features ---


@pytest.mark.parametrize(
    ("name", "layout"),
    [("featinv_convnext", FeatureLayout.NCHW), ("featinv_swin", FeatureLayout.NHWC), ("featinv_vit", "tokens")],
)
@pytest.mark.filterwarnings("ignore::featinv_fast.features.BackboneNormalisationWarning")  # another mean is stated
def test_features_are_those_of_the_backbone(name, layout, tmp_path):
    layout = FeatureLayout(layout)
    config = BackboneConfig(name=name, weights="random:0", layout=layout, mean=(0.3, 0.4, 0.5))
    extractor = Extractor(config, size=64, root=tmp_path, device=torch.device("cpu"))
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=seeded())
    spec = extractor.spec
    stated = {"backbone": name, "layer": "final", "layout": layout, "input_size": 64, "mean": (0.3, 0.4, 0.5)}
    assert {field: getattr(spec, field) for field in stated} == stated
    assert spec.std == (0.229, 0.224, 0.225)
    backbone = Backbone(spec, weights="random:0")
    expected = backbone(backbone.preprocess([Image.fromarray(image) for image in images.numpy()]))
    expected = normalise(expected, spec, layout=layout)
    torch.testing.assert_close(extractor(images), expected, rtol=1e-5, atol=1e-5)
    pooled = Extractor(dataclasses.replace(config, pooled=True), size=64, root=tmp_path, device=torch.device("cpu"))
    torch.testing.assert_close(pooled(images), expected.mean(dim=(2, 3), keepdim=True), rtol=1e-5, atol=1e-5)
    given = normalise(expected.mean(dim=(2, 3)), pooled.spec)
    torch.testing.assert_close(given, pooled(images), rtol=1e-5, atol=1e-5)
    assert pooled.identity() != extractor.identity()


@pytest.mark.parametrize("kept", [Cache.MEMORY, Cache.DISK])
def test_kept_inputs_are_the_computed_ones(pictures, make_model, tiny_config, tmp_path, kept):
    data = ImageFolder(select(pictures), size=64, crop=Crop.CENTER)
    config = DataConfig(source="pictures", size=64, crop=Crop.CENTER)
    backbone = BackboneConfig(name="featinv_convnext", weights="random:0")
    results = []
    for cache in (Cache.NONE, kept, kept):
        inputs = Inputs(
            data,
            dataclasses.replace(config, cache=cache),
            make_model(tiny_config).autoencoder,
            image_size=16,
            extractor=Extractor(backbone, size=64, root=tmp_path, device=torch.device("cpu")),
            folder=tmp_path,
            progress=False,
        )
        loaded = inputs.load(np.array([4, 0, 6]))
        results.append((inputs.latents(loaded, seeded(1)), inputs.features(loaded), inputs.largest_feature()))
    for latents, features, largest in results[1:]:
        torch.testing.assert_close(latents, results[0][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features, results[0][1], rtol=1e-4, atol=1e-5)
        assert largest == pytest.approx(results[0][2], rel=1e-5)
    assert results[0][0].shape == (3, 4, 8, 8)
    assert len(list(tmp_path.iterdir())) == (kept is Cache.DISK)


def test_latents_of_another_autoencoder_are_computed_anew(pictures, make_model, tiny_config, tmp_path):
    """Also where each of its weights has the same sum."""
    data = ImageFolder(select(pictures), size=16, crop=Crop.CENTER)
    config = DataConfig(source="pictures", size=16, crop=Crop.CENTER, cache=Cache.DISK)
    autoencoder, means = make_model(tiny_config).autoencoder, []
    for _ in range(2):
        inputs = Inputs(data, config, autoencoder, image_size=16, extractor=None, folder=tmp_path, progress=False)
        means.append(inputs.load(np.array([0]))["mean"])
        weight = next(autoencoder.encoder.parameters())
        weight.copy_(weight.flip(0))
    assert not torch.equal(*means)


def test_random_crops_cannot_be_kept(pictures, make_model, tiny_config, tmp_path):
    with pytest.raises(ConfigError, match="nothing to keep"):
        Inputs(
            ImageFolder(select(pictures), size=16),
            DataConfig(source="pictures", size=16, cache=Cache.MEMORY),
            make_model(tiny_config).autoencoder,
            image_size=16,
            extractor=None,
            folder=tmp_path,
            progress=False,
        )


def test_the_terms_of_the_autoencoder(pictures, make_model, tiny_config, tmp_path):
    data = ImageFolder(select(pictures), size=64, crop=Crop.CENTER)
    wanted = AutoencoderRecipe(
        recipe="autoencoder",
        folder="x",
        out="x.safetensors",
        data=DataConfig(source="x"),
        training=TrainingConfig(steps=1),
        model=tiny_config.autoencoder,
        absolute_weight=2.0,
        square_weight=3.0,
        kl_weight=0.5,
        perceptual_weight=7.0,
    )
    backbone = BackboneConfig(name="featinv_convnext", weights="random:0")
    perceptual = Perceptual(backbone, (0, 2), size=64, root=tmp_path, device=torch.device("cpu"))
    autoencoder = make_model(tiny_config).autoencoder.requires_grad_()
    objective = AutoencoderObjective(autoencoder, wanted, data, 64, perceptual)
    terms = objective(objective.load(np.arange(3)), seeded(), None)
    weighted = 2 * terms["absolute"] + 3 * terms["square"] + 0.5 * terms["kl"] + 7 * terms["perceptual"]
    torch.testing.assert_close(terms["loss"], weighted)
    assert all(value > 0 for value in terms.values())
    image = torch.rand(2, 3, 64, 64, generator=seeded()) * 2 - 1
    assert perceptual(image, image) == 0
    shifted = image.roll(3, dims=3).requires_grad_()
    perceptual(shifted, image).backward()
    assert shifted.grad.abs().max() > 0
    latents = objective.autoencoder.encoder(torch.zeros(1, 3, 64, 64))[0]
    assert latents.shape == (1, 4, 32, 32)
    scale = objective.measured_scale()
    autoencoder.decoder.latent_scale = scale
    images = objective.load(np.arange(5))["images"]
    encoded = autoencoder.encode(images.permute(0, 3, 1, 2) / 127.5 - 1, seeded())
    assert encoded.std().item() == pytest.approx(1.0, abs=0.02)

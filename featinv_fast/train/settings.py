"""What a training run is asked for: one TOML file, read into frozen data. Unknown keys are errors."""

from __future__ import annotations

import dataclasses
import enum
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featinv_fast.config import AutoencoderConfig, FeatureLayout, ModelConfig, Precision, from_dict
from featinv_fast.errors import ConfigError

SCENES = "scenes"  # the data source that names the synthetic world of featinv_fast.demo


class RateShape(enum.StrEnum):
    """How the learning rate goes on after its warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"  # to zero at the last step (arXiv 1608.03983, without restarts)


class Cache(enum.StrEnum):
    """Where latents and features of the frozen networks are kept. Random crops and flips leave nothing to keep."""

    NONE = "none"  # computed for every batch
    MEMORY = "memory"
    DISK = "disk"  # files in the folder `cache`, named after what they were computed from


class Crop(enum.StrEnum):
    """How images become squares of `DataConfig.size` pixels."""

    RANDOM = "random"  # RandomResizedCrop and flips, as in the official training
    CENTER = "center"  # resized, then the centre: every pass shows the same pixels


class Learns(enum.StrEnum):
    """Which weights of the student a distillation trains. The condition encoder learns with the ControlNet."""

    ALL = "all"  # ControlNet, condition encoder and U-Net
    CONTROLNET = "controlnet"
    LORA = "lora"  # low-rank additions to the linear layers and convolutions of both networks (arXiv 2106.09685)


class Weighting(enum.StrEnum):
    """What the squared error of eps counts at the time t."""

    EPS = "eps"  # the same at every time: the simple loss (arXiv 2006.11239, eq. 14), as in the official training
    V = "v"  # 1 / alphas_cumprod[t], the error of v (arXiv 2202.00512, sec. 4): noisy times, which decide what is seen


class Times(enum.StrEnum):
    """How often each time is trained."""

    UNIFORM = "uniform"  # as in the official training
    CUBIC = "cubic"  # 1 - u^3 of the way to pure noise (arXiv 2302.08453): where layout and colours are still open


class Method(enum.StrEnum):
    """How a student learns to make few steps."""

    CONSISTENCY = "consistency"  # latent consistency distillation (arXiv 2310.04378): sampled with "lcm"
    TRAJECTORY = "trajectory"  # the teacher's DDIM path in longer steps (arXiv 2202.00512): sampled with "ddim"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The optimisation. The defaults are those of the official FeatInv training.

    Attributes:
        steps: optimiser steps.
        batch_size: items of one forward pass.
        accumulation: forward passes of one optimiser step.
        workers: threads that each take a part of every batch, on a CPU; on four cores a small U-Net trains 1.5 times
            faster with four of them than with its operators spread over the cores.
        learning_rate: of AdamW, after the warm-up.
        warmup_steps: steps over which the rate grows linearly from zero.
        rate_shape: what the rate does then.
        weight_decay: of AdamW.
        betas: of AdamW.
        clip_norm: largest norm of the gradient; None leaves it as it is.
        ema_decay: of the moving average of the weights, which is then what the run saves; None for no average.
        precision: of the arithmetic; weights and optimiser states are fp32 in any case.
        channels_last: memory order of images and convolutions; faster on some devices.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".
        seed: of order, noise and fresh weights.
        log_every: steps between two rows of the log.
        checkpoint_every: steps between two checkpoints.
        image_every: steps between two image grids; 0 for none.
    """

    steps: int
    batch_size: int = 8
    accumulation: int = 1
    workers: int = 1
    learning_rate: float = 1e-5
    warmup_steps: int = 0
    rate_shape: RateShape = RateShape.CONSTANT
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = None
    ema_decay: float | None = None
    precision: Precision = Precision.FP32
    channels_last: bool = False
    device: str = "auto"
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 1000
    image_every: int = 0

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "accumulation", "workers", "log_every", "checkpoint_every")
        wrong = {name: getattr(self, name) for name in positive if getattr(self, name) < 1}
        not_negative = ("warmup_steps", "image_every", "learning_rate", "weight_decay", "seed")
        wrong |= {name: getattr(self, name) for name in not_negative if not getattr(self, name) >= 0}
        if wrong:
            raise ConfigError("numbers of the training are out of range", given=wrong, expected=f"{positive} from 1 on")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError("the decay of the average is out of range", given=self.ema_decay, expected="0 <= d < 1")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError("unknown device", given=self.device, expected="auto, cpu or cuda")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from.

    Attributes:
        source: a folder of images, or "scenes" for the synthetic world.
        count: how many images or scenes, the first ones; None is all of a folder, and the split's usual number.
        split: of the scenes.
        seed: of the scenes.
        size: edge in pixels of the scenes, or of the squares that a folder's images become; what the backbone sees.
        crop: how a folder's images become squares.
        flips: probabilities of a horizontal and a vertical flip with random crops.
        cache: where latents and features are kept.
    """

    source: str
    count: int | None = None
    split: str = "train"
    seed: int = 0
    size: int = 288
    crop: Crop = Crop.RANDOM
    flips: tuple[float, float] = (0.5, 0.5)
    cache: Cache = Cache.NONE


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The vision model whose features are inverted.

    Attributes:
        name: of the timm model.
        weights: a local file; None lets timm download its pretrained weights, "random:SEED" is for trying things.
        layer: "final" or the number of a stage.
        layout: of what the model returns.
        pooled: average the map over its positions: the baseline that has lost where things are.
        input_size: edge in pixels of what the backbone sees; None is the data's own size.
        mean, std: of the backbone's normalisation; None asks timm.
    """

    name: str
    weights: str | None = None
    layer: str = "final"
    layout: FeatureLayout = FeatureLayout.NCHW
    pooled: bool = False
    input_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """A loss on what the recipe's backbone sees of predicted latents, once they are decoded.

    Attributes:
        layers: the backbone's stages that are compared.
        weight: of the loss.
        share: of every batch that it is computed for; decoding costs more than denoising.
    """

    layers: tuple[int, ...]
    weight: float = 1.0
    share: float = 0.125

    def __post_init__(self) -> None:
        if not self.layers or not 0 < self.share <= 1:
            raise ConfigError(
                "the perceptual loss is not sound",
                given=f"layers = {list(self.layers)}, share = {self.share}",
                expected="a stage or more, and 0 < share <= 1",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnPathConfig:
    """Scheduled sampling (arXiv 1506.03099; for diffusion models arXiv 2210.05147).

    A part of every batch stands where the model itself arrives from pure noise by a few long steps (DDIM without
    guidance, or LCM for a consistency student), not where the noised image is. From there, too, it learns to find x0,
    as the features tell it: what went wrong early in the sampling is mended later instead of being completed.

    Attributes:
        share: of every batch.
        jumps: the most steps from pure noise to the training time; each batch draws how many. Few cost less, and do
            not show how sampling in many steps goes astray.
    """

    share: float = 0.5
    jumps: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.jumps < 1:
            raise ConfigError(
                "the model's own path is not sound",
                given=f"share = {self.share}, jumps = {self.jumps}",
                expected="0 < share <= 1, and a jump or more",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every recipe names.

    Attributes:
        recipe: its name.
        folder: of the run: logs, images and checkpoints.
        out: the file that the run makes, `.safetensors`.
        data: the images.
        training: the optimisation.
    """

    recipe: str
    folder: str
    out: str
    data: DataConfig
    training: TrainingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe(Recipe):
    """A KL autoencoder (arXiv 2112.10752, without its adversary).

    Attributes:
        model: the architecture; the latent scale is measured at the end.
        absolute_weight, square_weight: of the pixels' L1 and L2 differences.
        kl_weight: of the divergence from N(0, 1) per latent value.
        perceptual: a backbone whose features the reconstruction should keep, or None.
        perceptual_layers: its stages that are compared.
        perceptual_weight: of that comparison.
    """

    model: AutoencoderConfig
    absolute_weight: float = 1.0
    square_weight: float = 0.0
    kl_weight: float = 1e-6
    perceptual: BackboneConfig | None = None
    perceptual_layers: tuple[int, ...] = ()
    perceptual_weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneRecipe(Recipe):
    """A timm classifier.

    Attributes:
        name: of the timm model.
        classes: number of classes.
        label_smoothing: of the cross entropy.
        drop_path: share of residual branches that are skipped at random (arXiv 1603.09382).
        concepts: what else the features should tell, by the name the data give it: its number of values. Linear heads
            on the pooled features learn them beside the classes and are thrown away at the end. A classifier of few
            classes forgets what its labels do not need, such as colours; one of a thousand classes does not.
        concept_weight: of each concept's cross entropy.
        mean, std: of the normalisation of its input.
    """

    name: str
    classes: int
    label_smoothing: float = 0.1
    drop_path: float = 0.0
    concepts: dict[str, int] = dataclasses.field(default_factory=dict)
    concept_weight: float = 0.3
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseRecipe(Recipe):
    """A latent diffusion model (arXiv 2112.10752) that stores two constant prompts.

    Attributes:
        model: the architecture; what it says of the autoencoder is replaced by the trained one's.
        autoencoder: file that the autoencoder recipe made.
        drop_prompt: how often the prompt is the empty one.
        concepts: what prompts say in training, by the name the data give it: its number of values. They are embedded by
            a table that learns beside the U-Net and is thrown away at the end. A U-Net that has learned to draw what it
            is told, as Stable Diffusion's from captions, follows a ControlNet better, at noisy times most of all.
        drop_caption: how often the constant prompt stands in for what there is to say.
        weighting: of the times. With "eps" a short training leaves x0 worse than its mean at the noisiest times, where
            sampling starts.
    """

    model: ModelConfig
    autoencoder: str
    drop_prompt: float = 0.15
    concepts: dict[str, int] = dataclasses.field(default_factory=dict)
    drop_caption: float = 0.15
    weighting: Weighting = Weighting.EPS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlNetRecipe(Recipe):
    """FeatInv (arXiv 2505.21032): a ControlNet and a condition encoder on a frozen base model.

    Attributes:
        base: a Stable-Diffusion-1.x checkpoint (official or diffusers layout), or what the base recipe made.
        backbone: the vision model.
        start: a FeatInv checkpoint on the same base whose ControlNet and condition encoder learn on; None starts from
            the base.
        latent_size: edge of the latents: 32 for images of 256 pixels; None is what the base says.
        condition_hidden_channels: width of the condition encoder.
        drop_features: how often features and prompt are dropped, both together: zeros and the empty prompt.
        times: how often each is trained.
        weighting: of the times; as that of the base.
        perceptual: a second loss, on what the backbone sees of the decoded x0; None for none, as in the official
            training. It needs an autoencoder that keeps what the backbone sees.
        own_path: where a part of the latents comes from; None for none, as in the official training.
        prompt: of the training; None is the official one, or what the base stores.
        tokenizer: for other prompts, CLIP's `tokenizer.json`.
        guidance_scale, unconditional_strength: defaults of the sampling, stored in the checkpoint.
        steps: default number of DDIM steps, stored in the checkpoint.
    """

    base: str
    backbone: BackboneConfig
    start: str | None = None
    latent_size: int | None = None
    condition_hidden_channels: int = 512
    drop_features: float = 0.15
    times: Times = Times.UNIFORM
    weighting: Weighting = Weighting.EPS
    perceptual: PerceptualConfig | None = None
    own_path: OwnPathConfig | None = None
    prompt: str | None = None
    tokenizer: str | None = None
    guidance_scale: float = 1.75
    unconditional_strength: float = 1.0
    steps: int = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillRecipe(Recipe):
    """A student that needs few steps.

    Attributes:
        teacher: a FeatInv checkpoint of any layout.
        backbone: where the teacher does not name its own, or for local weights.
        method: how the student learns.
        learns: which of its weights.
        lora_rank: of the low-rank additions.
        steps: steps of the student: fixed for "trajectory", the stored default for "consistency".
        teacher_steps: of the teacher's DDIM grid: 50 for "consistency" (its skipping step is 1000 / 50 = 20).
        guidance_scale: of the teacher. Two equal numbers are a fixed scale (1 is none); a range needs
            `guidance_channels`, and the student then takes the scale as an input (arXiv 2310.04378, sec. 4.2).
        unconditional_strength: of the features in the unconditional branch of the teacher's guidance.
        guidance_channels: width of that input's embedding; 0 for none.
        huber: c of the loss sqrt(d^2 + c^2) - c (arXiv 2310.04378's public code).
        perceptual: a second loss, on what the backbone sees of the student's decoded x0; for "consistency" only.
        own_path: where a part of the latents comes from; those learn from the images alone. For "consistency" only.
    """

    teacher: str
    backbone: BackboneConfig
    method: Method = Method.CONSISTENCY
    learns: Learns = Learns.ALL
    lora_rank: int = 16
    steps: int = 4
    teacher_steps: int = 50
    guidance_scale: tuple[float, float] = (1.0, 1.0)
    unconditional_strength: float = 1.0
    guidance_channels: int = 0
    huber: float = 0.001
    perceptual: PerceptualConfig | None = None
    own_path: OwnPathConfig | None = None


RECIPES: Mapping[str, type[Recipe]] = {
    "autoencoder": AutoencoderRecipe,
    "backbone": BackboneRecipe,
    "base": BaseRecipe,
    "controlnet": ControlNetRecipe,
    "distill": DistillRecipe,
}


def read_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a TOML file.

    Args:
        path: the file; its key `recipe` says which of `RECIPES` it is.
        changes: values that replace the file's, as in "training.steps=100".

    Raises:
        ConfigError: no such file, no TOML, an unknown recipe or key, or a value of the wrong kind.
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("the recipe cannot be read", given=f"{path}: {error.strerror}", expected="a file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("the recipe is no TOML file", given=f"{path}: {error}", expected="TOML") from None
    for change in changes:
        _apply(data, change)
    name = data.get("recipe")
    if not isinstance(name, str) or name not in RECIPES:
        raise ConfigError("unknown recipe", given=name, expected=f"recipe = one of {', '.join(RECIPES)}")
    recipe = from_dict(RECIPES[name], data, where=path.name)
    if not recipe.out.endswith(".safetensors"):
        raise ConfigError("the result has another kind of name", given=recipe.out, expected="out = '...safetensors'")
    return recipe


def _apply(data: dict[str, Any], change: str) -> None:
    """Set one value. Text that is no TOML value is taken as a string: `data.source=images` needs no quotes."""
    keys, separator, text = change.partition("=")
    if not separator:
        raise ConfigError("a change without a value", given=change, expected="KEY=VALUE, as in training.steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = keys.strip().split(".")
    for key in parents:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise ConfigError("a change inside of a value", given=change, expected=f"{key} to be a table")
    data[last] = value

"""What a training run is asked for, as frozen data. `reading` makes it of a TOML file."""

from __future__ import annotations

import dataclasses
import enum

from featinv_fast.config import FINAL, AutoencoderConfig, FeatureLayout, ModelConfig, Precision
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


class Split(enum.StrEnum):
    """A part of the data. The parts have no image in common."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class OnUnreadable(enum.StrEnum):
    """What becomes of a run whose folder holds images that cannot be read."""

    FAIL = "fail"  # before anything is loaded, with their names
    SKIP = "skip"  # it goes on without them and says how many there are


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
        batch_size: items of one forward pass, of all processes together where several were launched.
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
            raise ConfigError(
                "numbers of the training are out of range",
                given=wrong,
                expected=f"{', '.join(positive)} from 1 on, {', '.join(not_negative)} from 0 on",
                remedy="correct these numbers",
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(
                "the decay of the average is out of range",
                given=f"ema_decay = {self.ema_decay}",
                expected="from 0 to below 1",
                remedy="choose a decay such as 0.999",
            )
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(
                "unknown device", given=self.device, expected="auto, cpu or cuda", remedy="name one of these"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from.

    Keys that have no effect, such as the crop of scenes, are refused: see `effects`.

    Attributes:
        source: a folder of images, or "scenes" for the synthetic world.
        split: the part to take; None is the whole folder, and the training part of the scenes. A folder's parts are
            drawn by `seed` from each class alike, and images of the same content stay together: see `choice`.
        holdout: shares of a folder's images that are its validation and its test part.
        count: how many images or scenes of that part: of a folder a sample drawn by `seed` from each class alike, and
            the first scenes; None is all of them, and of scenes the split's usual number.
        seed: of the scenes; of a folder's split, sample and random crops.
        on_unreadable: what becomes of a folder's images that cannot be read.
        size: edge in pixels of the scenes, or of the squares that a folder's images become; what the backbone sees.
        crop: how a folder's images become squares.
        flips: probabilities of a horizontal and a vertical flip with random crops.
        cache: where latents and features are kept.
    """

    source: str
    split: Split | None = None
    holdout: tuple[float, float] = (0.1, 0.1)
    count: int | None = None
    seed: int = 0
    on_unreadable: OnUnreadable = OnUnreadable.FAIL
    size: int = 288
    crop: Crop = Crop.RANDOM
    flips: tuple[float, float] = (0.5, 0.5)
    cache: Cache = Cache.NONE

    def __post_init__(self) -> None:
        wrong = {
            name: getattr(self, name)
            for name, sound in (
                ("count", self.count is None or self.count >= 1),
                ("size", self.size >= 1),
                ("holdout", all(0 < share < 1 for share in self.holdout) and sum(self.holdout) < 1),
                ("flips", all(0 <= probability <= 1 for probability in self.flips)),
            )
            if not sound
        }
        if wrong:
            raise ConfigError(
                "numbers of the data are out of range",
                given=wrong,
                expected="count and size from 1 on, shares of the hold-out between 0 and 1 that leave something to "
                "train on, and probabilities of flips from 0 to 1",
                remedy="correct these numbers",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The vision model whose features are inverted.

    Attributes:
        name: a timm model, `hf-hub:ID`, `local-dir:PATH`, `torchvision:NAME`, `hf:ID` or `hf:FOLDER` of transformers,
            or `module:function` of your own, which runs; see `features.Backbone`.
        weights: a local file; None lets the library download its pretrained weights, "random:SEED" is for trying.
        layer: "final", the number of a stage as the library counts them, or the path of a module ("layer3.1.conv2").
        layers: several layers of one pass, in place of `layer`: each map is resized to the latent's size, and the
            condition encoder sees them beside one another.
        layout: of what the model returns, to insist on it; None asks the model.
        pooled: average the map over its positions: the baseline that has lost where things are.
        input_size: edge in pixels of what the backbone sees; None is the data's own size.
        mean, std: of the backbone's normalisation; None is what the model was published with.
    """

    name: str
    weights: str | None = None
    layer: str = FINAL
    layers: tuple[str, ...] = ()
    layout: FeatureLayout | None = None
    pooled: bool = False
    input_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.layers and (len(self.layers) < 2 or self.layer != FINAL or self.pooled or self.layout is not None):
            raise ConfigError(
                "the layers of the backbone are not sound",
                given=f"layers = {list(self.layers)}, layer = '{self.layer}', pooled = {self.pooled}, "
                f"layout = {self.layout}",
                expected="two layers or more, without layer, pooled and layout",
                remedy="name one layer as layer, or several as layers alone",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Feature maps made elsewhere: with the images of `DataConfig` they are the pairs that a recipe learns from.

    A row for each image of the whole folder in the order of `features.list_images`, whatever part of it is taken, or
    for each scene. Count, shape and, where the file has them, ids are checked (see `features.StoredFeatures`). Where
    the recipe names a backbone, too, some of its own maps tell whether the rows are those of their images.

    Attributes:
        file: `.npy` or `.safetensors`, of which rows are read as they are needed, or `.npz`.
        layout: of the file, where neither it nor a backbone says it.
        prefix_tokens: of tokens: how many come before those of the positions, likewise; None is one.
    """

    file: str
    layout: FeatureLayout | None = None
    prefix_tokens: int | None = None


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
                remedy="correct these",
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
                remedy="correct these numbers",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How a run is looked at while it trains, on items that it does not learn from.

    They are scenes of the validation part, or a folder's validation part, of which `data.split = "train"` learns
    nothing; in centre crops. What is trained is the same with and without.

    Attributes:
        every: steps between two validations; the last step has one in any case.
        count: items, evenly spaced over the held-out part; all of them where there are fewer.
        shown: of them, in the pictures.
    """

    every: int = 1000
    count: int = 64
    shown: int = 8

    def __post_init__(self) -> None:
        if min(self.every, self.count, self.shown) < 1:
            raise ConfigError(
                "numbers of the validation are out of range",
                given=f"every = {self.every}, count = {self.count}, shown = {self.shown}",
                expected="all from 1 on",
                remedy="correct these numbers",
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
        validation: on held-out items while it goes on; None for none.
    """

    recipe: str
    folder: str
    out: str
    data: DataConfig
    training: TrainingConfig
    validation: ValidationConfig | None = None

    def __post_init__(self) -> None:
        learned = (Split.TRAIN, None) if self.data.source == SCENES else (Split.TRAIN,)
        if self.validation is not None and self.data.split not in learned:
            raise ConfigError(
                "nothing is held out to validate on",
                given=f"[validation], data.split = {'none' if self.data.split is None else repr(str(self.data.split))}",
                expected="data.split = 'train'",
                remedy="set data.split = 'train', which leaves a part of the folder for [validation], "
                "or leave out [validation]",
            )


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.perceptual is not None and not self.perceptual_layers:
            raise ConfigError(
                "there is nothing to compare by the backbone",
                given="[perceptual] without perceptual_layers",
                expected="one of its stages or more",
                remedy="add perceptual_layers, such as [0, 1], or leave out [perceptual]",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneRecipe(Recipe):
    """A timm classifier.

    Attributes:
        name: of the timm model.
        classes: number of classes.
        label_smoothing: of the cross entropy.
        drop_path: share of residual branches that are skipped at random (arXiv 1603.09382).
        concepts: what else the features should tell, by the name the data give it: its number of values. Linear heads
            on the pooled features learn them beside the classes and are kept in the file beside the network. A
            classifier of few classes forgets what its labels do not need, such as colours; one of a thousand classes
            does not.
        concept_weight: of each concept's cross entropy.
        mean, std: of the normalisation of its input; None is what timm says of the model, as whoever opens the
            trained backbone without stating them takes.
    """

    name: str
    classes: int
    label_smoothing: float = 0.1
    drop_path: float = 0.0
    concepts: dict[str, int] = dataclasses.field(default_factory=dict)
    concept_weight: float = 0.3
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


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
class FeatureRecipe(Recipe):
    """What recipes that learn from features have in common.

    Attributes:
        backbone: the vision model; None where all that there is of it are the maps in `features`.
        features: maps made elsewhere; None lets the backbone make them.
        perceptual: a second loss, on what the backbone sees of the decoded x0; None for none, as in the official
            training. It needs an autoencoder that keeps what the backbone sees.
        own_path: where a part of the latents comes from; None for none, as in the official training.
    """

    backbone: BackboneConfig | None = None
    features: FeaturesConfig | None = None
    perceptual: PerceptualConfig | None = None
    own_path: OwnPathConfig | None = None

    def parts(self) -> dict[str, float | None]:
        """Shares of every batch that something is done with, by their keys."""
        tables = {"perceptual.share": self.perceptual, "own_path.share": self.own_path}
        return {key: None if table is None else table.share for key, table in tables.items()}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone is None and (self.features is None or self.perceptual is not None):
            raise ConfigError(
                "there is no backbone",
                given="[perceptual] without [backbone]" if self.features else "neither [backbone] nor [features]",
                expected="the vision model whose features are inverted",
                remedy="describe it in [backbone]" + (", or leave out [perceptual]" if self.features else ""),
            )
        if self.features is None:
            return
        if self.data.source != SCENES and self.data.crop is Crop.RANDOM:
            raise ConfigError(
                "features made elsewhere know nothing of random crops",
                given="data.crop = 'random' with [features]",
                expected="data.crop = 'center'",
                remedy="set data.crop = 'center', and make the features of what it shows",
            )
        if self.data.source == SCENES and self.validation is not None:
            raise ConfigError(
                "the features of held-out scenes are not in the feature file",
                given="[validation] with [features] and data.source = 'scenes'",
                expected="a folder of images, whose file has rows for all of its parts",
                remedy="leave out [validation]",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlNetRecipe(FeatureRecipe):
    """FeatInv (arXiv 2505.21032): a ControlNet and a condition encoder on a frozen base model.

    Attributes:
        base: a Stable-Diffusion-1.x checkpoint (official or diffusers layout), or what the base recipe made.
        start: a FeatInv checkpoint on the same base whose ControlNet and condition encoder learn on, also of another
            layer or backbone: where that has another number of channels, the first convolution of the condition
            encoder is new. None starts from the base.
        latent_size: edge of the latents: 32 for images of 256 pixels; None is what the base says.
        condition_hidden_channels: width of the condition encoder.
        drop_features: how often features and prompt are dropped, both together: zeros and the empty prompt.
        times: how often each is trained.
        weighting: of the times; as that of the base.
        prompt: of the training; None is the official one, or what the base stores.
        tokenizer: for other prompts, CLIP's `tokenizer.json`.
        guidance_scale, unconditional_strength: defaults of the sampling, stored in the checkpoint.
        steps: default number of DDIM steps, stored in the checkpoint.
    """

    base: str
    start: str | None = None
    latent_size: int | None = None
    condition_hidden_channels: int = 512
    drop_features: float = 0.15
    times: Times = Times.UNIFORM
    weighting: Weighting = Weighting.EPS
    prompt: str | None = None
    tokenizer: str | None = None
    guidance_scale: float = 1.75
    unconditional_strength: float = 1.0
    steps: int = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillRecipe(FeatureRecipe):
    """A student that needs few steps. Its backbone is the teacher's.

    `perceptual` and `own_path` are for "consistency" only; what stands on its own path learns from the images alone.

    Attributes:
        teacher: a FeatInv checkpoint of any layout.
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
    """

    teacher: str
    method: Method = Method.CONSISTENCY
    learns: Learns = Learns.ALL
    lora_rank: int = 16
    steps: int = 4
    teacher_steps: int = 50
    guidance_scale: tuple[float, float] = (1.0, 1.0)
    unconditional_strength: float = 1.0
    guidance_channels: int = 0
    huber: float = 0.001

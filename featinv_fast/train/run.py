"""From a recipe to its result: one function for each recipe, and the one that chooses."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featinv_fast import samplers
from featinv_fast.checkpoints import Checkpoint, load, load_base, save, save_base
from featinv_fast.checkpoints.writer import replacing, write_safetensors
from featinv_fast.config import FeatureSpec, ModelConfig, SamplingConfig, to_dict
from featinv_fast.errors import ArgumentError, ConfigError, MissingPackageError
from featinv_fast.features import small_backbones
from featinv_fast.models import Autoencoder, UNet
from featinv_fast.train import assembly
from featinv_fast.train.accelerator import training_device
from featinv_fast.train.autoencoder import AutoencoderObjective
from featinv_fast.train.backbone import BackboneObjective
from featinv_fast.train.base import BaseObjective
from featinv_fast.train.concepts import Captions, concept_slots
from featinv_fast.train.consistency import ConsistencyObjective
from featinv_fast.train.controlnet import ControlNetObjective
from featinv_fast.train.data import Data, batch_of, open_data
from featinv_fast.train.distill import DistillObjective
from featinv_fast.train.extractor import Extractor
from featinv_fast.train.inputs import Inputs
from featinv_fast.train.objective import Objective
from featinv_fast.train.perceptual import LatentPerceptual, Perceptual
from featinv_fast.train.settings import (
    AutoencoderRecipe,
    BackboneConfig,
    BackboneRecipe,
    BaseRecipe,
    ControlNetRecipe,
    DistillRecipe,
    Learns,
    Method,
    Recipe,
    read_recipe,
)
from featinv_fast.train.student import make_student, student_tensors
from featinv_fast.train.trainer import train
from featinv_fast.train.trajectory import TrajectoryObjective


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run reads and writes, and what it shows.

    Attributes:
        root: what the recipe's relative paths start from.
        progress: show bars on stderr.
    """

    root: Path
    progress: bool

    @property
    def cache(self) -> Path:
        """For kept latents and features, which all recipes share."""
        return self.root / "cache"

    def folder(self, recipe: Recipe) -> Path:
        """Of the run."""
        return self.root / recipe.folder

    def out(self, recipe: Recipe) -> Path:
        """The file to make."""
        return self.root / recipe.out


def run(
    config: str | Path | Recipe, *, root: str | Path = ".", changes: Sequence[str] = (), progress: bool = True
) -> Path:
    """Train what a recipe describes, or go on where an earlier run of it stopped.

    Args:
        config: a TOML file, or what `read_recipe` made of one.
        root: what relative paths in it start from.
        changes: values that replace the file's, as in "training.steps=100".
        progress: show bars on stderr.

    Returns:
        The file that was made. An older one of that name is replaced.

    Raises:
        ConfigError: the recipe is not sound, or its folder holds a run with other settings.
        TrainingError: the training diverged.
        CheckpointError: a file it starts from cannot be read or does not fit.
        MissingPackageError: accelerate, timm or peft are needed and not installed.
    """
    recipe = config if isinstance(config, Recipe) else read_recipe(config, changes)
    place = Place(Path(root), progress)
    makers: dict[type[Recipe], Callable[[Any, Place], None]] = {
        AutoencoderRecipe: _autoencoder,
        BackboneRecipe: _backbone,
        BaseRecipe: _base,
        ControlNetRecipe: _controlnet,
        DistillRecipe: _distill,
    }
    makers[type(recipe)](recipe, place)
    return place.out(recipe)


def _fit(objective: Objective, recipe: Recipe, place: Place) -> None:
    identity = {name: value for name, value in to_dict(recipe).items() if name not in ("folder", "out", "training")}
    train(objective, recipe.training, place.folder(recipe), identity=identity, progress=place.progress)


def _autoencoder(recipe: AutoencoderRecipe, place: Place) -> None:
    data = open_data(recipe.data, place.root)
    size = _image_size(data)
    perceptual = None
    if recipe.perceptual is not None:
        device = training_device(recipe.training)
        perceptual = Perceptual(recipe.perceptual, recipe.perceptual_layers, size=size, root=place.root, device=device)
    with assembly.fresh_weights(recipe.training.seed):
        model = Autoencoder(recipe.model)
    objective = AutoencoderObjective(model, recipe, data, size, perceptual)
    _fit(objective, recipe, place)
    config = dataclasses.replace(recipe.model, latent_scale=objective.measured_scale())
    assembly.save_autoencoder(place.out(recipe), model, config, assembly.notes(recipe))


def _backbone(recipe: BackboneRecipe, place: Place) -> None:
    data = open_data(recipe.data, place.root)
    timm = _timm()
    with assembly.fresh_weights(recipe.training.seed):
        try:
            model = timm.create_model(recipe.name, num_classes=recipe.classes, drop_path_rate=recipe.drop_path)
        except (RuntimeError, TypeError) as error:
            raise ConfigError("timm cannot make this model", given=f"{recipe.name}: {error}") from error
        objective = BackboneObjective(model, recipe, data, _image_size(data))
    _fit(objective, recipe, place)
    with replacing(place.out(recipe), force=True, replaceable=_is_safetensors) as temporary:
        write_safetensors(temporary, model.state_dict(), {"format": "pt", **assembly.notes(recipe)})


def _base(recipe: BaseRecipe, place: Place) -> None:
    data = open_data(recipe.data, place.root)
    autoencoder, autoencoder_config = assembly.load_autoencoder(place.root / recipe.autoencoder)
    config = assembly.with_autoencoder(recipe.model, autoencoder_config, _image_size(data))
    slots = concept_slots(data, recipe.concepts)
    inputs = _inputs(recipe, place, data, autoencoder, config, None, tuple(slots))
    with assembly.fresh_weights(recipe.training.seed):
        unet = UNet(config)
        captions = Captions(recipe.concepts, slots, config.context_channels) if slots else None
    prompts = assembly.constant_prompts(config, recipe.training.seed)
    _fit(BaseObjective(unet, recipe, config, inputs, prompts, captions), recipe, place)
    tensors = {assembly.UNET + name: tensor for name, tensor in unet.state_dict().items()}
    tensors |= {assembly.AUTOENCODER + name: tensor for name, tensor in autoencoder.state_dict().items()}
    save_base(place.out(recipe), config, tensors, prompts, assembly.notes(recipe))


def _controlnet(recipe: ControlNetRecipe, place: Place) -> None:
    data = open_data(recipe.data, place.root)
    base = load_base(place.root / recipe.base)
    tokenizer = None if recipe.tokenizer is None else place.root / recipe.tokenizer
    prompts = assembly.base_prompts(base, recipe.prompt, tokenizer)
    extractor = _extractor(recipe.backbone, recipe, place, data)
    config = dataclasses.replace(
        base.config,
        feature_channels=extractor.spec.channels,
        condition_hidden_channels=recipe.condition_hidden_channels,
        latent_size=recipe.latent_size or base.config.latent_size,
        context_tokens=prompts["cond"].shape[1],
    )
    model = assembly.featinv_from_base(base, config, seed=recipe.training.seed)
    if recipe.start is not None:
        assembly.learn_on(model, load(place.root / recipe.start))
    inputs = _inputs(recipe, place, data, model.autoencoder, config, extractor)
    objective = ControlNetObjective(model, inputs, prompts, recipe, _perceptual(recipe, place, data, model.autoencoder))
    _fit(objective, recipe, place)
    features = dataclasses.replace(extractor.spec, absolute_max=inputs.largest_feature())
    checkpoint = Checkpoint(
        config=config,
        tensors=model.state_dict(),
        prompts=prompts,
        text_encoder={},
        features=features,
        sampling=SamplingConfig(
            sampler="ddim",
            steps=recipe.steps,
            guidance_scale=recipe.guidance_scale,
            unconditional_strength=recipe.unconditional_strength,
        ),
        metadata=assembly.notes(recipe),
        adaptations=(),
        layout="featinv",
        path=place.out(recipe),
    )
    save(checkpoint, place.out(recipe), force=True)


def _distill(recipe: DistillRecipe, place: Place) -> None:
    low, high = recipe.guidance_scale
    if high < low or (high > low and not recipe.guidance_channels):
        raise ConfigError(
            "the teacher's guidance is not sound",
            given=f"guidance_scale = [{low}, {high}], guidance_channels = {recipe.guidance_channels}",
            expected="two equal numbers, or a growing range and a guidance embedding for the student",
        )
    if recipe.guidance_channels and recipe.learns is Learns.CONTROLNET:
        raise ConfigError(
            "a guidance embedding is a part of the U-Net, which does not learn here",
            given=f"learns = '{recipe.learns}', guidance_channels = {recipe.guidance_channels}",
            expected="learns = 'all' or 'lora', or guidance_channels = 0",
        )
    samplers.build(_sampler(recipe), recipe.steps)  # says what is wrong with the number of steps
    data = open_data(recipe.data, place.root)
    checkpoint = load(place.root / recipe.teacher)
    prompts = {name: prompt.float() for name, prompt in checkpoint.prompts.items() if prompt is not None}
    if len(prompts) < 2 or checkpoint.config.guidance_embedding_channels:
        raise ConfigError(
            "this checkpoint cannot teach",
            given=f"{checkpoint.path} with {len(prompts)} stored prompts and a guidance embedding of "
            f"{checkpoint.config.guidance_embedding_channels} channels",
            expected="a plain FeatInv checkpoint that stores both prompts, as `featinv train` makes",
        )
    extractor = _extractor(recipe.backbone, recipe, place, data)
    _require_same(extractor.spec, checkpoint.features)
    teacher = assembly.plain_model(checkpoint)
    student = make_student(teacher, recipe)
    inputs = _inputs(recipe, place, data, teacher.autoencoder, checkpoint.config, extractor)
    perceptual = _perceptual(recipe, place, data, teacher.autoencoder)
    objective = _distill_objective(recipe)(teacher, student, inputs, recipe, prompts, perceptual)
    _fit(objective, recipe, place)
    note = f"distilled by {recipe.method} to {recipe.steps} steps of {objective.sampler}"
    note += f", guidance {low:g}" if low == high else f", guidance {low:g} to {high:g} embedded"
    distilled = dataclasses.replace(
        checkpoint,
        config=student.config,
        tensors=student_tensors(student),
        sampling=SamplingConfig(
            sampler=objective.sampler,
            steps=recipe.steps,
            # A fixed scale is in the student's weights; an embedded one is an input.
            guidance_scale=(low + high) / 2 if recipe.guidance_channels else 1.0,
        ),
        metadata={**checkpoint.metadata, **assembly.notes(recipe)},
        adaptations=(*checkpoint.adaptations, note),
        layout="featinv",
        path=place.out(recipe),
    )
    save(distilled, place.out(recipe), force=True)


def _sampler(recipe: DistillRecipe) -> str:
    return _distill_objective(recipe).sampler


def _distill_objective(recipe: DistillRecipe) -> type[DistillObjective]:
    if recipe.method is Method.TRAJECTORY:
        for name in ("perceptual", "own_path"):
            if getattr(recipe, name) is not None:
                raise ConfigError("the teacher's path is all that is learned", given=name, remedy="leave it out")
        return TrajectoryObjective
    if recipe.training.ema_decay is None:
        raise ConfigError(
            "a consistency model learns from its own average",
            given="no training.ema_decay",
            expected="a decay such as 0.95 (arXiv 2310.04378)",
        )
    return ConsistencyObjective


def _inputs(
    recipe: Recipe,
    place: Place,
    data: Data,
    autoencoder: Autoencoder,
    config: ModelConfig,
    extractor: Extractor | None,
    concepts: Sequence[str] = (),
) -> Inputs:
    return Inputs(
        data,
        recipe.data,
        autoencoder.to(training_device(recipe.training)),
        image_size=config.image_size,
        extractor=extractor,
        folder=place.cache,
        progress=place.progress,
        concepts=concepts,
    )


def _perceptual(
    recipe: ControlNetRecipe | DistillRecipe, place: Place, data: Data, autoencoder: Autoencoder
) -> LatentPerceptual | None:
    if recipe.perceptual is None:
        return None
    device = training_device(recipe.training)
    images = Perceptual(
        recipe.backbone, recipe.perceptual.layers, size=_image_size(data), root=place.root, device=device
    )
    return LatentPerceptual(images, autoencoder.to(device), recipe.perceptual)


def _extractor(backbone: BackboneConfig, recipe: Recipe, place: Place, data: Data) -> Extractor:
    return Extractor(backbone, size=_image_size(data), root=place.root, device=training_device(recipe.training))


def _require_same(given: FeatureSpec, expected: FeatureSpec) -> None:
    """The features at hand must be the ones that the teacher was trained on."""
    names = [f.name for f in dataclasses.fields(FeatureSpec) if f.name != "absolute_max"]
    differing = [
        name
        for name in names
        if getattr(expected, name) is not None and getattr(given, name) != getattr(expected, name)
    ]
    if differing:
        raise ConfigError(
            "the teacher was trained on other features",
            given={name: getattr(given, name) for name in differing},
            expected={name: getattr(expected, name) for name in differing},
            remedy="correct the recipe's backbone and data.size",
        )


def _image_size(data: Data) -> int:
    """Edge of the training images in pixels."""
    _, height, width, _ = batch_of(data, _FIRST)["images"].shape
    if height != width:
        raise ArgumentError("the images are not square", given=f"{height}x{width}", expected="squares")
    return int(height)


def _timm() -> Any:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise MissingPackageError(
            "training a backbone needs timm", given=str(error), remedy="pip install 'featinv-fast[train]'"
        ) from error
    small_backbones.register()
    return timm


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


_FIRST = np.zeros(1, dtype=np.int64)

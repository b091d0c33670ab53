"""From a recipe to its result: one function for each recipe, and the one that chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from featinv_fast.checkpoints import Checkpoint, load, load_base, save, save_base
from featinv_fast.checkpoints.writer import write_safetensors
from featinv_fast.config import SamplingConfig
from featinv_fast.models import Autoencoder, UNet
from featinv_fast.train import assembly, processes
from featinv_fast.train.accelerator import training_device
from featinv_fast.train.autoencoder import AutoencoderObjective
from featinv_fast.train.backbone import BackboneObjective
from featinv_fast.train.base import BaseObjective
from featinv_fast.train.classifier import make_classifier, require_classes
from featinv_fast.train.concepts import Captions, concept_slots
from featinv_fast.train.controlnet import ControlNetObjective
from featinv_fast.train.effects import changed_in, refuse_idle
from featinv_fast.train.parts import fit, image_size, open_features, open_inputs, open_perceptual
from featinv_fast.train.perceptual import Perceptual
from featinv_fast.train.place import Place, prepare
from featinv_fast.train.reading import read_recipe
from featinv_fast.train.run_distill import run_distill
from featinv_fast.train.settings import (
    AutoencoderRecipe,
    BackboneRecipe,
    BaseRecipe,
    ControlNetRecipe,
    DistillRecipe,
    Recipe,
)
from featinv_kernels.torch_state import neutral_torch_state


@neutral_torch_state(gradients=True)
def run(
    config: str | Path | Recipe,
    *,
    root: str | Path = ".",
    changes: Sequence[str] = (),
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Train what a recipe describes, or go on where an earlier run of it stopped.

    Started by `accelerate launch` or torchrun, several processes do so together; the main one writes, and all return
    when the file is there.

    Args:
        config: a TOML file, or what `read_recipe` made of one.
        root: what relative paths in it start from.
        changes: values that replace the file's, as in "training.steps=100".
        force: replace whatever file is where the result goes. What the same run wrote there is replaced in any case.
        progress: show bars on stderr.

    Returns:
        The file that was made.

    Raises:
        ConfigError: the recipe is not sound or names what has no effect, or its folder holds a run with other settings,
            images or input files.
        InputNotFoundError: a file that it names is not there.
        OutputExistsError: the result would replace what this run did not write, or what it reads.
        TrainingError: images cannot be read, or the training diverged.
        CheckpointError: a file it starts from cannot be read or does not fit.
        MissingPackageError: accelerate, timm or peft are needed and not installed.
    """
    recipe = config if isinstance(config, Recipe) else read_recipe(config, changes)
    refuse_idle(recipe, changed_in(recipe))
    file = None if isinstance(config, Recipe) else Path(config)
    processes.start(training_device(recipe.training))
    progress = progress and processes.is_main()
    with processes.main_first():
        processes.require_divisible(recipe.training.batch_size)
        place = prepare(recipe, Path(root), config=file, force=force, progress=progress)
    makers: dict[type[Recipe], Callable[[Any, Place], None]] = {
        AutoencoderRecipe: _autoencoder,
        BackboneRecipe: _backbone,
        BaseRecipe: _base,
        ControlNetRecipe: _controlnet,
        DistillRecipe: run_distill,
    }
    makers[type(recipe)](recipe, place)
    processes.wait()
    return place.result.path


def _autoencoder(recipe: AutoencoderRecipe, place: Place) -> None:
    data = place.data
    size = image_size(data)
    perceptual = None
    if recipe.perceptual is not None:
        device = training_device(recipe.training)
        perceptual = Perceptual(recipe.perceptual, recipe.perceptual_layers, size=size, root=place.root, device=device)
    with assembly.fresh_weights(recipe.training.seed):
        model = Autoencoder(recipe.model)
    objective = AutoencoderObjective(model, recipe, data, size, perceptual)
    notes = fit(objective, recipe, place, {} if perceptual is None else {"perceptual": perceptual.weights_sha256})
    if not processes.is_main():
        return
    config = dataclasses.replace(recipe.model, latent_scale=objective.measured_scale())
    with place.result.writing() as path:
        assembly.save_autoencoder(path, model, config, notes)


def _backbone(recipe: BackboneRecipe, place: Place) -> None:
    data = place.data
    require_classes(recipe, data)
    with assembly.fresh_weights(recipe.training.seed):
        size = image_size(data)
        model = make_classifier(recipe, size)
        objective = BackboneObjective(model, recipe, data, size)
    notes = fit(objective, recipe, place)
    if not processes.is_main():
        return
    with place.result.writing() as path:
        write_safetensors(path, objective.tensors(), {"format": "pt", **objective.about(), **notes})


def _base(recipe: BaseRecipe, place: Place) -> None:
    data = place.data
    autoencoder, autoencoder_config = assembly.load_autoencoder(place.root / recipe.autoencoder)
    config = assembly.with_autoencoder(recipe.model, autoencoder_config, image_size(data))
    slots = concept_slots(data, recipe.concepts)
    inputs = open_inputs(recipe, place, autoencoder, config, None, tuple(slots))
    with assembly.fresh_weights(recipe.training.seed):
        unet = UNet(config)
        captions = Captions(recipe.concepts, slots, config.context_channels) if slots else None
    prompts = assembly.constant_prompts(config, recipe.training.seed)
    notes = fit(BaseObjective(unet, recipe, config, inputs, prompts, captions), recipe, place)
    if not processes.is_main():
        return
    tensors = {assembly.UNET + name: tensor for name, tensor in unet.state_dict().items()}
    tensors |= {assembly.AUTOENCODER + name: tensor for name, tensor in autoencoder.state_dict().items()}
    with place.result.writing() as path:
        save_base(path, config, tensors, prompts, notes)


def _controlnet(recipe: ControlNetRecipe, place: Place) -> None:
    base = load_base(place.root / recipe.base)
    tokenizer = None if recipe.tokenizer is None else place.root / recipe.tokenizer
    prompts = assembly.base_prompts(base, recipe.prompt, tokenizer)
    features = open_features(recipe, place)
    config = dataclasses.replace(
        base.config,
        feature_channels=features.spec.total_channels,
        feature_shapes=features.spec.packed_shapes,
        condition_hidden_channels=recipe.condition_hidden_channels,
        latent_size=recipe.latent_size or base.config.latent_size,
        context_tokens=prompts["cond"].shape[1],
    )
    model = assembly.featinv_from_base(base, config, seed=recipe.training.seed)
    remarks: tuple[str, ...] = ()
    if recipe.start is not None:
        remarks = assembly.learn_on(model, load(place.root / recipe.start), features.spec)
    inputs = open_inputs(recipe, place, model.autoencoder, config, features)
    objective = ControlNetObjective(model, inputs, prompts, recipe, open_perceptual(recipe, place, model.autoencoder))
    notes = fit(objective, recipe, place, features.identity(), remarks)
    if not processes.is_main():
        return
    checkpoint = Checkpoint(
        config=config,
        tensors=model.state_dict(),
        prompts=prompts,
        text_encoder={},
        features=dataclasses.replace(features.spec, absolute_max=inputs.largest_feature()),
        sampling=SamplingConfig(
            sampler="ddim",
            steps=recipe.steps,
            guidance_scale=recipe.guidance_scale,
            unconditional_strength=recipe.unconditional_strength,
        ),
        metadata=notes,
        adaptations=(),
        layout="featinv",
        path=place.result.path,
    )
    with place.result.writing() as path:
        save(checkpoint, path, force=True)

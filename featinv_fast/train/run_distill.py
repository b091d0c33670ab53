"""From a distillation's recipe to its result."""

from __future__ import annotations

import dataclasses

from featinv_fast import samplers
from featinv_fast.checkpoints import load, save
from featinv_fast.config import FeatureSpec, SamplingConfig
from featinv_fast.errors import ConfigError
from featinv_fast.train import assembly, processes
from featinv_fast.train.consistency import ConsistencyObjective
from featinv_fast.train.distill import DistillObjective
from featinv_fast.train.parts import fit, open_features, open_inputs, open_perceptual
from featinv_fast.train.place import Place
from featinv_fast.train.settings import DistillRecipe, Learns, Method
from featinv_fast.train.student import make_student, student_tensors
from featinv_fast.train.trajectory import TrajectoryObjective


def run_distill(recipe: DistillRecipe, place: Place) -> None:
    """Teach a student; see `run` for errors."""
    low, high = recipe.guidance_scale
    if high < low or (high > low and not recipe.guidance_channels):
        raise ConfigError(
            "the teacher's guidance is not sound",
            given=f"guidance_scale = [{low}, {high}], guidance_channels = {recipe.guidance_channels}",
            expected="two equal numbers, or a growing range and a guidance embedding for the student",
            remedy="change one of them",
        )
    if recipe.guidance_channels and recipe.learns is Learns.CONTROLNET:
        raise ConfigError(
            "a guidance embedding is a part of the U-Net, which does not learn here",
            given=f"learns = '{recipe.learns}', guidance_channels = {recipe.guidance_channels}",
            expected="learns = 'all' or 'lora', or guidance_channels = 0",
            remedy="change one of them",
        )
    samplers.build(_sampler(recipe), recipe.steps)  # says what is wrong with the number of steps
    checkpoint = load(place.root / recipe.teacher)
    prompts = {name: prompt.float() for name, prompt in checkpoint.prompts.items() if prompt is not None}
    if len(prompts) < 2 or checkpoint.config.guidance_embedding_channels:
        raise ConfigError(
            "this checkpoint cannot teach",
            given=f"{checkpoint.path} with {len(prompts)} stored prompts and a guidance embedding of "
            f"{checkpoint.config.guidance_embedding_channels} channels",
            expected="a plain FeatInv checkpoint that stores both prompts, as `featinv train` makes",
            remedy="name such a one as `teacher`",
        )
    features = open_features(recipe, place)
    _require_same(features.spec, checkpoint.features)
    teacher = assembly.plain_model(checkpoint)
    student = make_student(teacher, recipe)
    inputs = open_inputs(recipe, place, teacher.autoencoder, checkpoint.config, features)
    perceptual = open_perceptual(recipe, place, teacher.autoencoder)
    objective = _distill_objective(recipe)(teacher, student, inputs, recipe, prompts, perceptual)
    notes = fit(objective, recipe, place, features.identity())
    if not processes.is_main():
        return
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
        metadata={**checkpoint.metadata, **notes},
        adaptations=(*checkpoint.adaptations, note),
        layout="featinv",
        path=place.result.path,
    )
    with place.result.writing() as path:
        save(distilled, path, force=True)


def _sampler(recipe: DistillRecipe) -> str:
    return _distill_objective(recipe).sampler


def _distill_objective(recipe: DistillRecipe) -> type[DistillObjective]:
    if recipe.method is Method.TRAJECTORY:
        return TrajectoryObjective
    if recipe.training.ema_decay is None:
        raise ConfigError(
            "a consistency model learns from its own average",
            given="no training.ema_decay",
            expected="a decay such as 0.95 (arXiv 2310.04378)",
            remedy="state training.ema_decay",
        )
    return ConsistencyObjective


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

"""Graph specs: one declaration per graph of an engine.

From it the exporter derives dynamic axes, ONNX names and example inputs, and the runtime derives
optimisation profiles and buffers, so that no two of them can drift apart. Every input and output is
float32 whatever the engine's precision: casts live inside the graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from featinv_fast.config import FeatureSpec, ModelConfig
from featinv_fast.errors import ArgumentError, ConfigError

# Feature maps of unknown size: from pooled vectors (1x1) to the finest stage that a backbone offers.
FEATURE_EDGE = (1, 16, 128)
# The diffusion process has 1000 steps, so no schedule visits more.
STEPS = (1, 50, 1000)


@dataclasses.dataclass(frozen=True)
class Dim:
    """A named dimension and the sizes it may take, both ends included."""

    name: str
    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise ConfigError(
                f"the range of the dimension {self.name!r} is empty or not ordered",
                given=(self.minimum, self.optimum, self.maximum),
                expected="1 <= minimum <= optimum <= maximum",
                remedy="put these sizes in order",
            )


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph. A string in `shape` names a `Dim` of the graph."""

    name: str
    shape: tuple[int | str, ...]
    dtype: Literal["float32"] = "float32"

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """Axis -> name of the dimension, for the axes without a fixed size."""
        return {axis: size for axis, size in enumerate(self.shape) if isinstance(size, str)}


@dataclasses.dataclass(frozen=True)
class GraphSpec:
    """The interface of one graph: named inputs, one output, named dimensions."""

    name: str
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    dims: tuple[Dim, ...]

    def __post_init__(self) -> None:
        used = {name for tensor in self.inputs for name in tensor.dynamic_axes.values()}
        assert used == {dim.name for dim in self.dims}, f"{self.name}: dims are not those of the inputs"
        assert used >= set(self.output.dynamic_axes.values()), f"{self.name}: the output's size is not known"

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs in the order of the graph's signature."""
        return tuple(tensor.name for tensor in self.inputs)

    @property
    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """Tensor (inputs, then the output) -> axis -> name of the dimension; empty for a static tensor."""
        return {tensor.name: tensor.dynamic_axes for tensor in (*self.inputs, self.output)}

    def profile(self, which: Literal["min", "opt", "max"]) -> dict[str, tuple[int, ...]]:
        """The shape of every input with all dimensions at their minimum, optimum or maximum."""
        field = {"min": "minimum", "opt": "optimum", "max": "maximum"}[which]
        return self.input_shapes({dim.name: getattr(dim, field) for dim in self.dims})

    def input_shapes(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The shape of every input, given sizes of dimensions; those not given take their optimum."""
        sizes = {dim.name: dim.optimum for dim in self.dims} | dict(sizes)
        return {tensor.name: _sized(tensor, sizes) for tensor in self.inputs}

    def output_shape(self, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        """The shape of the output for these input shapes.

        Raises:
            ArgumentError: the shapes do not fit.
        """
        sizes, reasons = self._match(shapes)
        if reasons:
            raise ArgumentError(
                f"these inputs do not fit the graph {self.name}",
                given="; ".join(reasons),
                expected=", ".join(str(spec) for spec in self.inputs),
                remedy="pass tensors of these shapes",
            )
        return _sized(self.output, sizes)

    def check(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        """The reasons why these input shapes do not fit; empty when they do."""
        return self._match(shapes)[1]

    def _match(self, shapes: Mapping[str, Sequence[int]]) -> tuple[dict[str, int], list[str]]:
        """Sizes of the named dimensions, and the reasons why the shapes do not fit."""
        reasons = [f"{name} is not an input" for name in shapes if name not in self.input_names]
        found: dict[str, tuple[int, str]] = {}  # dimension -> its size and the input that set it
        for tensor in self.inputs:
            if tensor.name not in shapes:
                reasons.append(f"{tensor.name} is missing")
                continue
            shape = tuple(shapes[tensor.name])
            if len(shape) != len(tensor.shape):
                reasons.append(f"{tensor.name} has {len(shape)} axes, expected {len(tensor.shape)}")
                continue
            for axis, (size, expected) in enumerate(zip(shape, tensor.shape, strict=True)):
                if isinstance(expected, int):
                    if size != expected:
                        reasons.append(f"axis {axis} of {tensor.name} is {size}, expected {expected}")
                else:
                    known, setter = found.setdefault(expected, (size, tensor.name))
                    if size != known:
                        reasons.append(f"{expected} is {known} in {setter} but {size} in {tensor.name}")
        sizes = {name: size for name, (size, _) in found.items()}
        reasons += [
            f"{dim.name} is {sizes[dim.name]}, expected {dim.minimum} to {dim.maximum}"
            for dim in self.dims
            if dim.name in sizes and not dim.minimum <= sizes[dim.name] <= dim.maximum
        ]
        return sizes, reasons


def _sized(tensor: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)


def graph_specs(
    model: ModelConfig, features: FeatureSpec, *, time_bias_size: int, max_batch: int, optimal_batch: int = 1
) -> dict[str, GraphSpec]:
    """The graphs of an engine by name.

    Args:
        model: the architecture.
        features: what the engine takes; a feature map of known size becomes a static shape.
        time_bias_size: T, the length of a step's row of time biases (all residual blocks of both networks).
        max_batch: largest number of images in one call.
        optimal_batch: the number of images that kernels are tuned for.

    Raises:
        ConfigError: an impossible size, or features that are not the model's.
    """
    given, expected = (
        (features.total_channels, features.packed_shapes),
        (model.feature_channels, model.feature_shapes),
    )
    if given != expected:
        raise ConfigError(
            "the feature spec is not the model's",
            given=_channels_and_layers(*given),
            expected=_channels_and_layers(*expected),
            remedy="take the feature spec that the model was trained on",
        )
    if time_bias_size < 1:
        raise ConfigError(
            "a row of time biases cannot be empty",
            given=time_bias_size,
            expected="at least 1",
            remedy="take the length that the model's time embedding has",
        )
    batch = Dim("batch", 1, optimal_batch, max_batch)
    steps = Dim("steps", *STEPS)
    channels, height, width = features.map_shape
    edges = tuple(Dim(name, *FEATURE_EDGE) for name, size in (("height", height), ("width", width)) if not size)
    edge = model.latent_size

    maps = TensorSpec("features", ("batch", channels, height or "height", width or "width"))
    condition = TensorSpec("condition", ("batch", model.channels, edge, edge))
    latents = TensorSpec("latents", ("batch", model.latent_channels, edge, edge))
    eps = TensorSpec("eps", latents.shape)
    image = TensorSpec("image", ("batch", model.autoencoder.image_channels, model.image_size, model.image_size))
    time_bias = TensorSpec("time_bias", (time_bias_size,))
    # A full LCM U-Net embeds the guidance scale beside the time step (arXiv 2310.04378, sec. 4.2).
    step_inputs = ("timesteps", "guidance") if model.guidance_embedding_channels else ("timesteps",)

    def control_scales(branches: int) -> TensorSpec:
        return TensorSpec("control_scales", (branches, model.control_count))

    guided = (latents, condition, time_bias, TensorSpec("guidance_scale", ()), control_scales(2))
    unguided = (latents, condition, time_bias, control_scales(1))
    specs = (
        GraphSpec("condition_encoder", (maps,), condition, (batch, *edges)),
        GraphSpec(
            "time_embedding",
            tuple(TensorSpec(name, ("steps",)) for name in step_inputs),
            TensorSpec("time_bias", ("steps", time_bias_size)),
            (steps,),
        ),
        GraphSpec("denoiser", guided, eps, (batch,)),
        GraphSpec("denoiser_unguided", unguided, eps, (batch,)),
        GraphSpec("decoder", (latents,), image, (batch,)),
    )
    return {spec.name: spec for spec in specs}


def _channels_and_layers(channels: int, shapes: Sequence[tuple[int, int, int]]) -> str:
    layers = f" of {len(shapes)} layers: {' + '.join('x'.join(map(str, shape)) for shape in shapes)}" if shapes else ""
    return f"{channels} channels{layers}"

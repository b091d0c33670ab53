"""Configuration as frozen, keyword-only data. Unknown keys are errors; lists become tuples.

What a value may be is declared beside its field, `channels: Annotated[int, Between(1, 65_536)]`, and holds however the
object is made: from a file or by a caller.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import enum
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from featinv_fast.errors import ConfigError

T = TypeVar("T")

# The name of a model's last map.
FINAL = "final"
SHOWN = 200  # characters of a wrong value in a message


@dataclasses.dataclass(frozen=True)
class Between:
    """A number within a range, both ends included. NaN is in none."""

    minimum: float
    maximum: float

    def admits(self, value: float) -> bool:
        """Whether `value` lies in the range."""
        return isinstance(value, int | float) and self.minimum <= value <= self.maximum

    def __str__(self) -> str:
        return f"{self.minimum:,} to {self.maximum:,}"


@dataclasses.dataclass(frozen=True)
class Matching:
    """A text that a pattern matches as a whole.

    Attributes:
        pattern: a regular expression.
        meaning: what it matches, in words.
    """

    pattern: str
    meaning: str

    def admits(self, value: str) -> bool:
        """Whether all of `value` matches."""
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.meaning


# What pixels are divided by.
Divisor = Annotated[float, Between(1e-4, 1e4)]
Sha256 = Annotated[str, Matching("[0-9a-f]{64}", "a SHA-256 as 64 lower-case hexadecimal digits")]


@dataclasses.dataclass(frozen=True)
class Length:
    """A tuple with so many values, both ends included."""

    minimum: int
    maximum: int

    def admits(self, value: tuple[Any, ...]) -> bool:
        """Whether `value` is so long."""
        return self.minimum <= len(value) <= self.maximum

    def __str__(self) -> str:
        return f"{self.minimum} to {self.maximum} values"


# Widths of layers, far beyond what is trained: a limit against nonsense, not against models.
Channels = Annotated[int, Between(1, 65_536)]
# Of each level over the first one's width; deeper networks would have nothing left of a latent.
Multipliers = Annotated[tuple[Annotated[int, Between(1, 64)], ...], Length(1, 6)]
Blocks = Annotated[int, Between(1, 4)]
# C, H and W of a feature map.
MapShape = tuple[Channels, Annotated[int, Between(1, 4_096)], Annotated[int, Between(1, 4_096)]]
# Every GroupNorm of these networks has so many groups.
NORM_GROUPS = 32
NORM_CHANNELS = f"a multiple of {NORM_GROUPS}"


class Limited:
    """A dataclass whose fields may declare limits, which are checked whenever one is made."""

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            _require_limits(hint, getattr(self, name), f"{type(self).__name__}.{name}")


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _require_limits(hint: Any, value: Any, path: str) -> None:
    """Refuse a value outside what `hint` declares, or one of several.

    Raises:
        ConfigError: the message names the path.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if value is None:
        return
    if origin in (types.UnionType, typing.Union):
        for choice in args:
            _require_limits(choice, value, path)
    elif origin is Annotated:
        for limit in args[1:]:
            if not limit.admits(value):
                raise _refusal(path, _shown(value), limit)
        _require_limits(args[0], value, path)
    elif origin is tuple:
        if args[-1] is not Ellipsis and (not isinstance(value, tuple | list) or len(value) != len(args)):
            raise _refusal(path, _shown(value), f"{len(args)} values")
        for i, (inner, part) in enumerate(zip(_inner_hints(args, len(value)), value, strict=True)):
            _require_limits(inner, part, f"{path}[{i}]")


def _require(path: str, given: object, holds: bool, expected: str) -> None:
    """Refuse a value that does not fit the others.

    Raises:
        ConfigError: it does not.
    """
    if not holds:
        raise _refusal(path, given, expected)


def _refusal(path: str, given: object, expected: object) -> ConfigError:
    return ConfigError(f"bad value for {path}", given=given, expected=expected, remedy="correct this value")


def _inner_hints(args: tuple[Any, ...], count: int) -> list[Any]:
    """The hints of a tuple's `count` values."""
    return [args[0]] * count if args[-1] is Ellipsis else list(args)


class Precision(enum.StrEnum):
    """The floating-point type in which a graph's weights are stored and its products computed."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class FeatureLayout(enum.StrEnum):
    """How a backbone lays out a feature map in memory."""

    NCHW = "nchw"  # [B, C, H, W]: ConvNeXt, ResNet
    NHWC = "nhwc"  # [B, H, W, C]: Swin
    TOKENS = "tokens"  # [B, P+N, C], class token, registers and the like first: ViT
    POOLED = "pooled"  # [B, C]: one vector for the whole image


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Limited):
    """KL autoencoder (Rombach et al., arXiv 2112.10752) with the field's factor-8 layout.

    Raises:
        ConfigError: a value outside its range, or widths that GroupNorm cannot divide.
    """

    channels: Channels = 128
    channel_multipliers: Multipliers = (1, 2, 4, 4)
    blocks_per_level: Blocks = 2
    image_channels: Annotated[int, Between(1, 64)] = 3
    latent_channels: Annotated[int, Between(1, 1024)] = 4
    latent_scale: Annotated[float, Between(1e-6, 1e6)] = 0.18215

    def __post_init__(self) -> None:
        super().__post_init__()
        _require("AutoencoderConfig.channels", self.channels, self.channels % NORM_GROUPS == 0, NORM_CHANNELS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Limited):
    """Architecture of a FeatInv model: U-Net, ControlNet, condition encoder and autoencoder.

    The defaults are the official model: miniSD (Stable Diffusion 1.4 at 256 px) and ConvNeXt-Base features.

    Raises:
        ConfigError: a value outside its range, or values that no network can have together.
    """

    latent_channels: Annotated[int, Between(1, 1024)] = 4
    latent_size: Annotated[int, Between(1, 128)] = 32
    channels: Channels = 320
    channel_multipliers: Multipliers = (1, 2, 4, 4)
    blocks_per_level: Blocks = 2
    attention_levels: Annotated[tuple[Annotated[int, Between(0, 5)], ...], Length(0, 6)] = (0, 1, 2)
    heads: Annotated[int, Between(1, 1024)] = 8
    context_channels: Channels = 768
    context_tokens: Annotated[int, Between(1, 65_536)] = 77
    feature_channels: Channels = 1024  # of all layers together
    # C, H and W of each map where several layers are taken, which arrive packed (`featinv_kernels.packed_maps`).
    feature_shapes: Annotated[tuple[MapShape, ...], Length(0, 16)] = ()
    condition_hidden_channels: Channels = 512
    # Width of the guidance embedding of a full LCM U-Net (arXiv 2310.04378, sec. 4.2); 0 = none.
    guidance_embedding_channels: Annotated[int, Between(0, 65_536)] = 0
    autoencoder: AutoencoderConfig = AutoencoderConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        last, guidance = len(self.channel_multipliers) - 1, self.guidance_embedding_channels
        attended = {c for level, c in enumerate(self.level_channels) if level in {*self.attention_levels, last}}
        _require("ModelConfig.channels", self.channels, self.channels % NORM_GROUPS == 0, NORM_CHANNELS)
        _require(
            "ModelConfig.attention_levels",
            self.attention_levels,
            all(level <= last for level in self.attention_levels),
            f"levels of 0 to {last}",
        )
        _require(
            "ModelConfig.heads",
            self.heads,
            all(c % self.heads == 0 for c in attended),
            f"a divisor of the widths {sorted(attended)}",
        )
        _require(
            "ModelConfig.latent_size",
            self.latent_size,
            self.latent_size % 2**last == 0,
            f"a multiple of {2**last}, to be halved {last} times",
        )
        _require(
            "ModelConfig.guidance_embedding_channels",
            guidance,
            guidance % 2 == 0 and guidance != 2,
            "an even number, 0 for none or at least 4",
        )
        channels = [shape[0] for shape in self.feature_shapes]
        _require(
            "ModelConfig.feature_shapes",
            self.feature_shapes,
            not channels or (len(channels) > 1 and sum(channels) == self.feature_channels),
            f"two or more maps of {self.feature_channels} channels together, or none",
        )
        given = self.autoencoder.latent_channels
        _require(
            "ModelConfig.autoencoder.latent_channels",
            given,
            given == self.latent_channels,
            f"the model's, {self.latent_channels}",
        )

    @property
    def time_embedding_channels(self) -> int:
        """Width of the time embedding."""
        return 4 * self.channels

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each resolution level, finest first."""
        return tuple(self.channels * m for m in self.channel_multipliers)

    @property
    def control_count(self) -> int:
        """Number of ControlNet residuals: 13 for the official model."""
        levels = len(self.channel_multipliers)
        return 1 + levels * self.blocks_per_level + (levels - 1) + 1

    @property
    def image_size(self) -> int:
        """Edge of the decoded image in pixels."""
        factor: int = 2 ** (len(self.autoencoder.channel_multipliers) - 1)
        return self.latent_size * factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSpec(Limited):
    """One more map that is taken from the same pass of a backbone.

    Attributes:
        layer: as `FeatureSpec.layer`.
        channels: C of this map.
        height: H of this map in cells.
        width: W of this map in cells.
    """

    layer: str
    channels: Annotated[int, Between(1, 65_536)]
    height: Annotated[int, Between(1, 4_096)] | None = None
    width: Annotated[int, Between(1, 4_096)] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSpec(Limited):
    """What feature maps an engine takes. `None` means that the checkpoint does not say.

    Attributes:
        channels: C of the map.
        height: H of the map in cells.
        width: W of the map in cells.
        layout: how the backbone itself lays the map out; None asks the backbone, when it is opened.
        backbone: of timm, e.g. "convnext_base.fb_in22k_ft_in1k", or of another source, see `features.Backbone`.
        layer: "final" (the model's last map), the number of a stage, or the path of a module, e.g. "layer3.1.conv2".
        input_size: edge in pixels of the image that the backbone sees.
        mean: RGB mean of the backbone's normalisation, in [0, 1]; None is the one it was published with.
        std: RGB standard deviation of the backbone's normalisation, in [0, 1]; None is the one it was published with.
        absolute_max: largest |value| in the features the model was trained on, for warnings.
        weights_sha256: of the backbone's weights: of its tensors, not of a file, which may hold them in any order.
        prefix_tokens: how many tokens come before those of the positions: class token, registers, distillation token.
        more_layers: where a model takes several layers, those after the first, which the fields above describe. The
            layout is then "nchw": maps of several layers are arranged alike before they are packed.
    """

    channels: Annotated[int, Between(1, 65_536)]
    height: Annotated[int, Between(1, 4_096)] | None = None
    width: Annotated[int, Between(1, 4_096)] | None = None
    layout: FeatureLayout | None = None
    backbone: str | None = None
    layer: str | None = None
    input_size: Annotated[int, Between(1, 8_192)] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[Divisor, Divisor, Divisor] | None = None
    absolute_max: float | None = None
    weights_sha256: Sha256 | None = None
    prefix_tokens: Annotated[int, Between(0, 1024)] | None = None
    more_layers: tuple[LayerSpec, ...] = ()

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """All layers, of which there is one as a rule; what nobody names is the model's last map."""
        first = LayerSpec(layer=self.layer or FINAL, channels=self.channels, height=self.height, width=self.width)
        return first, *self.more_layers

    @property
    def total_channels(self) -> int:
        """Channels of all layers together, which is what a condition encoder takes."""
        return sum(layer.channels for layer in self.layers)

    @property
    def packed_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """C, H and W of the maps of several layers, as `featinv_kernels.packed_maps` takes them; () for one layer.

        Raises:
            ConfigError: a size is not known.
        """
        shapes = [(layer.channels, layer.height, layer.width) for layer in self.layers]
        if len(shapes) == 1:
            return ()
        known = [(channels, height, width) for channels, height, width in shapes if height and width]
        _require("FeatureSpec.more_layers", shapes, len(known) == len(shapes), "height and width of every layer")
        return tuple(known)

    @property
    def layer_names(self) -> str | None:
        """The names of all layers, with commas between; None where it is not stated."""
        return self.layer and ", ".join(layer.layer for layer in self.layers)

    @property
    def in_words(self) -> str:
        """The shape of what is taken, "[B, 1024, 9, 9]", and of several layers each."""
        shapes = [(layer.channels, layer.height or "H", layer.width or "W") for layer in self.layers]
        return " + ".join(f"[B, {channels}, {height}, {width}]" for channels, height, width in shapes)

    @property
    def map_shape(self) -> tuple[int, int | None, int | None]:
        """C, H and W of what stands in one tensor: the map, or those of several layers packed."""
        if self.more_layers:
            return sum(math.prod(shape) for shape in self.packed_shapes), 1, 1
        return self.channels, self.height, self.width


Level = Annotated[int, Between(0, 255)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageReading(Limited):
    """The choices in reading an image; runs record them.

    Attributes:
        background: R, G and B, what shows through transparent pixels.
        exif_rotation: turn photographs as their EXIF tag says. Data sets such as ImageNet are used as stored.
    """

    background: tuple[Level, Level, Level] = (255, 255, 255)
    exif_rotation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(isinstance(level, int) for level in self.background):
            raise _refusal("ImageReading.background", self.background, "whole numbers")


AS_STORED = ImageReading()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig(Limited):
    """An engine's defaults for `Runtime.invert`. The values here are the official ones.

    Attributes:
        sampler: name of the sampler.
        steps: of the sampler.
        guidance_scale: classifier-free guidance; 1 is none.
        unconditional_strength: of the features in guidance's unconditional branch. With 1 the branches differ in the
            prompt alone, and guidance amplifies the prompt; with 0 it amplifies the features.
    """

    sampler: str = "ddim"
    steps: Annotated[int, Between(1, 1000)] = 50
    guidance_scale: Annotated[float, Between(-10_000, 10_000)] = 1.75
    unconditional_strength: Annotated[float, Between(-10_000, 10_000)] = 1.0


def to_dict(config: Any) -> dict[str, Any]:
    """A frozen dataclass as plain JSON types."""
    return {f.name: _to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [_to_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _to_plain(v) for k, v in value.items()}
    return value


def from_dict(cls: type[T], data: Mapping[str, Any], *, where: str = "") -> T:
    """Build the dataclass `cls` from plain JSON types.

    Raises:
        ConfigError: an unknown or missing key, or a value of the wrong kind; the message names the path.
    """
    path = where or cls.__name__
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{path} is not a mapping",
            given=type(data).__name__,
            expected="values by their names: a JSON object, a TOML table",
            remedy="write it so",
        )
    hints = _hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ConfigError(
            f"unknown keys in {path}",
            given=unknown,
            expected=sorted(fields),
            remedy=f"remove them{_meant(unknown, fields)}",
        )
    missing = sorted(
        name
        for name, f in fields.items()
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    if missing:
        raise ConfigError(f"missing keys in {path}", given=sorted(data), expected=missing, remedy="add them")
    return cls(**{name: _from_plain(hints[name], value, f"{path}.{name}") for name, value in data.items()})


_KINDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    dict: "values by their names",
    tuple: "a list",
}


def _from_plain(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        value = _from_plain(args[0], value, path)
        _require_limits(hint, value, path)
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        (choice,) = [a for a in args if a is not type(None)]
        return _from_plain(choice, value, path)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where=path)  # type: ignore[arg-type]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError:
            choices = [str(choice.value) for choice in hint]
            raise ConfigError(
                f"bad value for {path}",
                given=_shown(value),
                expected=choices,
                remedy=f"name one of these{_meant([value] if isinstance(value, str) else [], choices)}",
            ) from None
    if origin is tuple and isinstance(value, list | tuple):
        inner = _inner_hints(args, len(value))
        if len(inner) == len(value):
            return tuple(_from_plain(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    if origin is dict and isinstance(value, Mapping):
        return {k: _from_plain(args[1], v, f"{path}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        if not isinstance(value, int) or -(2**63) <= value < 2**63:
            return value
        raise _refusal(path, _shown(value), "an integer of 64 bits")
    raise _refusal(path, _shown(value), _KINDS.get(origin or hint, hint))


def _shown(value: Any) -> str:
    """A value in a message."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write integers of thousands of digits
        return f"{type(value).__name__} with thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ... ({len(text)} characters)"


def _meant(given: Iterable[str], known: Iterable[str]) -> str:
    """What was probably meant, as the end of a sentence; empty where nothing known is near."""
    known = list(known)
    near = {name: difflib.get_close_matches(name, known, n=1) for name in given if len(name) <= SHOWN}
    guesses = [f"{found[0]!r} for {name!r}" for name, found in near.items() if found]
    return f"; did you mean {', '.join(guesses)}?" if guesses else ""

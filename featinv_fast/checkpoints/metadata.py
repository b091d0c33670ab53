"""What a checkpoint says of itself beyond its tensors: the `featinv.*` entries of a safetensors file's metadata.

| key | value |
|---|---|
| `featinv.model` | the model's configuration, a JSON object |
| `featinv.backbone`, `.layer`, `.layout` | text: model, layer, and how that backbone lays its features out |
| `featinv.feature_shape` | `[C, H, W]` or `CxHxW` |
| `featinv.input_size`, `.mean`, `.std`, `.absolute_max`, `.prefix_tokens`, `.more_layers` | see `FeatureSpec`, JSON |
| `featinv.weights_sha256` | text: of the backbone's weights, see `FeatureSpec` |
| `featinv.sampler` | text |
| `featinv.steps`, `.guidance_scale`, `.unconditional_strength` | see `SamplingConfig`, JSON |
| `featinv.adaptations` | what was done to the published weights, a JSON list of text |
| `featinv.info.*` | notes, kept as they are |
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from featinv_fast.checkpoints.listing import short
from featinv_fast.checkpoints.strict_json import parse_json
from featinv_fast.config import FeatureSpec, ModelConfig, SamplingConfig, from_dict, to_dict
from featinv_fast.errors import CheckpointMismatchError, ConfigError

PREFIX = "featinv."
NOTES = "featinv.info."
TEXTS = ("backbone", "layer", "layout", "weights_sha256", "sampler")
# What of a FeatureSpec has an entry of its own; the sizes of the map are one, `feature_shape`.
FEATURES = tuple(
    field.name for field in dataclasses.fields(FeatureSpec) if field.name not in ("channels", "height", "width")
)
SAMPLING = ("sampler", "steps", "guidance_scale", "unconditional_strength")
KEYS = ("model", "feature_shape", "adaptations", *FEATURES, *SAMPLING)
# Fields of ModelConfig that no tensor's shape tells.
SHAPELESS = ("heads", "latent_size", "context_tokens", "feature_shapes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statement:
    """The metadata, parsed and reconciled with the tensors."""

    config: ModelConfig
    features: FeatureSpec
    sampling: SamplingConfig
    adaptations: tuple[str, ...]


def parse(metadata: Mapping[str, str], config: ModelConfig) -> Statement:
    """Parse the `featinv.*` entries and reconcile them with `config`, which was inferred from the tensors.

    Raises:
        CheckpointMismatchError: an entry is unknown, malformed, or contradicts the tensors.
    """
    values: dict[str, Any] = {}
    for key, text in metadata.items():
        name = key.removeprefix(PREFIX)
        if not key.startswith(PREFIX) or key.startswith(NOTES):
            continue
        if name not in KEYS:
            raise _unfit(key, text, f"one of {', '.join(KEYS)}, or a note under '{NOTES}'")
        values[name] = text if name in TEXTS else _json(key, text)
    try:
        if "model" in values:
            config = _reconcile(config, from_dict(ModelConfig, values["model"], where=f"{PREFIX}model"))
        sampling = from_dict(SamplingConfig, _present(values, SAMPLING), where="featinv")
        adaptations = values.get("adaptations", [])
        if not isinstance(adaptations, list) or not all(isinstance(note, str) for note in adaptations):
            raise _unfit(f"{PREFIX}adaptations", adaptations, "a list of text")
        features = _features(values, config)
        if config.feature_shapes not in ((), features.packed_shapes):
            raise _unfit(f"{PREFIX}model", config.feature_shapes, features.packed_shapes)
        config = dataclasses.replace(config, feature_shapes=features.packed_shapes)
    except ConfigError as error:
        raise CheckpointMismatchError(
            f"the checkpoint's metadata are malformed: {error.problem}",
            given=error.given,
            expected=error.expected,
            remedy="write the checkpoint again with the program that made it, or correct these metadata",
        ) from error
    return Statement(config=config, features=features, sampling=sampling, adaptations=tuple(adaptations))


def build(
    config: ModelConfig,
    features: FeatureSpec,
    sampling: SamplingConfig,
    adaptations: tuple[str, ...],
    metadata: Mapping[str, str],
) -> dict[str, str]:
    """The metadata to write; of `metadata`, entries that are not ours and notes are kept."""
    kept = {key: text for key, text in metadata.items() if not key.startswith(PREFIX) or key.startswith(NOTES)}
    kept["format"] = "pt"  # transformers refuses files that do not name their framework
    spec = to_dict(features)
    values = {"model": to_dict(config), **to_dict(sampling), **{name: spec[name] for name in FEATURES}}
    if not features.more_layers:
        del values["more_layers"]
    if features.height is not None and features.width is not None:
        values["feature_shape"] = [features.channels, features.height, features.width]
    if adaptations:
        values["adaptations"] = list(adaptations)
    return kept | {
        PREFIX + name: value if name in TEXTS else json.dumps(value)
        for name, value in values.items()
        if value is not None
    }


def _features(values: Mapping[str, Any], config: ModelConfig) -> FeatureSpec:
    data = _present(values, FEATURES)
    spec = from_dict(FeatureSpec, data | {"channels": config.feature_channels}, where="featinv")
    # The network takes all layers beside one another; what the later ones do not bring is the first one's.
    channels = 2 * config.feature_channels - spec.total_channels
    data |= {"channels": channels}
    if "feature_shape" in values:
        shape = values["feature_shape"]
        if not isinstance(shape, list) or len(shape) != 3 or shape[0] != channels:
            raise _unfit(f"{PREFIX}feature_shape", shape, f"[{channels}, height, width]")
        data |= {"height": shape[1], "width": shape[2]}
    return from_dict(FeatureSpec, data, where="featinv")


def _reconcile(inferred: ModelConfig, stated: ModelConfig) -> ModelConfig:
    """`stated`, which may add to what the shapes say but not contradict it."""
    shapeless = {name: getattr(stated, name) for name in SHAPELESS}
    autoencoder = dataclasses.replace(inferred.autoencoder, latent_scale=stated.autoencoder.latent_scale)
    expected = dataclasses.replace(inferred, **shapeless, autoencoder=autoencoder)
    if stated != expected:
        given, wanted = to_dict(stated), to_dict(expected)
        differing = [name for name in given if given[name] != wanted[name]]
        raise _unfit(
            f"{PREFIX}model", {name: given[name] for name in differing}, {name: wanted[name] for name in differing}
        )
    return stated


def _json(key: str, text: str) -> Any:
    if key == f"{PREFIX}feature_shape" and re.fullmatch("[0-9]{1,9}(x[0-9]{1,9}){2}", text):
        return [int(number) for number in text.split("x")]
    try:
        return parse_json(text)
    except ValueError as error:
        raise _unfit(key, short(text), f"JSON; {error}") from None


def _present(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _unfit(key: str, given: object, expected: object) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        f"the checkpoint's metadata do not fit: '{key}'",
        given=given,
        expected=expected,
        remedy="correct the metadata, or remove the entry: what is not stated is derived from the tensors",
    )

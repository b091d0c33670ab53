"""How strong a LoRA is: read from the file or from what lies beside it, never guessed.

The factor on up @ down is alpha / rank (arXiv 2106.09685). Alpha is told by, the first that does counts:

1. the layer's own tensor `.alpha` (kohya, LyCORIS, older diffusers);
2. PEFT's configuration, beside the file or in its header; if both tell, they must agree;
3. kohya's metadata `ss_network_alpha`;
4. whoever asks for the fusion.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featinv_fast.checkpoints.listing import listed, short
from featinv_fast.checkpoints.lora_names import TEXT_ENCODER, UNET, Layer
from featinv_fast.checkpoints.peft_config import PeftStrength, parse_peft_config, refused
from featinv_fast.checkpoints.strict_json import parse_json
from featinv_fast.errors import ArgumentError, CheckpointMismatchError

PEFT_METADATA = "lora_adapter_metadata"
# Arguments of kohya's network that change no layer's alpha.
KOHYA_ARGUMENTS = frozenset(
    {"conv_dim", "conv_alpha", "dropout", "rank_dropout", "module_dropout"}
    | {"loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio"}
)
KOHYA_MODULE = "networks.lora"
RANK = "rank"  # as an alpha: every layer's own rank


@dataclasses.dataclass(frozen=True)
class Strength:
    """What is known of a LoRA's strength.

    Attributes:
        configs: PEFT's configuration for each component; the key "" is the one for all.
        metadata: of the file.
        alpha: what whoever asks for the fusion says, for files that do not; "rank" is each layer's rank.
    """

    configs: Mapping[str, PeftStrength]
    metadata: Mapping[str, str]
    alpha: float | str | None = None

    def factors(self, layers: list[Layer]) -> list[float]:
        """The factor on up @ down of each layer.

        Raises:
            CheckpointMismatchError: an alpha is not told, told in two ways that differ, or no finite number.
            ArgumentError: an alpha is given for a file that tells its own.
        """
        stated = [self._stated(layer) for layer in layers]
        open_layers = [layer for layer, factor in zip(layers, stated, strict=True) if factor is None]
        if self.alpha is None and open_layers:
            raise CheckpointMismatchError(
                "the LoRA does not say how strong it is",
                given=f"{len(open_layers)} of {len(layers)} layers without an alpha: "
                f"{listed(layer.name for layer in open_layers)}",
                expected="tensors '.alpha', an adapter_config.json beside the file, or metadata that state it",
                remedy="put the adapter_config.json that belongs to it beside it; or say which alpha it was trained "
                "with: alpha=NUMBER, or alpha='rank' where it was the rank",
                command_remedy="put the adapter_config.json that belongs to it beside it; or say which alpha it was "
                "trained with: --lora-alpha NUMBER, or --lora-alpha rank where it was the rank",
            )
        if self.alpha is not None and not open_layers:
            raise ArgumentError(
                "the LoRA states its own alpha",
                given=f"alpha {self.alpha}",
                expected="no alpha beside the file's",
                remedy="leave out alpha=; scale= makes it weaker or stronger",
                command_remedy="leave out --lora-alpha; --lora-scale makes it weaker or stronger",
            )
        return [self._given(layer) if f is None else f for layer, f in zip(layers, stated, strict=True)]

    def _stated(self, layer: Layer) -> float | None:
        config = self.configs.get(layer.component, self.configs.get(""))
        by_config = None if config is None else config.factor(_local_name(layer, self.configs), layer.rank)
        if "alpha" not in layer.parts:
            return self._by_kohya(layer) if by_config is None else by_config
        alpha = float(layer.parts["alpha"].item())
        if not math.isfinite(alpha):
            raise refused([f"an alpha that is no finite number: {layer.name}: {alpha}"])
        if by_config is not None and not math.isclose(alpha / layer.rank, by_config, rel_tol=1e-3):
            raise CheckpointMismatchError(
                "the LoRA's tensors and its configuration state different strengths",
                given=f"{layer.name}: alpha {alpha:g}",
                expected=f"alpha {by_config * layer.rank:g}, as its configuration says",
                remedy="keep the weights apart from configurations that do not belong to them",
            )
        return alpha / layer.rank

    def _by_kohya(self, layer: Layer) -> float | None:
        """From kohya's metadata; None where they are absent, not plain, or of another rank than the layer."""
        arguments = _json_object(self.metadata.get("ss_network_args", "{}"))
        if self.metadata.get("ss_network_module") != KOHYA_MODULE or not arguments.keys() <= KOHYA_ARGUMENTS:
            return None
        if layer.parts["down"].ndim == 4 and layer.parts["down"].shape[-1] > 1 and "conv_dim" in arguments:
            rank, alpha = arguments["conv_dim"], arguments.get("conv_alpha", 1.0)
        else:
            rank, alpha = self.metadata.get("ss_network_dim"), self.metadata.get("ss_network_alpha")
        rank, alpha = _plain_number(rank), _plain_number(alpha)
        if alpha is None or rank != layer.rank:
            return None
        return (alpha or layer.rank) / layer.rank  # kohya takes an alpha of 0 for the rank

    def _given(self, layer: Layer) -> float:
        assert self.alpha is not None
        return 1.0 if isinstance(self.alpha, str) else self.alpha / layer.rank


def read_strength(metadata: Mapping[str, str], config: Mapping[str, Any] | None, alpha: float | str | None) -> Strength:
    """The strength from a file's metadata and from the `adapter_config.json` beside it.

    Raises:
        CheckpointMismatchError: a configuration is malformed, or of an adapter that cannot be fused.
        ArgumentError: an alpha that is neither a finite number nor "rank".
    """
    if alpha is not None and alpha != RANK and (isinstance(alpha, str) or not math.isfinite(alpha)):
        raise ArgumentError(
            "no alpha of a LoRA",
            given=repr(alpha),
            expected=f"a finite number, or '{RANK}'",
            remedy=f"pass the alpha that it was trained with, or '{RANK}' where it is not scaled",
        )
    stated = [] if config is None else [{"": config}]
    if PEFT_METADATA in metadata:
        stated.append(_by_component(_json_object(metadata[PEFT_METADATA])))
    parsed = [{name: parse_peft_config(options) for name, options in each.items()} for each in stated]
    if len(parsed) == 2 and parsed[0] != parsed[1]:
        raise CheckpointMismatchError(
            "the adapter_config.json and the file's own metadata state different strengths",
            given=stated[0],
            expected=stated[1],
            remedy="keep the weights apart from configurations that do not belong to them",
        )
    return Strength(parsed[-1] if parsed else {}, metadata, alpha)


def config_beside(path: Path) -> Path:
    """Where PEFT puts the configuration of the adapter in the file `path`."""
    return path.with_name("adapter_config.json")


def _by_component(options: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The configurations of components: diffusers packs them into one object, "unet.r" and so on."""
    components = {
        name: {key.removeprefix(f"{name}."): value for key, value in options.items() if key.startswith(f"{name}.")}
        for name in (UNET, TEXT_ENCODER)
    }
    packed = {name: part for name, part in components.items() if part}
    rest = {key: value for key, value in options.items() if not key.startswith(tuple(f"{name}." for name in packed))}
    return packed | ({"": rest} if rest or not packed else {})


def _local_name(layer: Layer, configs: Mapping[str, PeftStrength]) -> str:
    """The layer's name in the model that its configuration is about."""
    return layer.name.removeprefix(f"{layer.component}.") if layer.component in configs else layer.name


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise refused([f"metadata that are not readable: {short(error)}"]) from None
    if not isinstance(content, dict):
        raise refused([f"metadata that are no JSON object: {short(text)}"])
    return content


def _plain_number(value: object) -> float | None:
    """A number from metadata, in which everything is text; kohya writes None for one that was not given."""
    if value is None or value == "None":
        return 0.0 if value == "None" else None
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise refused([f"metadata with a number that is none: {short(value)}"])
    return number

"""How strong PEFT makes an adapter's layers: its configuration, every field of it decided.

PEFT writes the configuration as `adapter_config.json` beside the weights, diffusers as `lora_adapter_metadata` into
the header of the weights. What is served here gives exactly what PEFT's own merge gives, W + factor * B @ A; whatever
would make it anything else is refused by the name of its field.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from featinv_fast.checkpoints.listing import listed, short
from featinv_fast.errors import CheckpointMismatchError

# Fields that tell the strength, read below.
SERVED = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights")
# Fields that cannot change what the matrices in the file add to the weights.
INERT = {
    **dict.fromkeys(("auto_mapping", "base_model_name_or_path", "revision", "task_type", "peft_version"), "provenance"),
    **dict.fromkeys(
        ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"), "the tensors' names tell it"
    ),
    **dict.fromkeys(("inference_mode", "lora_dropout", "runtime_config"), "of training and loading alone"),
    **dict.fromkeys(
        ("eva_config", "loftq_config", "corda_config", "lora_ga_config"), "counts with its init_lora_weights alone"
    ),
    "megatron_core": "counts with megatron_config alone",
    "qalora_group_size": "counts with use_qalora alone",
}
# Fields that make it another computation, or change more than the layers' weights, unless they are off.
REFUSED = {
    "alora_invocation_tokens": "activated LoRA: no merge exists",
    "arrow_config": "a choice between adapters for each token",
    "bias": "trained biases",
    "ensure_weight_tying": "layers tied to one another",
    "fan_in_fan_out": "transposed weights",
    "kasa_config": "KaSA: the base weights change too",
    "layer_replication": "another number of layers",
    "lora_bias": "a bias beside the matrices",
    "megatron_config": "layers split over devices",
    "modules_to_save": "whole layers beside the matrices",
    "monteclora_config": "random weights",
    "target_parameters": "parameters that are no layer's weight",
    "trainable_token_indices": "trained token embeddings",
    "use_bdlora": "block-diagonal matrices",
    "use_dora": "DoRA: the weights are normalised after the addition",
    "use_qalora": "QA-LoRA: pooled inputs",
    "velora_config": "VeLoRA",
}
OFF: tuple[object, ...] = (None, False, "none", {}, [])
# Initialisations that leave the base weights as they are. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, MiCA)
# take from the base what they put into the matrices: fused into the untouched base they would count twice.
PLAIN_STARTS: tuple[object, ...] = (True, False, None, "gaussian", "eva", "orthogonal")
MOST_PATTERNS = 2000  # a U-Net of Stable Diffusion 1 has 350 layers with weights
LONGEST_PATTERN = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeftStrength:
    """The strength of an adapter's layers, as PEFT computes it.

    Attributes:
        alpha: of layers that no pattern names.
        rank: of layers that no pattern names; None where it is not stated.
        alphas: (pattern, alpha), the first that fits a layer's name counts.
        ranks: (pattern, rank), likewise.
        rank_stabilized: divide by the root of the rank (arXiv 2312.03732) instead of the rank.
    """

    alpha: float
    rank: int | None
    alphas: tuple[tuple[re.Pattern[str], float], ...]
    ranks: tuple[tuple[re.Pattern[str], int], ...]
    rank_stabilized: bool

    def factor(self, layer: str, rank: int) -> float:
        """The factor on up @ down of the layer of that name.

        Raises:
            CheckpointMismatchError: the configuration gives this layer another rank than its matrices have.
        """
        stated = next((value for pattern, value in self.ranks if pattern.match(layer)), self.rank)
        if stated is not None and stated != rank:
            raise CheckpointMismatchError(
                "the adapter's configuration does not fit its matrices",
                given=f"rank {stated} for {short(layer)}",
                expected=f"rank {rank}, which its matrices have",
                remedy="use the configuration and the weights that were saved together",
            )
        alpha = next((value for pattern, value in self.alphas if pattern.match(layer)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def parse_peft_config(options: Mapping[str, Any]) -> PeftStrength:
    """The strength that a configuration states.

    Raises:
        CheckpointMismatchError: a field is unknown, malformed, or makes it an adapter that cannot be fused exactly.
    """
    if options.get("peft_type", "LORA") != "LORA":
        raise refused([f"peft_type {options['peft_type']!r}"])
    start = options.get("init_lora_weights", True)
    reasons = [f"init_lora_weights {start!r} (the base weights change too)"] if start not in PLAIN_STARTS else []
    for field, value in options.items():
        if field not in SERVED and field not in INERT and value not in OFF:
            reasons.append(f"{field} ({REFUSED.get(field, 'an unknown field')}): {value!r}")
    if reasons:
        raise refused(reasons)
    if "lora_alpha" not in options:
        raise refused(["a configuration without lora_alpha"])
    rank_stabilized = options.get("use_rslora", False)
    if not isinstance(rank_stabilized, bool | None):
        raise refused([f"use_rslora: {rank_stabilized!r}"])
    return PeftStrength(
        alpha=_number("lora_alpha", options["lora_alpha"]),
        rank=None if options.get("r") is None else _rank("r", options["r"]),
        alphas=tuple((p, _number("alpha_pattern", v)) for p, v in _patterns("alpha_pattern", options)),
        ranks=tuple((p, _rank("rank_pattern", v)) for p, v in _patterns("rank_pattern", options)),
        rank_stabilized=bool(rank_stabilized),
    )


def refused(reasons: list[str]) -> CheckpointMismatchError:
    """The error for adapters of other kinds."""
    return CheckpointMismatchError(
        "this kind of adapter cannot be fused",
        given=listed(reasons),
        expected="a plain LoRA: each layer's weight plus a factor times the product of two matrices",
        remedy="merge it into its U-Net with the tool that trained it, and give that U-Net",
    )


def _patterns(field: str, options: Mapping[str, Any]) -> list[tuple[re.Pattern[str], Any]]:
    """PEFT's patterns: regular expressions that fit a layer's name from one of its dots to its end."""
    entries = options.get(field) or {}
    if not isinstance(entries, Mapping) or len(entries) > MOST_PATTERNS:
        raise refused([f"{field} that is no mapping of at most {MOST_PATTERNS} names"])
    return [(_compiled(field, text), value) for text, value in entries.items()]


def _compiled(field: str, text: str) -> re.Pattern[str]:
    # A repeated group, or many repetitions, can take longer than anybody waits: no name of a layer needs them.
    plain = re.sub(r"\\.", "", text)
    if len(text) > LONGEST_PATTERN or re.search(r"\)[*+?{]", plain) or len(re.findall(r"[*+{]", plain)) > 3:
        raise refused([f"{field} with a pattern that is too complicated: {short(text)}"])
    try:
        return re.compile(rf"(.*\.)?({text})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise refused([f"{field} with a pattern that is none: {short(text)}: {error}"]) from None


def _number(field: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise refused([f"{field} that is no finite number: {short(value)}"])
    return float(value)


def _rank(field: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise refused([f"{field} that is no positive integer: {short(value)}"])
    return value

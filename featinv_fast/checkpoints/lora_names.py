"""Which layer each tensor of a LoRA file belongs to.

Read are, for example

- `lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight`, `.lora_up.weight`, `.alpha` (kohya), and `lora_te_*`
- `unet.down_blocks.0.attentions.0.proj_in.lora_A.weight`, `.lora_B.weight` (diffusers), and `text_encoder.*`
- `base_model.model.down_blocks.0.attentions.0.proj_in.lora_A.weight`, `.lora_B.weight` (PEFT)
- `unet.down_blocks.0. ... .attn1.processor.to_q_lora.down.weight`, `.up.weight` (older diffusers)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from torch import Tensor

from featinv_fast.checkpoints.diffusers_layout import unet_modules
from featinv_fast.checkpoints.known import resemblance
from featinv_fast.checkpoints.listing import listed
from featinv_fast.checkpoints.loading import Checkpoint
from featinv_fast.checkpoints.peft_config import refused
from featinv_fast.errors import CheckpointMismatchError

UNET, TEXT_ENCODER = "unet", "text_encoder"
# (pattern of a whole key, the module's name, its part)
SPELLINGS = (
    (r"(.*)\.processor\.to_out_lora\.(down|up)\.weight", r"\1.to_out.0", r"\2"),
    (r"(.*)\.processor\.(to_[qkv])_lora\.(down|up)\.weight", r"\1.\2", r"\3"),
    (r"(.*\.self_attn)\.to_(q|k|v|out)_lora\.(down|up)\.weight", r"\1.\2_proj", r"\3"),
    (r"(.*)\.(?:lora_|lora\.|lora_linear_layer\.)(down|up)\.weight", r"\1", r"\2"),
    (r"(.*)\.lora_A\.(?:[^.]+\.)?weight", r"\1", "down"),
    (r"(.*)\.lora_B\.(?:[^.]+\.)?weight", r"\1", "up"),
    (r"(.*)\.alpha", r"\1", "alpha"),
)
# What PEFT wraps around a model.
PEFT_PREFIX = "base_model.model."
# Tensors of adapters that are no plain LoRA, by the ends of their names.
OTHER_KINDS = (
    (r".*\.(dora_scale|lora_magnitude_vector(\..*)?)", "DoRA"),
    (r".*\.lora_mid\.weight", "LoCon with a third matrix (Tucker decomposition)"),
    (r".*\.hada_.*", "LoHa"),
    (r".*\.lokr_.*", "LoKr"),
    (r".*(\.|_)(oft|boft)_.*", "OFT or BOFT"),
    (r".*\.(ia3_l.*|on_input)", "(IA)3"),
    (r".*\.(lora_E|ranknum).*", "AdaLoRA"),
    (r".*(\.|_)vera_.*", "VeRA"),
    (r".*\.lora_diag.*", "KaSA"),
    (r".*\.glora_.*|.*\.(a|b)[12]\.weight", "GLoRA"),
    (r".*\.(diff|diff_b|w_norm|b_norm|set_weight)", "whole differences of weights"),
    (r".*\.lora_B\.(.*\.)?bias|.*\.lora_up\.bias", "a bias beside the matrices"),
    (r".*\.lora_embedding_[AB].*", "adapted token embeddings"),
    (r".*\.(scalar|bypass_mode)", "LyCORIS with a learned factor"),
    (r".*\.modules_to_save\..*", "whole layers beside the matrices"),
)
TEXT_LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
MOST_TEXT_LAYERS = 32


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer that a LoRA adds to.

    Attributes:
        component: "unet" or "text_encoder".
        weight: our name of its weight, in `Checkpoint.tensors` or `Checkpoint.text_encoder`.
        name: the layer's name in the model that the adapter was trained on, as far as the file tells it.
        parts: "down", "up" and perhaps "alpha".
    """

    component: str
    weight: str
    name: str
    parts: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Rows of the down matrix."""
        return self.parts["down"].shape[0]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(f'{part} {list(t.shape)}' for part, t in sorted(self.parts.items()))})"


def layers_of(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> list[Layer]:
    """The layers of a LoRA file whose tensors are these.

    Raises:
        CheckpointMismatchError: a tensor belongs to no layer, two are the same part of one, or it is no plain LoRA.
    """
    known = _spelled(checkpoint)
    layers: dict[tuple[str, str], Layer] = {}
    unused = []
    for key, tensor in tensors.items():
        name, part = _parse(key)
        if name not in known:
            unused.append(key)
            continue
        component, weight = known[name]
        layer = layers.setdefault((component, weight), Layer(component, weight, name))
        if part in layer.parts:
            unused.append(key)
        layer.parts[part] = tensor
    kinds = {kind for key in unused for pattern, kind in OTHER_KINDS if re.fullmatch(pattern, key)}
    if kinds:
        raise refused([f"{', '.join(sorted(kinds))}: {listed(unused)}"])
    if unused or not layers:
        raise mismatch(unused, tensors)
    return list(layers.values())


def mismatch(names: list[str], tensors: Mapping[str, Tensor]) -> CheckpointMismatchError:
    """The error for tensors or layers that do not fit."""
    return CheckpointMismatchError(
        "the LoRA does not fit the checkpoint's U-Net",
        given=f"{len(names)} of {len(tensors)} tensors or layers do not fit: {listed(names)}; these are "
        f"{resemblance(tensors)}",
        expected="an up and a down matrix of the layer's size, and perhaps one alpha, for layers of this U-Net and "
        "of its CLIP text encoder, under the names of kohya, diffusers or PEFT",
        remedy="use a LoRA that was trained on Stable Diffusion 1",
    )


def _parse(key: str) -> tuple[str, str]:
    """Name of the module and part of a key; empty if it is no key of a LoRA."""
    while key.startswith(PEFT_PREFIX):
        key = key.removeprefix(PEFT_PREFIX)
    for pattern, module, part in SPELLINGS:
        if match := re.fullmatch(pattern, key):
            return match.expand(module), match.expand(part)
    return "", ""


def _spelled(checkpoint: Checkpoint) -> dict[str, tuple[str, str]]:
    """Every spelling of a layer's name to its component and our name of its weight."""
    known: dict[str, tuple[str, str]] = {}
    for ours, theirs in unet_modules(checkpoint.config).items():
        weight = f"{ours}.weight"
        if weight in checkpoint.tensors:
            plain = theirs.removeprefix("unet.")
            under = plain.replace(".", "_")
            names = (plain, under, f"unet.{plain}", f"unet.{PEFT_PREFIX}{plain}", f"lora_unet_{under}")
            known |= dict.fromkeys(names, (UNET, weight))
    for plain in _text_layers(checkpoint):
        for text in (plain, f"text_model.{plain}"):
            spelled = (text, f"text_encoder.{text}", f"lora_te_{text.replace('.', '_')}")
            known |= dict.fromkeys(spelled, (TEXT_ENCODER, f"{plain}.weight"))
    return known


def _text_layers(checkpoint: Checkpoint) -> list[str]:
    """Names of the text encoder's layers, also of one that the checkpoint does not have."""
    count = sum(name.endswith(".mlp.fc1.weight") for name in checkpoint.text_encoder) or MOST_TEXT_LAYERS
    return [f"encoder.layers.{i}.{name}" for i in range(count) for name in TEXT_LAYERS]

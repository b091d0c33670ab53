"""LoRA files under kohya's, PEFT's and older diffusers' names, and the folders that PEFT's `save_pretrained` writes."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import tiny
from mutate import plain, tensors, values
from target import Target

from featinv_fast.checkpoints import check_finite, fuse_lora, load

RANK = 2
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
PROJECTION = "down_blocks.0.attentions.0.proj_in"
MLP = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"
LAYERS = {ATTENTION: (32, 32), PROJECTION: (32, 32), MLP: (256, 32)}
ADAPTER = {
    "peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": ["to_q", "proj_in", "net.0.proj"],
    "lora_dropout": 0.0, "bias": "none", "use_dora": False, "use_rslora": False, "rank_pattern": {},
    "alpha_pattern": {}, "modules_to_save": None, "fan_in_fan_out": False, "inference_mode": True,
    "base_model_name_or_path": "sd", "init_lora_weights": True, "layers_to_transform": None, "layers_pattern": None,
    "task_type": None, "revision": None, "auto_mapping": None, "megatron_config": None, "loftq_config": {},
    "exclude_modules": None, "lora_bias": False,
}  # fmt: skip


class Loras(Target):
    """LoRAs of three layers of the tiny model's U-Net."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.checkpoint = load(tiny.write_checkpoint(folder / "tiny.safetensors"))
        self.headers = {kind: _header(kind) for kind in ("kohya", "peft", "adapter", "older")}

    def mutant(self, random: Random, folder: Path) -> Path:
        """A file, or an adapter folder of which the file or its configuration is mutated."""
        kind = random.choice(tuple(self.headers))
        header = self.headers[kind]
        if kind != "adapter":
            return tensors.write_mutant(random, folder / f"{kind}.safetensors", header)
        adapter = folder / "adapter"
        adapter.mkdir()
        weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
        text = json.dumps(ADAPTER)
        if random.random() < 0.3:
            tensors.write_mutant(random, weights, header)
        else:
            tensors.write(weights, json.dumps(header).encode(), tensors.data_bytes(header))
            text = values.text_of(random, values.mutated(random, ADAPTER))
        content = text.encode("utf-8", "surrogatepass")
        config.write_bytes(plain.mutated(random, content) if random.random() < 0.1 else content)
        return random.choice((adapter, adapter, weights))

    def declared(self, path: Path) -> int | None:
        """The data of the file, and what it is added to."""
        weights = path / "adapter_model.safetensors" if path.is_dir() else path
        size = tensors.declared(weights)
        return None if size is None else size + 4 * sum(rows * columns for rows, columns in LAYERS.values())

    def run(self, path: Path) -> None:
        """Fuse it and check the sums."""
        check_finite(fuse_lora(self.checkpoint, path).tensors)


def _header(kind: str) -> Any:
    shapes: dict[str, tuple[int, ...]] = {}
    metadata = {"format": "pt"}
    for module, (rows, columns) in LAYERS.items():
        up, down = (rows, RANK), (RANK, columns)
        if module == PROJECTION:  # a convolution
            up, down = (*up, 1, 1), (*down, 1, 1)
        match kind:
            case "kohya":
                name = f"lora_unet_{module.replace('.', '_')}"
                shapes |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": ()}
                metadata |= {"ss_network_dim": "2", "ss_network_alpha": "1", "ss_network_module": "networks.lora"}
            case "peft":
                shapes |= {f"unet.{module}.lora_B.weight": up, f"unet.{module}.lora_A.weight": down}
                prefixed = {f"unet.{key}": value for key, value in ADAPTER.items()}
                metadata["lora_adapter_metadata"] = json.dumps(prefixed)
            case "adapter":
                name = f"base_model.model.{module}"
                shapes |= {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}
            case "older" if module == ATTENTION:
                name = f"unet.{module.replace('.to_q', '.processor.to_q')}_lora"
                shapes |= {f"{name}.up.weight": up, f"{name}.down.weight": down}
    return tensors.header_of(shapes, metadata=metadata)


TARGET = Loras

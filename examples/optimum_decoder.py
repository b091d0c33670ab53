# ruff: noqa: INP001 -- a script, run by path
"""Write the decoder of an engine as optimum lays out a Stable-Diffusion folder; needs nothing but onnx.

    python optimum_decoder.py convnext.engine folder

folder/vae_decoder/model.onnx: `latent_sample` [batch_size, 4, h, w] -> `sample` [batch_size, 3, 8h, 8w], float32, with
its weights inside; config.json beside it. The latents are those of the autoencoder: the caller divides by the scaling
factor of config.json, as the pipelines of optimum and diffusers do.
"""

import json
import sys
from pathlib import Path

import onnx


def rename(model: onnx.ModelProto) -> None:
    """Give the graph optimum's names, and leave the division by the latent scale to its caller."""
    graph = model.graph
    (divide,) = (node for node in graph.node if "latents" in node.input)
    if divide.op_type != "Div":
        raise ValueError(f"the decoder begins with {divide.op_type}, expected a division by the latent scale")
    graph.node.remove(divide)
    names = {divide.output[0]: "latent_sample", "image": "sample"}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    if not any(divide.input[1] in node.input for node in graph.node):
        (scale,) = (tensor for tensor in graph.initializer if tensor.name == divide.input[1])
        graph.initializer.remove(scale)
    for value, name, meaning in (
        (graph.input[0], "latent_sample", "latents in the scale of the autoencoder"),
        (graph.output[0], "sample", "images, about -1 to 1"),
    ):
        value.name, value.doc_string = name, meaning
        value.type.tensor_type.shape.dim[0].dim_param = "batch_size"
    graph.ClearField("value_info")  # the shapes between them name the batch as it was called


def config(manifest: dict) -> dict:
    """The config.json of diffusers' AutoencoderKL."""
    model = manifest["model"]["autoencoder"]
    widths = [model["channels"] * multiplier for multiplier in model["channel_multipliers"]]
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "norm_num_groups": 32,
        "mid_block_add_attention": True,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "in_channels": model["image_channels"],
        "out_channels": model["image_channels"],
        "latent_channels": model["latent_channels"],
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": model["blocks_per_level"],
        "sample_size": manifest["model"]["latent_size"] * 2 ** (len(widths) - 1),
        "scaling_factor": model["latent_scale"],
    }


if __name__ == "__main__":
    engine, folder = map(Path, sys.argv[1:])
    model = onnx.load(engine / "decoder.onnx")  # reads the decoder's part of weights.safetensors
    rename(model)
    onnx.checker.check_model(model, full_check=True)
    decoder = folder / "vae_decoder"
    decoder.mkdir(parents=True)
    onnx.save(model, decoder / "model.onnx")
    manifest = json.loads((engine / "manifest.json").read_text())
    (decoder / "config.json").write_text(json.dumps(config(manifest), indent=2))

"""Load a folder of `optimum_decoder.py` with optimum's own classes and run it; with optimum's packages on the path.

`run_in_optimum.py FOLDER INPUTS OUTPUTS`: inputs are latents by name in an npz file, outputs are the images. Tells
what optimum declares for the graph: names and dynamic axes of the input, then of the output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from onnxruntime import InferenceSession
from optimum.exporters.onnx.model_configs import VaeDecoderOnnxConfig
from optimum.onnxruntime.modeling_diffusion import ORTVaeDecoder

if __name__ == "__main__":
    folder, inputs, outputs = map(Path, sys.argv[1:])
    decoder = ORTVaeDecoder(InferenceSession(folder / "vae_decoder" / "model.onnx"), parent=None)
    with torch.device("meta"):  # optimum reads its config as diffusers does
        config = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae_decoder")).config
    declared = VaeDecoderOnnxConfig(config, task="semantic-segmentation")
    json.dump([declared.inputs, declared.outputs], sys.stdout)
    with np.load(inputs) as latents:
        images = {
            name: decoder(torch.from_numpy(latents[name]) / decoder.config.scaling_factor).sample for name in latents
        }
    np.savez(outputs, **{name: image.numpy() for name, image in images.items()})

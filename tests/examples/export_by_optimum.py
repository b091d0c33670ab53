"""Export a text encoder in the diffusers layout with optimum; with optimum's packages on the path.

`export_by_optimum.py FOLDER MODEL`: from what `featinv convert --to diffusers` wrote to an ONNX file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from optimum.exporters.onnx import export
from optimum.exporters.onnx.model_configs import CLIPTextOnnxConfig
from transformers import CLIPTextModel

if __name__ == "__main__":
    folder, model = map(Path, sys.argv[1:])
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    encoder.config.return_dict = True
    export(encoder, CLIPTextOnnxConfig(encoder.config, task="feature-extraction"), model, opset=18)

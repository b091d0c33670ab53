# ruff: noqa: INP001 -- a script, run by path
"""Invert feature maps with onnxruntime and numpy alone: neither torch nor featinv_fast is needed.

    python onnxruntime_alone.py convnext.engine features.npy images.npy

features.npy: float [B, C, H, W] as the vision model gives them; images.npy: uint8 [B, height, width, 3].
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def ddim_table(steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times [S], latest first, and factors [S] of x' = a x + b eps (DDIM, arXiv 2010.02502, eq. 12 with sigma 0)."""
    betas = np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2
    signal = np.cumprod(1 - betas)
    times = np.unique(np.minimum(np.arange(0, 1000, 1000 // steps) + 1, 999))[::-1]
    now, after = signal[times], signal[np.append(times[1:], 0)]
    a = np.sqrt(after / now)
    return times, a, np.sqrt(1 - after) - a * np.sqrt(1 - now)


class Engine:
    """An engine folder that was exported with --onnx."""

    def __init__(self, folder: Path) -> None:
        self.manifest = json.loads((folder / "manifest.json").read_text())
        # The graphs hold no weights: they point into the folder's weights.safetensors.
        self.sessions = {
            name: ort.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
            for name in ("condition_encoder", "time_embedding", "denoiser", "decoder")
        }

    def run(self, graph: str, **inputs: np.ndarray | float) -> np.ndarray:
        """Run a graph. All inputs and outputs are float32, whatever precision the graph computes in."""
        return self.sessions[graph].run(None, {name: np.asarray(x, np.float32) for name, x in inputs.items()})[0]

    def invert(self, features: np.ndarray, latents: np.ndarray) -> np.ndarray:
        """Maps [B, C, H, W] and start noise [B, 4, h, w] to images, with the engine's own steps and guidance."""
        sampling = self.manifest["sampling"]
        condition = self.run("condition_encoder", features=features)  # once per image, not once per step
        times, a, b = ddim_table(sampling["steps"])
        rows = self.run("time_embedding", timesteps=times)  # [S, T], once for all images
        control_scales = np.ones(self.sessions["denoiser"].get_inputs()[-1].shape)  # [2, 13]; less loosens the control
        control_scales[1] *= sampling["unconditional_strength"]
        for row, a_t, b_t in zip(rows, a, b, strict=True):
            eps = self.run(
                "denoiser",
                latents=latents,
                condition=condition,
                time_bias=row,
                guidance_scale=sampling["guidance_scale"],
                control_scales=control_scales,
            )
            latents = a_t * latents + b_t * eps
        image = self.run("decoder", latents=latents)  # [B, 3, height, width], about -1 to 1
        return np.clip(image * 127.5 + 127.5, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


if __name__ == "__main__":
    folder, features_file, images_file = sys.argv[1:]
    engine = Engine(Path(folder))
    features = np.load(features_file)
    edge = engine.manifest["model"]["latent_size"]
    noise = np.random.default_rng(0).standard_normal((len(features), 4, edge, edge))
    np.save(images_file, engine.invert(features, noise))

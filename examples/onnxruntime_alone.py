# ruff: noqa: INP001 -- a script, run by path
"""Invert feature maps with onnxruntime and numpy alone: neither torch nor featinv_fast is needed.

    python onnxruntime_alone.py convnext.engine features.npy images.npy

features.npy: float [B, C, H, W], whatever layout the model gives them in; images.npy: uint8 [B, height, width, 3].
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

SIGNAL = np.cumprod(1 - np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2)  # what is left of the image at each time


def ddim_table(steps: int) -> tuple[np.ndarray, ...]:
    """Times [S], latest first, and factors [S] of x' = a x + b eps + c noise (DDIM, arXiv 2010.02502, eq. 12)."""
    times = np.unique(np.minimum(np.arange(0, 1000, 1000 // steps) + 1, 999))[::-1]
    now, after = SIGNAL[times], SIGNAL[np.append(times[1:], 0)]
    a = np.sqrt(after / now)
    return times, a, np.sqrt(1 - after) - a * np.sqrt(1 - now), np.zeros(len(times))


def lcm_table(steps: int) -> tuple[np.ndarray, ...]:
    """The same for latent consistency models (arXiv 2310.04378, algorithm 3) distilled on 50 times."""
    times = (np.arange(50, 0, -1) * 20 - 1)[np.linspace(0, 50, steps, endpoint=False).astype(int)]
    now, after = SIGNAL[times], np.append(SIGNAL[times[1:]], 1.0)
    skip, out = 0.25 / ((10.0 * times) ** 2 + 0.25), 10.0 * times / np.sqrt((10.0 * times) ** 2 + 0.25)
    a, b = np.sqrt(after) * (skip + out / np.sqrt(now)), -out * np.sqrt(after * (1 - now) / now)
    return times, a, b, np.sqrt(1 - after)


TABLES = {"ddim": ddim_table, "lcm": lcm_table}


class Engine:
    """An engine folder that was exported with --onnx, such as the built-in ones."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.graphs = folder, {}
        self.manifest = json.loads((folder / "manifest.json").read_text())
        kind = self.manifest["format_version"], self.manifest.get("family"), self.manifest["sampling"]["sampler"]
        if kind not in [(3, "featinv", sampler) for sampler in TABLES]:
            sys.exit(f"served are format 3, featinv and the samplers {', '.join(TABLES)}; the engine has {kind}")

    def run(self, graph: str, **inputs: np.ndarray | float) -> np.ndarray:
        """Run a graph. All inputs and outputs are float32, whatever precision the graph computes in."""
        if graph not in self.graphs:  # which holds no weights: it points into the folder's weights.safetensors
            self.graphs[graph] = ort.InferenceSession(self.folder / f"{graph}.onnx", providers=["CPUExecutionProvider"])
        return self.graphs[graph].run(None, {name: np.asarray(x, np.float32) for name, x in inputs.items()})[0]

    def invert(self, features: np.ndarray, latents: np.ndarray, noise: np.random.Generator) -> np.ndarray:
        """Maps [B, C, H, W] and start noise [B, 4, h, w] to images, with the engine's own sampler and guidance."""
        model, sampling = self.manifest["model"], self.manifest["sampling"]
        scale, embedded = sampling["guidance_scale"], model["guidance_embedding_channels"] > 0
        condition = self.run("condition_encoder", features=features)  # once per image, not once per step
        times, *factors = TABLES[sampling["sampler"]](sampling["steps"])
        rows = self.run("time_embedding", timesteps=times, **({"guidance": 0 * times + scale} if embedded else {}))
        levels = len(model["channel_multipliers"])  # a residual for each block, each change of level, and two more
        control_scales = np.ones((2, 1 + levels * model["blocks_per_level"] + levels))  # less loosens the control
        control_scales[1] *= sampling["unconditional_strength"]
        for row, a, b, c in zip(rows, *factors, strict=True):
            given = {"latents": latents, "condition": condition, "time_bias": row}
            if embedded or scale == 1.0:  # one branch does
                eps = self.run("denoiser_unguided", **given, control_scales=control_scales[:1])
            else:
                eps = self.run("denoiser", **given, guidance_scale=scale, control_scales=control_scales)
            latents = a * latents + b * eps + (c * noise.standard_normal(latents.shape) if c else 0)
        image = self.run("decoder", latents=latents)  # [B, 3, height, width], about -1 to 1
        return np.clip(image * 127.5 + 127.5, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


if __name__ == "__main__":
    folder, features_file, images_file = sys.argv[1:]
    engine, features, noise = Engine(Path(folder)), np.load(features_file), np.random.default_rng(0)
    edge, channels = engine.manifest["model"]["latent_size"], engine.manifest["model"]["latent_channels"]
    np.save(images_file, engine.invert(features, noise.standard_normal((len(features), channels, edge, edge)), noise))

"""The README.md of an engine folder."""

from __future__ import annotations

from featinv_export.targets import TARGETS
from featinv_fast.config import FeatureSpec
from featinv_fast.engine import Manifest, ParityInfo, ParityStatus

INTRODUCTION = """\
An engine of [FeatInv](https://arxiv.org/abs/2505.21032): it turns feature maps of a vision model back into images of
{image}x{image} pixels. Made by featinv-fast from `{file}`."""

USE = """\
```python
import featinv_fast

runtime = featinv_fast.Runtime("path/to/this/folder")
images = runtime.invert(features).images  # {shape} -> uint8 [B, {image}, {image}, 3]
```"""

PARITY = """\
Each graph against the plain model in fp32 (no rewrites, the two branches one after the other), on a CPU. Relative: the
norm of the difference over the norm of the result."""

UNCHECKED = """\
**Not checked**: {names}. Nothing could run them where the engine was made, and they were installed all the same, as was
asked for (`--unchecked`). `featinv-export --verify` checks them where it can."""

UNEXECUTED = """\
**Built, not executed**: {names}. They were built of the graphs whose parity stands below, on a machine that could not
run them. `featinv-export --verify` runs and compares them on a GPU that they are for."""

# What each graph computes.
GRAPH_CONTENTS = {
    "condition_encoder": "feature maps to the condition, once per image",
    "time_embedding": "timesteps to rows of biases, once per call",
    "denoiser": "ControlNet, U-Net and guidance: one step, both branches in one batch",
    "denoiser_unguided": "the same without guidance, one branch",
    "decoder": "latents to the image",
}


def model_card(manifest: Manifest, file_names: list[str]) -> str:
    """Markdown that says what the engine is, how it was made and how to use it.

    Args:
        manifest: of the engine.
        file_names: the files of the folder.
    """
    features, sampling = manifest.features, manifest.sampling
    unchecked, unexecuted = manifest.unchecked(file_names), manifest.unexecuted(file_names)
    image = manifest.model.image_size
    sections = [
        f"# {_text(manifest.name)}",
        INTRODUCTION.format(image=image, file=_text(manifest.source.file_name)),
        "## Use",
        USE.format(shape=features.in_words, image=image),
        "## What it takes",
        _table(
            ("", ""),
            [
                ("backbone", features.backbone or "not stated by the checkpoint"),
                ("layer", features.layer_names or "not stated by the checkpoint"),
                ("sha256 of the backbone's weights", _hash(features)),
                ("feature maps", features.in_words),
                ("layout of the backbone", str(features.layout or "its own")),
                ("image that the backbone saw", f"{features.input_size} px" if features.input_size else "not stated"),
                ("largest batch", str(manifest.max_batch)),
            ],
        ),
        "## Defaults",
        _table(
            ("", ""),
            [
                ("prompt", _prompt(manifest.prompts.cond)),
                ("negative prompt", _prompt(manifest.prompts.uncond)),
                ("prompts from", manifest.prompts.source),
                ("sampler", f"{sampling.sampler}, {sampling.steps} steps"),
                ("guidance scale", f"{sampling.guidance_scale:g}"),
                ("precision", f"{manifest.precision}{_storage(manifest)}"),
            ],
        ),
        "## How it was made",
        *_provenance(manifest),
        "## Files",
        _table(("file", "content"), [(f"`{name}`", _content(name, manifest)) for name in file_names]),
        "## Parity",
        PARITY,
        *([UNCHECKED.format(names=", ".join(f"`{name}`" for name in unchecked))] if unchecked else []),
        *([UNEXECUTED.format(names=", ".join(f"`{name}`" for name in unexecuted))] if unexecuted else []),
        _table(
            ("graph", "backend", "batch", "relative", "tolerance", "largest difference"), map(_parity, manifest.parity)
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _provenance(manifest: Manifest) -> list[str]:
    rewrites = "\n".join(f"- {option.name} ({option.exactness}): {option.note}" for option in manifest.rewrites)
    adaptations = "\n".join(f"- {_text(note)}" for note in manifest.adaptations)
    kept = ", ".join(f"`{name}`" for name in manifest.kept_fp32)
    tools = ", ".join(f"{name} {version}" for name, version in manifest.tools.items())
    source = f"layout `{manifest.source.layout}`, sha256 `{manifest.source.sha256}`"
    return [
        f"Rewrites of the network; an exact one changes the result by rounding alone:\n\n{rewrites}",
        f"Adaptations of the weights, which change the images:\n\n{adaptations}"
        if adaptations
        else "The weights are those of the checkpoint, not adapted.",
        *(
            [f"Kept in fp32 because the values do not fit {manifest.storage or manifest.precision}: {kept}."]
            if kept
            else []
        ),
        f"Source: {source}. Tools: {tools}. Made {manifest.created}.",
    ]


def _storage(manifest: Manifest) -> str:
    return "" if manifest.storage is None else f", weights stored in {manifest.storage}"


def _content(file_name: str, manifest: Manifest) -> str:
    for target in TARGETS:
        if file_name.endswith(target.suffix):
            return f"{GRAPH_CONTENTS[file_name.removesuffix(target.suffix)]} ({target.content(manifest)})"
    return {"weights.safetensors": "all weights", "README.md": "this text"}[file_name]


def _hash(features: FeatureSpec) -> str:
    return f"`{features.weights_sha256}`" if features.weights_sha256 else "not stated by the checkpoint"


def _parity(info: ParityInfo) -> tuple[str, ...]:
    first = (info.graph, info.backend, str(info.batch))
    if info.status is ParityStatus.NOT_RUN:
        return (*first, "not run", "", info.reason or "")
    return (*first, f"{info.relative:.1e}", f"{info.tolerance:.0e}", f"{info.max_abs:.1e}")


def _prompt(text: str | None) -> str:
    return "embedding of the checkpoint, text not stated" if text is None else f"`{_text(text)}`" if text else "(empty)"


def _text(text: str) -> str:
    """Text of others on one line, without what Markdown would take for its own."""
    return " ".join(text.replace("`", "'").replace("|", "/").split())


def _table(header: tuple[str, ...], rows: object) -> str:
    lines = [header, ("---",) * len(header), *rows]  # type: ignore[misc]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""`featinv-export --inspect`: what an engine folder holds. Needs no torch."""

from __future__ import annotations

from typing import Any

from featinv_export.targets import TARGETS
from featinv_fast.config import to_dict
from featinv_fast.engine import EngineFolder, GraphSpec, Manifest, ParityStatus, TensorSpec

# Which backend reads the files with this ending.
READERS = {".safetensors": "torch", **{target.suffix: target.backend for target in TARGETS}}


def as_data(engine: EngineFolder) -> dict[str, Any]:
    """What is inside an engine: the manifest, and what follows from it, as plain data."""
    manifest = engine.manifest
    return {
        "path": str(engine.path),
        **to_dict(manifest),
        "image_size": manifest.model.image_size,
        "graphs": {name: _graph(spec) for name, spec in manifest.graph_specs().items()},
        "backends": _backends(manifest),
        "unchecked": list(manifest.unchecked()),
        "unexecuted": list(manifest.unexecuted()),
    }


def _backends(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Backend -> file that only it reads -> its size; torch reads the weight file, which all share."""
    return {
        reader: {name: info.size for name, info in manifest.files.items() if name.endswith(ending)}
        for ending, reader in READERS.items()
    }


def _graph(spec: GraphSpec) -> dict[str, Any]:
    def tensor(declared: TensorSpec) -> dict[str, Any]:
        return {"name": declared.name, "shape": list(declared.shape), "dtype": declared.dtype}

    return {
        "inputs": [tensor(declared) for declared in spec.inputs],
        "output": tensor(spec.output),
        "dims": {dim.name: [dim.minimum, dim.optimum, dim.maximum] for dim in spec.dims},
    }


def as_text(engine: EngineFolder) -> str:
    """What is inside an engine, for people."""
    manifest = engine.manifest
    features, sampling, prompts = manifest.features, manifest.sampling, manifest.prompts
    size = sum(info.size for info in manifest.files.values())
    stored = f", weights stored in {manifest.storage}" if manifest.storage is not None else ""
    lines = [
        f"engine {engine.path}",
        f"  {manifest.name}, {_mebibytes(size)}, every byte as exported",
        f"  family {manifest.family}, format {manifest.format_version}",
        f"  arithmetic in {manifest.precision}{stored}; {len(manifest.kept_fp32)} tensors kept in fp32",
        f"  features {features.in_words}",
        f"  backbone {features.backbone or 'not stated'}, layer {features.layer_names or 'not stated'}",
        f"  sha256 of the backbone's weights {features.weights_sha256 or 'not stated'}",
        f"  images of {manifest.model.image_size} pixels, {manifest.max_batch} at most in one call",
        f"  sampler {sampling.sampler}, {sampling.steps} steps, guidance scale {sampling.guidance_scale:g}",
        f"  prompt {_prompt(prompts.cond)}, negative prompt {_prompt(prompts.uncond)}, from the {prompts.source}",
        "",
        "graphs (every input and output is float32)",
    ]
    for name, spec in manifest.graph_specs().items():
        inputs = ", ".join(_tensor(tensor) for tensor in spec.inputs)
        dims = "; ".join(f"{dim.name} {dim.minimum} to {dim.maximum}, best at {dim.optimum}" for dim in spec.dims)
        lines += [f"  {name}: {inputs} -> {_tensor(spec.output)}", f"    {dims}"]
    lines += ["", "files"]
    for reader, files in _backends(manifest).items():
        lines += [f"  {reader:12} {name:26} {_mebibytes(count):>10}" for name, count in files.items()]
        lines += [] if files else [f"  {reader:12} none"]
    here = [target for target in TARGETS if target.lies_in(manifest.files)]
    lines += [f"  {line}" for target in here for line in target.described(manifest)]
    lines += [f"  UNCHECKED, compared with the plain model by nobody: {name}" for name in manifest.unchecked()]
    lines += ["", "parity: relative difference from the plain model"]
    for info in manifest.parity:
        passed = info.status is ParityStatus.PASSED
        result = f"{info.relative:.1e} of {info.tolerance:.0e}" if passed else f"not run: {info.reason}"
        lines.append(f"  {info.graph:18} {info.backend:14} batch {info.batch}  {result}")
    lines += ["", "provenance"]
    lines += [f"  made {manifest.created} of {manifest.source.file_name} (layout {manifest.source.layout})"]
    lines += [f"  sha256 of the checkpoint {manifest.source.sha256}"]
    lines += [f"  {option.exactness}: {option.name}" for option in manifest.rewrites]
    lines += [f"  adapted: {note}" for note in manifest.adaptations]
    lines += [f"  {tool} {version}" for tool, version in manifest.tools.items()]
    return "\n".join(lines)


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} [{', '.join(map(str, spec.shape))}]"


def _prompt(text: str | None) -> str:
    return "as an embedding alone" if text is None else repr(text)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"

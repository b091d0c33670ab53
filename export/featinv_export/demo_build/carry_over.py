"""Carry the built-in engines over to this version's engine format: `python -m featinv_export.demo_build.carry_over`.

Their checkpoints are not in the repository, so what a format adds is made of what an engine stores. Format 3 adds the
kernels of the doubled convolutions, which the stored products give back with up to three roundings of the half
precision that they are stored in, the hash of the backbone's weights, and ONNX graphs.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from featinv_export import parity, targets
from featinv_export.exporter import SPARE_BYTES, install
from featinv_export.progress import Steps
from featinv_export.stored import stored_cases
from featinv_export.targets.onnx_ import OnnxTarget
from featinv_export.verify import renewed_parity
from featinv_export.weights import write_weights
from featinv_fast.backends.torch_ import WEIGHT_FILE, TorchSession
from featinv_fast.config import Precision, from_dict
from featinv_fast.demo import builtin
from featinv_fast.engine import FORMAT_VERSION, Manifest, staging
from featinv_fast.engine.files import hash_files, manifest_checksum
from featinv_fast.engine.manifest import CHECKSUM_NAME, MANIFEST_NAME, FileInfo
from featinv_fast.errors import EngineFormatError, EngineIntegrityError, FeatInvError
from featinv_fast.features import Backbone
from featinv_fast.features.weights import weights_sha256
from featinv_fast.rewrites.engine_model import EngineModel, storage_dtypes
from featinv_fast.rewrites.upsample_products import is_kernel

# The format that this carries over.
OLD_FORMAT = 2
# Products stand for a kernel (a, b, c) as (-a, a + b + c, c); this brings it back: [tap, product].
_TAPS = torch.tensor([[-1, 0, 0], [1, 1, -1], [0, 0, 1]], dtype=torch.float64)
CPU = torch.device("cpu")


def carry_over(folder: Path = builtin.FOLDER, report: Callable[[str], object] = lambda _: None) -> list[Path]:
    """Carry both engines of `folder` over, each in its place, after comparing every graph on every backend of a CPU.

    Args:
        folder: as `python -m featinv_export.demo_build` makes it.
        report: is told what comes next.

    Returns:
        The engine folders.

    Raises:
        EngineError: an engine is damaged, or not of the format before.
        ParityError: a graph computes something else with what was added; that engine is as it was.
        MissingPackageError: timm, which opens the backbone, is not installed.
    """
    spec = dataclasses.replace(builtin.backbone_spec(), weights_sha256=None)
    backbone = Backbone(spec, weights=folder / builtin.BACKBONE)
    identity = weights_sha256(backbone.model)
    return [carry_over_engine(folder / name, identity, report) for name in builtin.ENGINES]


def carry_over_engine(path: Path, backbone: str | None, report: Callable[[str], object] = lambda _: None) -> Path:
    """Carry one engine over, in its place; see `carry_over`.

    Args:
        path: an engine of weights alone, without plans and packages.
        backbone: the SHA-256 of its backbone's weights.
        report: is told what comes next.
    """
    old = _sound_manifest(path)
    manifest = from_dict(Manifest, old | {"format_version": FORMAT_VERSION, "files": {}}, where=MANIFEST_NAME)
    with staging(path, force=True, required_bytes=SPARE_BYTES) as stage:
        structure = EngineModel.empty(manifest.model)
        dtypes = storage_dtypes(structure, manifest.storage or manifest.precision, manifest.kept_fp32)
        write_weights(with_kernels(load_file(path / WEIGHT_FILE), dtypes), dtypes, stage.path)
        candidate = parity.Candidate.of_engine(manifest, stage.path)
        cases = stored_cases(candidate)
        steps = Steps(1 + 2 * len(candidate.specs), lambda what, *_: report(what))
        graphs = OnnxTarget().make(candidate, steps)
        results = [*targets.compare(candidate, cases, [graphs], steps), *_compare_kernels(candidate, cases)]
        checked = parity.require_passed(results, path.with_name(f"{path.name}.parity.json"))
        manifest = dataclasses.replace(
            manifest,
            features=dataclasses.replace(manifest.features, weights_sha256=backbone),
            parity=renewed_parity(manifest, checked),
            tools=manifest.tools | graphs.tools(),
            **graphs.entries(),
        )
        return install(stage, manifest)


def with_kernels(tensors: Mapping[str, Tensor], names: Mapping[str, object]) -> dict[str, Tensor]:
    """Stored `tensors`, and the kernels among `names` that their products stand for, in fp32."""
    return {name: _kernel(tensors, name) if is_kernel(name) else tensors[name] for name in names}


def _kernel(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The kernel of a doubled convolution from its nine products: [C', C, 3, 3]."""
    layer = name.rpartition(".")[0]
    stacked = torch.stack([tensors[f"{layer}.products.{i}.weight"][:, :, 0, 0] for i in range(9)])  # [9, C', C]
    products = stacked.double().reshape(3, 3, *stacked.shape[1:])
    return torch.einsum("iv,jh,vhoc->ocij", _TAPS, _TAPS, products).float().contiguous()


def _sound_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an engine of the old format, every byte of which is as it was written.

    Raises:
        EngineFormatError: it has another format.
        EngineIntegrityError: it was changed.
    """
    content = (path / MANIFEST_NAME).read_bytes()
    manifest: dict[str, Any] = json.loads(content)
    if manifest["format_version"] != OLD_FORMAT:
        raise EngineFormatError(
            f"the engine {path} cannot be carried over",
            given=f"format version {manifest['format_version']}",
            expected=f"format version {OLD_FORMAT}",
            remedy="make the built-in engines with `python -m featinv_export.demo_build`",
        )
    listed = {name: FileInfo(**info) for name, info in manifest["files"].items()}
    changed = [name for name, info in hash_files(path, listed).items() if info != listed[name]]
    if changed or (path / CHECKSUM_NAME).read_bytes() != manifest_checksum(content):
        raise EngineIntegrityError(
            f"the engine {path} was changed",
            given=changed or [MANIFEST_NAME],
            expected="the bytes that its manifest lists",
            remedy="restore it from the repository",
        )
    return manifest


def _compare_kernels(candidate: parity.Candidate, cases: list[parity.Case]) -> list[parity.Comparison]:
    """The graphs with doubled convolutions, computed with their kernels as a GPU does."""
    session = TorchSession(
        candidate.config, candidate.folder / WEIGHT_FILE, device=CPU, precision=Precision.FP32, kernels="reference"
    )
    # Its rows of time biases hold other layers' biases, too.
    rows = {case.batch: session.run(case.graph, *case.inputs)[0] for case in cases if case.graph == "time_embedding"}
    denoised = [
        dataclasses.replace(case, inputs=(*case.inputs[:2], rows[case.batch], *case.inputs[3:]))
        for case in cases
        if case.graph.startswith("denoiser")
    ]
    decoded = [case for case in cases if case.graph == "decoder"]
    return parity.run_all(candidate, "torch with fused operations", [*denoised, *decoded], lambda: session)


if __name__ == "__main__":
    try:
        for engine in carry_over(report=lambda what: sys.stderr.write(f"{what}\n")):
            sys.stdout.write(f"{engine}\n")
    except (FeatInvError, OSError) as error:
        sys.exit(f"carry_over: {error}")

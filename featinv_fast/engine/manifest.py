"""The manifest: everything an engine folder says about itself, as one JSON file.

Graph specs are not stored but derived from the configurations and sizes that are, so they have one
source of truth.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from featinv_fast.config import (
    Between,
    FeatureSpec,
    Limited,
    ModelConfig,
    Precision,
    SamplingConfig,
    Sha256,
    from_dict,
    to_dict,
)
from featinv_fast.engine.graphs import GraphSpec, graph_specs
from featinv_fast.engine.plans import BATCHES, PLAN_SUFFIX, RTX_PLAN_SUFFIX, PlanInfo, RtxPlanInfo
from featinv_fast.errors import ConfigError, EngineFormatError

FORMAT_VERSION = 3
MANIFEST_NAME = "manifest.json"
# `sha256sum -c manifest.json.sha256` checks the one file that cannot list its own hash.
CHECKSUM_NAME = "manifest.json.sha256"


ONNX_SUFFIX = ".onnx"
AOTI_SUFFIX = ".pt2"
# What compares the files of graphs, by their suffix.
CHECKED_BY = {ONNX_SUFFIX: "onnxruntime", AOTI_SUFFIX: "aoti", PLAN_SUFFIX: "tensorrt"}
# What runs the files that may be built where nothing can run them, of graphs that were compared.
EXECUTED_BY = {RTX_PLAN_SUFFIX: "tensorrt-rtx"}
# What is said of these until something does.
BUILT = "built, not executed"


# Of a comparison; NaN and infinity are none that passes.
Error = Annotated[float, Between(0, 1e300)]


class EngineFamily(enum.StrEnum):
    """What an engine's graphs are parts of, which decides how they are called."""

    FEATINV = "featinv"  # arXiv 2505.21032: a feature map conditions a latent diffusion model


class Exactness(enum.StrEnum):
    """Whether an optimisation leaves the result equal up to rounding."""

    EXACT = "exact"
    LOSSY = "lossy"


class ParityStatus(enum.StrEnum):
    """Whether a graph was compared with the eager model. A failed comparison installs nothing."""

    PASSED = "passed"
    NOT_RUN = "not run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileInfo(Limited):
    """Content of one file.

    Attributes:
        sha256: 64 lower-case hexadecimal digits.
        size: in bytes.
    """

    sha256: Sha256
    size: Annotated[int, Between(0, 2**60)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptInfo:
    """The prompts whose embeddings are stored among the weights.

    Attributes:
        cond: the prompt, or `None` when only its embedding is known.
        uncond: the negative prompt, or `None` when only its embedding is known.
        source: where the embeddings came from, e.g. "checkpoint" or "text encoder".
    """

    cond: str | None = None
    uncond: str | None = None
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptionInfo:
    """A rewrite that was applied at export."""

    name: str
    exactness: Exactness
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParityInfo(Limited):
    """One graph on one backend compared with the eager model at one batch size.

    Attributes:
        graph: name of the graph.
        backend: what ran it.
        batch: number of images (of steps for the time embedding).
        status: whether the comparison ran.
        max_abs: largest absolute difference; `None` if it did not run.
        relative: norm of the difference over the norm of the eager result; `None` if it did not run.
        tolerance: the limit on `relative`; `None` if it did not run.
        reason: why it did not run.
    """

    graph: str
    backend: str
    batch: Annotated[int, BATCHES]
    status: ParityStatus
    max_abs: Error | None = None
    relative: Error | None = None
    tolerance: Error | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.status is ParityStatus.NOT_RUN:
            if not self.reason:
                raise self._refusal("was not run for no stated reason", "a reason")
        elif self.max_abs is None or self.relative is None or self.tolerance is None:
            raise self._refusal("passed without its numbers", "max_abs, relative and tolerance")
        elif self.relative > self.tolerance:
            raise self._refusal("is called passed but was missed", f"at most {self.tolerance}")

    def _refusal(self, problem: str, expected: str) -> ConfigError:
        return ConfigError(
            f"the parity of {self.graph} {problem}",
            given=self,
            expected=expected,
            remedy="measure it with `featinv-export --verify`",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AotiInfo:
    """What the AOTInductor packages of an engine were compiled for: they are native code and run there alone.

    Attributes:
        device: "cpu" or "cuda".
        platform: operating system and machine, e.g. "linux x86_64".
        target: "x86-64-v3" (AVX2) for a CPU; the GPU's compute capability, e.g. "sm_90".
        torch: the version of torch, with what it was built for, e.g. "2.11.0+cu130".
    """

    device: str
    platform: str
    target: str
    torch: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetInfo:
    """Files of graphs of a kind that has no field of its own here: no backend asks what they were made for.

    Attributes:
        suffix: the files' names are those of the graphs with it.
        backend: what compares them.
        facts: what is worth knowing of them, in words, by name.
    """

    suffix: str
    backend: str
    facts: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """The checkpoint that the engine was made from.

    Attributes:
        file_name: without its folder, which is nobody else's business.
        sha256: of the file.
        layout: the checkpoint layout it was read as.
    """

    file_name: str
    sha256: str
    layout: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(Limited):
    """What an engine is, how it was made and what its files hold.

    Attributes:
        format_version: of the engine folder.
        family: what its graphs are parts of.
        name: of the engine, for people.
        created: UTC time in ISO 8601.
        model: the architecture.
        features: what the engine takes.
        sampling: defaults of `Runtime.invert`.
        precision: of the graphs' arithmetic and, unless `storage` says otherwise, of the stored weights.
        storage: of the stored weights, where it is not `precision`: a smaller engine that computes in fp32.
        kept_fp32: tensors kept in fp32 because they do not fit the half precision of weights or arithmetic.
        prompts: the stored prompts.
        time_bias_size: length of a step's row of time biases.
        max_batch: largest batch of one call.
        optimal_batch: batch that kernels are tuned for.
        rewrites: optimisations applied at export.
        adaptations: files fused into the weights, e.g. an LCM-LoRA.
        parity: comparisons with the eager model.
        tensorrt_parsers: the releases of TensorRT whose ONNX parser reads every graph, in words, e.g. "10.0 and newer";
            `None` where there are no ONNX graphs.
        plans: what its TensorRT plans were built for.
        rtx_plans: what its plans of TensorRT for RTX were built for.
        aoti: what the AOTInductor packages were compiled for; `None` where there are none.
        targets: what is known of files of other kinds.
        source: the checkpoint.
        tools: versions of what made the engine.
        files: every file of the folder but the manifest and its checksum; filled in at installation.
    """

    format_version: int = FORMAT_VERSION
    family: EngineFamily = EngineFamily.FEATINV
    name: str
    created: str
    model: ModelConfig
    features: FeatureSpec
    sampling: SamplingConfig
    precision: Precision
    storage: Precision | None = None
    kept_fp32: tuple[str, ...] = ()
    prompts: PromptInfo
    time_bias_size: Annotated[int, Between(1, 2**30)]
    max_batch: Annotated[int, BATCHES]
    optimal_batch: Annotated[int, BATCHES] = 1
    rewrites: tuple[OptionInfo, ...] = ()
    adaptations: tuple[str, ...] = ()
    parity: tuple[ParityInfo, ...] = ()
    tensorrt_parsers: str | None = None
    plans: tuple[PlanInfo, ...] = ()
    rtx_plans: tuple[RtxPlanInfo, ...] = ()
    aoti: AotiInfo | None = None
    targets: tuple[TargetInfo, ...] = ()
    source: SourceInfo
    tools: dict[str, str]
    files: dict[str, FileInfo] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        graphs = self.graph_specs()  # raises ConfigError when the sizes contradict one another
        for plans in (self.plans, self.rtx_plans):
            planned = [plan.graph for plan in plans]
            if len(set(planned)) != len(planned) or not set(planned) <= set(graphs):
                raise ConfigError(
                    "the plans are not those of the graphs",
                    given=planned,
                    expected=sorted(graphs),
                    remedy="name one plan of a graph",
                )

    def unchecked(self, names: Collection[str] | None = None) -> tuple[str, ...]:
        """Files of graphs that nobody compared with the plain model; `parity` has the reasons.

        Args:
            names: of an engine that is not installed yet, its files; otherwise those that are listed.
        """
        return self._not_passed(CHECKED_BY | {info.suffix: info.backend for info in self.targets}, names)

    def unexecuted(self, names: Collection[str] | None = None) -> tuple[str, ...]:
        """Files that were built of graphs that were compared, and did not run themselves yet; see `unchecked`."""
        return self._not_passed(EXECUTED_BY, names)

    def _not_passed(self, backends: Mapping[str, str], names: Collection[str] | None) -> tuple[str, ...]:
        names = self.files if names is None else names
        passed = {(info.graph, info.backend) for info in self.parity if info.status is ParityStatus.PASSED}
        return tuple(
            graph + suffix
            for suffix, backend in backends.items()
            for graph in self.graph_specs()
            if graph + suffix in names and (graph, backend) not in passed
        )

    def graph_specs(self) -> dict[str, GraphSpec]:
        """The graphs of this engine by name."""
        return graph_specs(
            self.model,
            self.features,
            time_bias_size=self.time_bias_size,
            max_batch=self.max_batch,
            optimal_batch=self.optimal_batch,
        )

    def to_json(self) -> bytes:
        """The manifest as the bytes of `manifest.json`.

        Raises:
            ConfigError: a number is NaN or infinite, which JSON cannot say.
        """
        try:
            return (json.dumps(to_dict(self), indent=2, allow_nan=False) + "\n").encode("ascii")
        except ValueError as error:
            raise ConfigError(
                "a manifest holds finite numbers only",
                given=error,
                expected="no NaN and nothing infinite",
                remedy="correct the values that the manifest was made of",
            ) from error

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """Read the bytes of a `manifest.json`.

        Raises:
            EngineFormatError: another format version, not JSON, or an unknown, missing or bad key.
        """
        data = _parsed(content)
        version = data.get("format_version")
        if version != FORMAT_VERSION or isinstance(version, bool):
            number = version if isinstance(version, int) and not isinstance(version, bool) else 0
            kind = "a newer format" if number > FORMAT_VERSION else "an older format" if number >= 1 else "no format"
            raise EngineFormatError(
                f"the engine has {kind}",
                given=f"format version {version!r}",
                expected=f"format version {FORMAT_VERSION}",
                remedy="upgrade featinv-fast"
                if number > FORMAT_VERSION
                else "export the checkpoint again (--force replaces the engine)",
            )
        try:
            return from_dict(cls, data, where=MANIFEST_NAME)
        except ConfigError as error:
            raise EngineFormatError(
                f"{MANIFEST_NAME} does not describe an engine: {error.problem}",
                given=error.given,
                expected=error.expected,
                remedy="export the checkpoint again",
            ) from error


def listed_files(content: bytes) -> set[str]:
    """Names of the files that a `manifest.json` lists, of whatever format.

    Raises:
        EngineFormatError: it is no engine's manifest.
    """
    data = _parsed(content)
    files = data.get("files")
    if not isinstance(data.get("format_version"), int) or not isinstance(files, dict):
        raise _no_manifest(f"keys {sorted(data)[:10]}", "a format version and files")
    return set(files)


def _parsed(content: bytes) -> dict[str, Any]:
    """The JSON object of a `manifest.json`.

    Raises:
        EngineFormatError: it is none.
    """
    try:
        data = json.loads(content, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _no_manifest(error, "a JSON object") from error
    if not isinstance(data, dict):
        raise _no_manifest(type(data).__name__, "a JSON object")
    return data


def _no_manifest(given: object, expected: str) -> EngineFormatError:
    return EngineFormatError(
        f"{MANIFEST_NAME} is not an engine's manifest",
        given=given,
        expected=expected,
        remedy="name an engine's folder, or copy or export this one again",
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")

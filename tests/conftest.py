"""What several test folders share: the golden data of the official code, and small models."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from featinv_export import onnx_graphs
from featinv_export.exporter import export
from featinv_export.options import ExportOptions
from featinv_fast.checkpoints import save_base
from featinv_fast.checkpoints.infer import infer_config
from featinv_fast.checkpoints.ldm import LAYOUT as LDM
from featinv_fast.checkpoints.recipe import Recipe
from featinv_fast.config import AutoencoderConfig, FeatureSpec, ModelConfig, Precision, to_dict
from featinv_fast.demo import builtin
from featinv_fast.engine import open_engine, staging
from featinv_fast.engine.graphs import GraphSpec
from featinv_fast.engine.lock import exclusive_lock
from featinv_fast.engine.trust import CACHE_VARIABLE
from featinv_fast.errors import EngineExistsError, EngineLockedError
from featinv_fast.features import Backbone, small_backbones
from featinv_fast.models import FeatInv
from featinv_fast.train.assembly import constant_prompts

sys.path.insert(0, str(Path(__file__).parent / "tools"))  # for separate_packages
sys.path.insert(0, str(Path(__file__).parent / "cuda_double"))  # for the fixtures that stand in for an NVIDIA GPU

# Workers of xdist share the cores: threads beyond them would spin against each other and cost minutes.
THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
torch.set_num_threads(THREADS)
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # for the processes that tests start

# A shell that starts tests in the background ignores SIGINT, and so would they and the processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files of minutes, longest first: a worker that begins one of them last keeps the others waiting.
LONGEST = (
    "train/test_recipes.py",
    "export/test_builtin_engines.py",
    "export/test_onnx_graphs.py",
    "export/test_tensorrt_rtx.py",
    "benchmarks/test_benchmarks.py",
    "backends/test_aoti.py",
    "backends/test_torch_compile.py",
    "export/test_interop_tools.py",
    "export/test_demo_build.py",
    "benchmarks/test_gpu_suite.py",
    "kernels/test_triton_ahead_of_time.py",
    "fuzz/test_fuzz.py",
    "tensorrt_double/test_refit.py",
    "export/test_parity.py",
    "export/test_exporter.py",
    "demo/test_shipped_engine.py",
    "export/test_refit.py",
    "rewrites/test_fused_ops_interpreted.py",
    "examples/test_optimum_decoder.py",
    "runtime/test_golden.py",
)

GOLDEN = Path(__file__).parent / "golden"
# Bounds and shapes of the golden inputs: value = hash in [-1, 1) times bound.
INPUTS: dict[str, tuple[tuple[int, ...], float]] = {
    "in.latent": ((2, 4, 32, 32), 1.7),
    "in.features": ((2, 48, 9, 9), 1.5),
    "in.cls": ((2, 1, 48), 1.0),
    "in.context": ((1, 77, 64), 1.7),
    "in.uncond_context": ((1, 77, 64), 1.7),
    "in.decode": ((1, 4, 32, 32), 0.9),
}


def pytest_configure(config: pytest.Config) -> None:
    """xdist would begin with the files of many tests, which are not the files that take long."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    assert all(path.is_file() for path in places), "a file of LONGEST was renamed"
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


def _mix(bits: np.ndarray) -> np.ndarray:
    """The finaliser of murmur3 on uint32: every input bit reaches every output bit."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    return bits ^ (bits >> np.uint32(16))


def hashed_uniform(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """float32 in [-1, 1) that depend on name, shape and seed alone: the same on every machine and numpy version."""
    key = np.uint32(zlib.crc32(f"{seed}:{name}".encode()))
    counter = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint32)
    bits = _mix(_mix(counter + key) ^ key)
    return (bits.astype(np.float64) / 2**31 - 1.0).astype(np.float32).reshape(shape)


def hashed_weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Norm scales around 1, small biases, and matrices of unit gain."""
    values = hashed_uniform(name, shape, seed)
    if len(shape) > 1:
        values = values * np.float32(np.sqrt(3.0 / np.prod(shape[1:], dtype=np.int64)))
    elif name.endswith("weight"):
        values = (1.0 + 0.1 * values).astype(np.float32)
    else:
        values = (0.1 * values).astype(np.float32)
    return torch.from_numpy(values)


@dataclasses.dataclass(frozen=True)
class Golden:
    """Inputs and outputs of the official code for a small checkpoint (width 32, fp32, CPU).

    Attributes:
        config: the architecture.
        tensors: the checkpoint in the official layout, without prompts.
        inputs: `in.*` as listed in INPUTS.
        expected: what the official networks and sampler gave: `condition.{nchw,nhwc,tokens}`,
            `eps.t{t}.{cond,uncond,nocontrol}`, `control.t481.{00..12}` (item 0, prompt branch),
            `ddim.S{steps}.g{guidance}.s{strength}[.guess]`, `decode.image`, `decode.uint8`.
        timesteps: the t of `eps.t{t}`.
        runs: (steps, guidance scale, strength, guess mode) of each `ddim.*`.
    """

    config: ModelConfig
    tensors: dict[str, Tensor]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    timesteps: tuple[int, ...]
    runs: tuple[tuple[int, float, float, bool], ...]

    @property
    def prompts(self) -> Tensor:
        """The prompt and the empty prompt, [2, 77, 64]."""
        return torch.cat([self.inputs["in.context"], self.inputs["in.uncond_context"]])

    @property
    def tokens(self) -> Tensor:
        """The features as a vision transformer lays them out, class token first: [2, 1 + 81, 48]."""
        return torch.cat([self.inputs["in.cls"], self.inputs["in.features"].flatten(2).transpose(1, 2)], dim=1)


@pytest.fixture(scope="session")
def relative_norm() -> Callable[[Tensor, Tensor], float]:
    """|given - expected| / |expected| over all values, in float64."""

    def measure(given: Tensor, expected: Tensor) -> float:
        assert given.shape == expected.shape
        return ((given.double() - expected.double()).norm() / expected.double().norm()).item()

    return measure


@pytest.fixture(scope="session")
def golden() -> Golden:
    """The golden data."""
    description = json.loads((GOLDEN / "small.json").read_text())
    seed = description["seed"]
    with np.errstate(over="ignore"):
        tensors = {name: hashed_weight(name, tuple(shape), seed) for name, shape in description["shapes"].items()}
        inputs = {
            name: torch.from_numpy(hashed_uniform(name, shape, seed) * np.float32(bound))
            for name, (shape, bound) in INPUTS.items()
        }
    return Golden(
        config=infer_config(LDM, {name: tuple(t.shape) for name, t in tensors.items()}),
        tensors=tensors,
        inputs=inputs,
        expected=load_file(GOLDEN / "small.safetensors"),
        timesteps=tuple(description["config"]["ts"]),
        runs=tuple(tuple(run) for run in description["config"]["runs"]),
    )


@pytest.fixture(scope="session")
def golden_checkpoint(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint as a file in the official layout, its two prompts stored in it. Do not change it."""
    path = tmp_path_factory.mktemp("golden") / "golden.safetensors"
    prompts = {
        "featinv.prompt.cond": golden.inputs["in.context"],
        "featinv.prompt.uncond": golden.inputs["in.uncond_context"],
    }
    save_file(golden.tensors | prompts, path)
    return path


@pytest.fixture(scope="session")
def golden_engine(golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint as an engine folder, fp32 with ONNX graphs. Do not change it."""
    options = ExportOptions(checkpoint=golden_checkpoint, out=_shared(tmp_path_factory) / "golden.engine", onnx=True)
    return _exported_once(options)


@pytest.fixture(scope="session")
def golden_fp16_engine(golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint as an engine folder, fp16 with ONNX graphs. Do not change it."""
    folder = _shared(tmp_path_factory) / "golden.fp16.engine"
    return _exported_once(ExportOptions(checkpoint=golden_checkpoint, out=folder, onnx=True, precision=Precision.FP16))


@pytest.fixture(scope="session")
def aoti_checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """The checkpoint of `aoti_engine`. Do not change it."""
    return make_checkpoint(metadata={"feature_shape": "6x5x5", "steps": "3"})


@pytest.fixture(scope="session")
def aoti_engine(aoti_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest architecture as an engine in fp32 with AOTInductor packages for the CPU. Do not change it.

    Compiling every graph takes three minutes; for the golden checkpoint nine, see backends/golden_aoti.py.
    """
    options = ExportOptions(checkpoint=aoti_checkpoint, out=_shared(tmp_path_factory) / "aoti.engine", aoti="cpu")
    return _exported_once(options)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests build is not noted among what the user built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(_shared(tmp_path_factory) / "cache"))
        yield


def _shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run that parallel test processes share."""
    root = tmp_path_factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


@pytest.fixture(scope="session", autouse=True)
def structures_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Torch takes 10 s of a core to trace a graph of the smallest architecture: each is traced once in a test run.

    What a graph is follows from its module, all of which is in the key, and its spec.
    """
    trace, torch_export = onnx_graphs.graph_structure, torch.export.export
    folder = _shared(tmp_path_factory) / "structures"
    folder.mkdir(exist_ok=True)

    def find_or_trace(module: nn.Module, spec: GraphSpec) -> ir.Model:
        if torch.export.export is not torch_export:  # a test plants a fault there
            return trace(module, spec)
        try:
            state = pickle.dumps(module.eval())
        except (AttributeError, TypeError, pickle.PicklingError):  # a module that a test makes up
            return trace(module, spec)
        key = hashlib.sha256(state + repr(spec).encode()).hexdigest()
        found = folder / f"{key}.onnx"
        if not found.exists():
            partial = folder / f"{key}.{os.getpid()}.partial"
            ir.save(trace(module, spec), partial)
            partial.replace(found)
        return ir.load(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graphs, "graph_structure", find_or_trace)
        yield


def _exported_once(options: ExportOptions) -> Path:
    """An export takes half a minute and compiling minutes, so that the first test process does it for all.

    The export's own lock keeps the others waiting.
    """
    folder = options.destination
    while not folder.exists():
        with contextlib.suppress(EngineExistsError):
            try:
                export(options)
            except EngineLockedError:
                time.sleep(1.0)
    return folder


@pytest.fixture(scope="session")
def shared_engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`shared_engine(checkpoint, **options)`: the engine of a copy of this file beside it, made once in a test run.

    Do not change it. `options` are those of the export.
    """

    def make(checkpoint: Path, **options: Any) -> Path:
        # Not of the file's bytes: safetensors writes metadata in any order.
        with safe_open(checkpoint, framework="pt") as file:
            digest = hashlib.sha256(repr((checkpoint.name, sorted(file.metadata().items()), options)).encode())
            for name in sorted(file.keys()):
                digest.update(repr((name, file.get_slice(name).get_dtype())).encode())
                digest.update(file.get_tensor(name).flatten().view(torch.uint8).numpy().tobytes())
        folder = _shared(tmp_path_factory) / "engines" / digest.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / checkpoint.name
        if not beside.exists():  # the same from every process
            partial = folder / f"{os.getpid()}.partial"
            shutil.copyfile(checkpoint, partial)
            partial.replace(beside)
        return _exported_once(ExportOptions(checkpoint=beside, out=folder / f"{beside.stem}.engine", **options))

    return make


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`made_once(name, make)`: a folder that `make(folder)` fills, once in a test run. Do not change it."""

    def find_or_make(name: str, make: Callable[[Path], object]) -> Path:
        folder = _shared(tmp_path_factory) / name
        while not folder.exists():
            try:
                with exclusive_lock(folder.with_name(f"{name}.lock")):
                    if not folder.exists():
                        partial = Path(tempfile.mkdtemp(dir=folder.parent))
                        make(partial)
                        partial.rename(folder)
            except EngineLockedError:
                time.sleep(1.0)
        return folder

    return find_or_make


@pytest.fixture(scope="session")
def golden_model(golden: Golden) -> FeatInv:
    """The golden checkpoint as plain networks. Do not change it."""
    with torch.device("meta"):
        model = FeatInv(golden.config)
    model.load_state_dict(Recipe.make(LDM, golden.config).read(golden.tensors), strict=True, assign=True)
    return model.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """The smallest architecture that still has every kind of block: two levels, one of them with attention."""
    return ModelConfig(
        latent_size=8,
        channels=32,
        channel_multipliers=(1, 2),
        blocks_per_level=1,
        attention_levels=(0,),
        context_channels=24,
        context_tokens=5,
        feature_channels=6,
        condition_hidden_channels=16,
        autoencoder=AutoencoderConfig(channels=32, channel_multipliers=(1, 2), blocks_per_level=1),
    )


@pytest.fixture(scope="session")
def make_model() -> Callable[..., FeatInv]:
    """`make_model(config, seed=0, dtype=torch.float32)`: a model with random weights, zero convolutions included."""

    def make(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> FeatInv:
        with torch.device("meta"):
            model = FeatInv(config)
        with np.errstate(over="ignore"):
            tensors = {
                name: hashed_weight(name, tuple(t.shape), seed).to(dtype) for name, t in model.state_dict().items()
            }
        model.load_state_dict(tensors, strict=True, assign=True)
        return model.eval().requires_grad_(requires_grad=False)

    return make


@pytest.fixture(scope="session")
def make_checkpoint(
    make_model: Callable[..., FeatInv], tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`make_checkpoint(config=tiny_config, metadata={})`: a file with random weights and two prompts. Do not change it.

    `metadata` are entries without their prefix "featinv.".
    """

    def make(config: ModelConfig = tiny_config, metadata: Mapping[str, str] = {}) -> Path:
        tensors = make_model(config).state_dict()
        for name in ("featinv.prompt.cond", "featinv.prompt.uncond"):
            shape = (1, config.context_tokens, config.context_channels)
            tensors[name] = torch.from_numpy(hashed_uniform(name, shape, seed=1) * np.float32(1.7))
        path = tmp_path_factory.mktemp("engine") / "tiny.safetensors"
        stated = {"model": json.dumps(to_dict(config)), **metadata}
        save_file(tensors, path, {f"featinv.{name}": text for name, text in stated.items()})
        return path

    return make


@pytest.fixture(scope="session")
def tiny_base(
    make_model: Callable[..., FeatInv], tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The smallest architecture as a base model with random weights, which stores its prompts. Do not change it."""
    parts = ("denoiser.unet.", "autoencoder.")
    tensors = {name: t for name, t in make_model(tiny_config).state_dict().items() if name.startswith(parts)}
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    return save_base(path, tiny_config, tensors, constant_prompts(tiny_config, 0))


@pytest.fixture(scope="session")
def make_engine(
    make_checkpoint: Callable[..., Path], tiny_config: ModelConfig, shared_engine: Callable[..., Path]
) -> Callable[..., Path]:
    """`make_engine(config=tiny_config, metadata={}, **options)`: an engine with random weights. Do not change it.

    Config and metadata are those of `make_checkpoint`; `options` those of the export. Its checkpoint lies beside it.
    """

    def make(config: ModelConfig = tiny_config, metadata: Mapping[str, str] = {}, **options: Any) -> Path:
        return shared_engine(make_checkpoint(config, metadata), **options)

    return make


@pytest.fixture(scope="session")
def tiny_engine(make_engine: Callable[..., Path]) -> Path:
    """An engine with ONNX graphs: maps [6, 5, 5] in, images of 16 pixels out, 3 steps. Do not change it."""
    return make_engine(metadata={"feature_shape": "6x5x5", "steps": "3"}, onnx=True)


@pytest.fixture(scope="session")
def stand_ins(
    make_engine: Callable[..., Path], tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder like the built-in engine's, with random weights and images of 16 pixels. Do not change it."""
    folder = tmp_path_factory.mktemp("built_in") / "engine"
    folder.mkdir()
    small_backbones.register()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = timm.create_model("featinv_convnext", num_classes=20)
    halves = {name: tensor.half() for name, tensor in drawn.state_dict().items()}
    save_file(halves, folder / "backbone.safetensors")
    asked = FeatureSpec(channels=256, backbone="featinv_convnext", layer="final", input_size=64)
    backbone = Backbone(asked, weights=folder / "backbone.safetensors")

    config = dataclasses.replace(tiny_config, feature_channels=256)
    features = {"backbone": "featinv_convnext", "layer": "final", "feature_shape": "256x4x4", "input_size": "64"}
    features |= {"layout": "nchw", "weights_sha256": backbone.weights_sha256}
    for name, sampler, steps in (("teacher", "ddim", "5"), ("student", "lcm", "2")):
        metadata = {**features, "sampler": sampler, "steps": steps, "guidance_scale": "1.0"}
        shutil.copytree(make_engine(config, metadata, name=f"scenes, {name}"), folder / name)
    (folder / "results.json").write_text('{"scenes": 512}')
    return folder


@pytest.fixture
def installed(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`stand_ins` in the place of what the package ships."""
    monkeypatch.setattr(builtin, "FOLDER", stand_ins)
    monkeypatch.setitem(small_backbones.WEIGHTS, "featinv_convnext", stand_ins / builtin.BACKBONE)
    return stand_ins


@pytest.fixture(scope="session")
def tiny_maps() -> Tensor:
    """Seven feature maps for `tiny_engine`, [7, 6, 5, 5]. Do not change them."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(hashed_uniform("maps", (7, 6, 5, 5), seed=2) * np.float32(1.7))


@pytest.fixture(scope="session")
def killed() -> Callable[[Callable[[Callable[[], None]], object]], bool]:
    """`killed(work)`: run `work(kill)` in a child process; whether it was killed by calling `kill`, as by `kill -9`."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")

    def run(work: Callable[[Callable[[], None]], object]) -> bool:
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)  # the threads of a pool do not live on in a child
                work(lambda: signal.raise_signal(signal.SIGKILL))
            except BaseException:  # noqa: BLE001 -- the child must end here, whatever it is
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        return code != 0

    return run


@pytest.fixture(scope="session")
def restage() -> Callable[..., Path]:
    """`restage(engine, destination, edit, **changes)`: a sound copy of an engine with other files or manifest fields.

    `edit(folder)` may change the files before they are hashed.
    """

    def make(engine: Path, destination: Path, edit: Callable[[Path], object] = lambda _: None, **changes: Any) -> Path:
        opened = open_engine(engine)
        with staging(destination, force=True) as stage:
            for name in opened.manifest.files:
                shutil.copyfile(engine / name, stage.path / name)
            edit(stage.path)
            return stage.finish(dataclasses.replace(opened.manifest, **changes))

    return make


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A `cuda_machine.Machine` in the place of torch's CUDA: memory, streams and graphs by CUDA's rules, on the CPU."""
    from cuda_machine import Machine

    made = Machine()
    made.install(monkeypatch)
    yield made
    made.close()

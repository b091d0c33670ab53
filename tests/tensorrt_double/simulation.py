"""What TensorRT does with the calls that the double records: networks of real graphs, plans, and their execution.

A simulated plan is JSON and, unless it is stripped, the graph with its weights; onnxruntime computes it when its launch
runs, on the memory of the double's machine. What TensorRT refuses, by its documentation, is refused here.
"""

# Methods are named after what they play, `Class__method`, and take the arguments of its signature.
# ruff: noqa: N802, ARG002, A002

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from cuda_machine import Machine
from double import Recorder

GPU = "Simulated H100"


class Simulation:
    """A machine with TensorRT and a GPU.

    Args:
        description: of the bindings.
        machine: the GPU.

    Attributes:
        recorder: the calls, and the module to import.
        failures: "parse", "build", "deserialize", "context", "profile", "shape", "address", "infer" or "execute" ->
            what TensorRT says when it fails there.
        builds: names of the graphs that were built.
        phases: (name, parent, steps) that the builder reports.
        contexts: the execution contexts that were made.
        compiled: the kernels that TensorRT for RTX compiled.
        changed: changes a graph's output, for plans that compute something else.
    """

    def __init__(self, description: Mapping[str, Any], machine: Machine) -> None:
        self.machine = machine
        plays = {name.replace("__", ".", 1): getattr(self, name) for name in dir(self) if "__" in name.strip("_")}
        self.failures: dict[str, str] = {}
        self.builds: list[str] = []
        self.phases = [("Building", None, 2), ("Timing", "Building", 5)]
        self.contexts: list[Any] = []
        self.compiled: list[str] = []
        self.changed: Callable[[np.ndarray], np.ndarray] = lambda output: output
        self._loggers: list[Any] = []
        known = {name: play for name, play in plays.items() if self._described(description, name)}
        self.recorder = Recorder(description, known | {f"{c}.__init__": i for c, i in self._constructors().items()})
        self.version = description["version"]

    @staticmethod
    def _described(description: Mapping[str, Any], name: str) -> bool:
        cls, _, member = name.partition(".")
        described = description["classes"].get(cls, {})
        return member in described.get("methods", {}) or member in described.get("properties", {})

    def _constructors(self) -> dict[str, Callable[..., Any]]:
        def with_logger(this: Any, logger: Any, **state: Any) -> None:
            this.__dict__.update(state)
            self._loggers.append(logger)

        return {
            "Builder": with_logger,
            "Runtime": with_logger,
            "OnnxParser": lambda this, network, logger: with_logger(this, logger, network=network),
            "Refitter": lambda this, engine, logger: with_logger(this, logger, engine=engine, weights=None),
            "OnnxParserRefitter": lambda this, refitter, logger: with_logger(this, logger, refitter=refitter),
        }

    def _fails(self, what: str) -> bool:
        if what not in self.failures:
            return False
        severity = self.recorder.module.ILogger.Severity
        self._loggers[-1].log(severity.ERROR, self.failures[what])
        return True

    # -- building

    def Builder__create_network(self, this: Any, flags: int = 0) -> Any:
        typed = 1 << int(self.recorder.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        if self.version.startswith("10."):
            assert flags & typed, "a network whose types TensorRT chooses"
        return self.recorder.make("INetworkDefinition", graph=None)

    def OnnxParser__parse_from_file(self, this: Any, model: str) -> bool:
        if self._fails("parse"):
            return False
        this.network.__dict__["graph"] = onnx.load(model)  # with its external weights
        this.network.__dict__["path"] = Path(model)
        return True

    def OnnxParser__num_errors(self, this: Any) -> int:
        return 1 if "parse" in self.failures else 0

    def OnnxParser__get_error(self, this: Any, index: int) -> Any:
        return self.recorder.make("ParserError")

    def ParserError__desc(self, this: Any) -> str:
        return "no importer is registered"

    def ParserError__node_name(self, this: Any) -> str:
        return "denoiser/Strange_1"

    def ParserError__node_operator(self, this: Any) -> str:
        return "Strange"

    def INetworkDefinition__num_inputs(self, this: Any) -> int:
        return len(this.graph.graph.input)

    def INetworkDefinition__num_outputs(self, this: Any) -> int:
        return len(this.graph.graph.output)

    def INetworkDefinition__get_input(self, this: Any, index: int) -> Any:
        return self._tensor(this.graph.graph.input[index])

    def INetworkDefinition__get_output(self, this: Any, index: int) -> Any:
        return self._tensor(this.graph.graph.output[index])

    def ITensor__name(self, this: Any) -> str:
        return this.value.name

    def ITensor__dtype(self, this: Any) -> Any:
        types = self.recorder.module.DataType
        return {1: types.FLOAT, 10: types.HALF, 16: types.BF16}[this.value.type.tensor_type.elem_type]

    def _tensor(self, value: onnx.ValueInfoProto) -> Any:
        return self.recorder.make("ITensor", value=value)

    def Builder__create_builder_config(self, this: Any) -> Any:
        return self.recorder.make("IBuilderConfig", switched={"TF32"}, profiles=[], timings=None)

    def IBuilderConfig__set_flag(self, this: Any, flag: Any) -> None:
        this.switched.add(flag.name)

    def IBuilderConfig__clear_flag(self, this: Any, flag: Any) -> None:
        this.switched.discard(flag.name)

    def IBuilderConfig__set_memory_pool_limit(self, this: Any, pool: Any, pool_size: int) -> None:
        pass

    def IBuilderConfig__create_timing_cache(self, this: Any, serialized_timing_cache: bytes) -> Any:
        return self.recorder.make("ITimingCache", content=bytes(serialized_timing_cache))

    def IBuilderConfig__set_timing_cache(self, this: Any, cache: Any, ignore_mismatch: bool) -> bool:
        if cache.content and not cache.content.startswith(self.version.encode()) and not ignore_mismatch:
            return False
        this.__dict__["timings"] = cache
        return True

    def ITimingCache__serialize(self, this: Any) -> Any:
        return memory(self.recorder, this.content)

    def Builder__create_optimization_profile(self, this: Any) -> Any:
        return self.recorder.make("IOptimizationProfile", ranges={})

    def IOptimizationProfile__set_shape(self, this: Any, input: str, min: Any, opt: Any, max: Any) -> None:
        if not len(min) == len(opt) == len(max) or any(
            not 0 <= a <= b <= c for a, b, c in zip(min, opt, max, strict=True)
        ):
            raise ValueError("Error in set_shape")
        this.ranges[input] = [list(min), list(opt), list(max)]

    def IBuilderConfig__add_optimization_profile(self, this: Any, profile: Any) -> int:
        this.profiles.append(profile.ranges)
        return len(this.profiles) - 1

    def Builder__build_serialized_network(self, this: Any, network: Any, config: Any) -> Any:
        shapes = {value.name: dims(value) for value in network.graph.graph.input}
        for ranges in config.profiles:
            for name, corners in ranges.items():
                fixed = [(size, place) for place, size in enumerate(shapes[name]) if isinstance(size, int)]
                assert all(corner[place] == size for corner in corners for size, place in fixed), (name, corners)
        moving = {name for name, shape in shapes.items() if any(isinstance(size, str) for size in shape)}
        assert config.profiles, "a network with dynamic shapes and no profile"
        assert all(set(ranges) == moving for ranges in config.profiles), "a dynamic input without a range"
        if not self._report(config.__dict__.get("IBuilderConfig.progress_monitor")) or self._fails("build"):
            return None
        name = network.graph.graph.name
        self.builds.append(name)
        if config.timings is not None:
            config.timings.__dict__["content"] = f"{self.version} {name}".encode()
        stripped = "STRIP_PLAN" in config.switched
        plan = {
            "version": self.version,
            "profiles": config.profiles,
            "refittable": "REFIT" in config.switched or stripped,
            "graph": None if stripped else base64.b64encode(network.graph.SerializeToString()).decode(),
            "shapes": shapes | {value.name: dims(value) for value in network.graph.graph.output},
            "inputs": list(shapes),
            "host_code": "VERSION_COMPATIBLE" in config.switched,
        }
        return memory(self.recorder, json.dumps(plan).encode())

    def _report(self, monitor: Any) -> bool:
        if monitor is None:
            return True
        for name, parent, steps in self.phases:
            monitor.phase_start(name, parent, steps)
        for name, _, steps in reversed(self.phases):
            for step in range(steps):
                if not monitor.step_complete(name, step):
                    return False
            monitor.phase_finish(name)
        return True

    # -- running

    def Runtime__deserialize_cuda_engine(self, this: Any, serialized_engine: bytes) -> Any:
        if self._fails("deserialize"):
            return None
        plan = json.loads(bytes(serialized_engine))
        if plan["host_code"]:
            assert this.engine_host_code_allowed, "a plan with code of its own that nobody allowed"
        graph = plan["graph"] and base64.b64decode(plan["graph"])
        return self.recorder.make("ICudaEngine", plan=plan, session=graph and session(graph))

    def ICudaEngine__num_io_tensors(self, this: Any) -> int:
        return len(this.plan["shapes"])

    def ICudaEngine__get_tensor_name(self, this: Any, index: int) -> str:
        return list(this.plan["shapes"])[index]

    def ICudaEngine__get_tensor_mode(self, this: Any, name: str) -> Any:
        modes = self.recorder.module.TensorIOMode
        return modes.INPUT if name in this.plan["inputs"] else modes.OUTPUT

    def ICudaEngine__get_tensor_dtype(self, this: Any, name: str) -> Any:
        return self.recorder.module.DataType.FLOAT

    def ICudaEngine__create_serialization_config(self, this: Any) -> Any:
        return self.recorder.make("ISerializationConfig", chosen=set())

    def ISerializationConfig__set_flag(self, this: Any, flag: Any) -> bool:
        this.chosen.add(flag.name)
        return True

    def ICudaEngine__serialize_with_config(self, this: Any, arg0: Any) -> Any:
        kept = {"refittable": this.plan["refittable"] and "INCLUDE_REFIT" in arg0.chosen}
        return memory(self.recorder, json.dumps(this.plan | kept).encode())

    def OnnxParserRefitter__refit_from_file(self, this: Any, model: str) -> bool:
        this.refitter.__dict__["weights"] = onnx.load(model)
        return True

    def OnnxParserRefitter__num_errors(self, this: Any) -> int:
        return 0

    def Refitter__refit_cuda_engine(self, this: Any) -> bool:
        if not this.engine.plan["refittable"] or this.weights is None or self._fails("refit"):
            return False
        content = this.weights.SerializeToString()
        this.engine.plan["graph"] = base64.b64encode(content).decode()
        this.engine.__dict__["session"] = session(content)
        return True

    def Refitter__get_missing_weights(self, this: Any) -> list[str]:
        return ["condition_encoder.conv_in.weight"]

    def ICudaEngine__create_execution_context(self, this: Any, runtime_config: Any = None) -> Any:
        if self._fails("context"):
            return None
        made = {"owner": this, "profile": 0, "shapes": {}, "addresses": {}, "config": runtime_config}
        context = self.recorder.make("IExecutionContext", **made)
        self.contexts.append(context)
        return context

    # -- of TensorRT for RTX alone: kernels are compiled when shapes first run, and kept in a runtime cache

    def IBuilderConfig__set_compute_capability(self, this: Any, compute_capability: Any, index: int) -> bool:
        assert 0 <= index < this.__dict__["IBuilderConfig.num_compute_capabilities"]
        this.__dict__.setdefault("capabilities", {})[index] = compute_capability.name
        return True

    def ICudaEngine__create_runtime_config(self, this: Any) -> Any:
        return self.recorder.make("IRuntimeConfig", cache=None)

    def IRuntimeConfig__create_runtime_cache(self, this: Any) -> Any:
        return self.recorder.make("IRuntimeCache", kernels=set())

    def IRuntimeConfig__set_runtime_cache(self, this: Any, cache: Any) -> bool:
        if self._fails("cache"):
            return False
        this.__dict__["cache"] = cache
        return True

    def IRuntimeCache__serialize(self, this: Any) -> Any:
        return memory(self.recorder, json.dumps([self.version, *sorted(this.kernels)]).encode())

    def IRuntimeCache__deserialize(self, this: Any, blob: bytes) -> bool:
        try:
            version, *kernels = json.loads(bytes(blob))
        except ValueError:
            return False
        if version != self.version:
            return False
        this.kernels.update(kernels)
        return True

    def _compile(self, context: Any) -> None:
        """What running shapes for the first time does in TensorRT for RTX."""
        config = context.config
        if config is None:
            return
        strategy = config.__dict__["IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy"].name
        assert config.__dict__["IRuntimeConfig.cuda_graph_strategy"].name == "DISABLED", "a capture in our capture"
        kernel = json.dumps(sorted(context.shapes.items())) if strategy == "EAGER" else "any shape"
        kernels = context.__dict__.setdefault("own", set()) if config.cache is None else config.cache.kernels
        if kernel not in kernels:
            assert not any(stream.capture for stream in self.machine.streams), "kernels are compiled inside a capture"
            kernels.add(kernel)
            self.compiled.append(kernel)

    def IExecutionContext__active_optimization_profile(self, this: Any) -> int:
        return this.profile

    def IExecutionContext__set_optimization_profile_async(
        self, this: Any, profile_index: int, stream_handle: int
    ) -> bool:
        if self._fails("profile"):
            return False
        this.__dict__.update(profile=profile_index, shapes={})
        return 0 <= profile_index < len(this.owner.plan["profiles"])

    def IExecutionContext__set_input_shape(self, this: Any, name: str, shape: Any) -> bool:
        if self._fails("shape"):
            return False
        declared = this.owner.plan["shapes"][name]
        ranges = this.owner.plan["profiles"][this.profile].get(name)
        this.shapes[name] = tuple(shape)
        if ranges is None:
            return list(shape) == declared
        lowest, _, highest = ranges
        return all(a <= size <= b for a, size, b in zip(lowest, shape, highest, strict=True))

    def IExecutionContext__set_tensor_address(self, this: Any, name: str, memory: int) -> bool:
        if self._fails("address"):
            return False
        this.addresses[name] = memory
        return name in this.owner.plan["shapes"]

    def IExecutionContext__infer_shapes(self, this: Any) -> list[str]:
        if self._fails("infer"):
            return list(this.owner.plan["inputs"])
        return [name for name in this.owner.plan["inputs"] if name not in this.shapes]

    def IExecutionContext__get_tensor_shape(self, this: Any, name: str) -> Any:
        declared = this.owner.plan["shapes"]
        sizes = {
            axis: size
            for tensor, shape in this.shapes.items()
            for axis, size in zip(declared[tensor], shape, strict=True)
            if isinstance(axis, str)
        }
        return tuple(sizes.get(axis, axis) for axis in declared[name])

    def IExecutionContext__execute_async_v3(self, this: Any, stream_handle: int) -> bool:
        if self._fails("execute"):
            return False
        assert this.owner.session is not None, "a stripped plan that was not refitted"
        assert set(this.addresses) == set(this.owner.plan["shapes"]), "a tensor without memory"
        # A launch has the addresses and shapes of now for good; what these addresses hold is read when it runs.
        self._compile(this)
        addresses, shapes, owner = dict(this.addresses), dict(this.shapes), this.owner
        (name,) = set(addresses) - set(owner.plan["inputs"])
        shape = self.IExecutionContext__get_tensor_shape(this, name)
        view = self.machine.memory.view

        def run() -> None:
            inputs = {name: view(addresses[name], shapes[name]) for name in owner.plan["inputs"]}
            (output,) = owner.session.run(None, inputs)
            view(addresses[name], shape)[...] = self.changed(output)

        self.machine.launch(stream_handle, run)
        return True


def memory(recorder: Recorder, content: bytes) -> Any:
    """An `IHostMemory`."""
    cls = recorder.types["IHostMemory"]
    if not hasattr(cls, "made"):
        cls.made = type("IHostMemory", (cls, bytearray), {"_class": "IHostMemory", "_recorder": recorder})
    made = bytearray.__new__(cls.made)
    bytearray.__init__(made, content)
    made.__dict__["_made"] = True
    return made


def session(graph: bytes) -> onnxruntime.InferenceSession:
    """What computes a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    )  # loading takes longer than running
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    """The shape of a graph's input or output; a string is a dynamic size."""
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

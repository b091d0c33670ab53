"""Run the graphs of an engine with another tool, in that tool's own words and without this project.

`run_elsewhere.py TOOL ENGINE INPUTS OUTPUTS`: inputs are arrays named "graph/case/tensor" in an npz file, outputs are
named "graph/case".
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np


class Refusal(importlib.abc.MetaPathFinder):
    """Importing this project is an error here."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in ("featinv_fast", "featinv_export", "featinv_kernels", "torch"):
            raise ImportError(f"{name} must not be needed")


def onnxruntime(path: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)[0]


def openvino(path: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    import openvino as ov

    # Where a CPU has bf16 units, OpenVINO would round to bf16 of its own accord.
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"})
    return lambda feeds: compiled(feeds)[0]


def reference(path: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))
    return lambda feeds: evaluator.run(None, feeds)[0]


if __name__ == "__main__":
    sys.meta_path.insert(0, Refusal())
    tool, engine, inputs, outputs = sys.argv[1:]
    load = {"onnxruntime": onnxruntime, "openvino": openvino, "reference": reference}[tool]
    cases: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    with np.load(inputs) as arrays:
        for key in arrays:
            graph, case, tensor = key.split("/")
            cases.setdefault(graph, {}).setdefault(case, {})[tensor] = arrays[key]
    results = {}
    for graph, feeds in cases.items():
        run = load(Path(engine) / f"{graph}.onnx")
        results |= {f"{graph}/{case}": np.asarray(run(feed)) for case, feed in feeds.items()}
    np.savez(outputs, **results)

"""The comparison of a new engine with the plain model finds what is wrong with it."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import sys
import weakref
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from featinv_export import onnx_graphs, parity, targets
from featinv_export.progress import Steps
from featinv_export.targets.onnx_ import OnnxTarget
from featinv_export.weights import weight_index
from featinv_fast.backends import onnxruntime_
from featinv_fast.config import Precision
from featinv_fast.engine import ParityStatus, open_engine
from featinv_fast.errors import ParityError
from featinv_fast.rewrites.engine_model import EngineModel

# Quick to run, slow enough to hold every kind of operation but cross-attention.
GRAPH = "decoder"


@pytest.fixture(scope="module")
def cases(golden, golden_model, golden_engine) -> list[parity.Case]:
    return parity.reference_cases(golden_model, golden.prompts, open_engine(golden_engine).graph_specs())


@pytest.fixture
def candidate(golden, golden_engine: Path, tmp_path: Path) -> parity.Candidate:
    """A copy of the golden engine, reduced to one graph, to spoil."""
    for name in ("weights.safetensors", f"{GRAPH}.onnx"):
        shutil.copy(golden_engine / name, tmp_path)
    return parity.Candidate(
        folder=tmp_path,
        config=golden.config,
        specs={GRAPH: open_engine(golden_engine).graph_specs()[GRAPH]},
        precision=Precision.FP32,
        kept_fp32=(),
    )


@pytest.fixture
def compare(candidate, cases):
    """Results by backend and batch."""

    def run(candidate: parity.Candidate = candidate) -> dict[tuple[str, int], parity.Comparison]:
        own = [case for case in cases if case.graph == GRAPH]
        return {
            (result.backend, result.batch): result
            for result in targets.compare(candidate, own, [OnnxTarget()], Steps(0))
        }

    return run


def test_a_sound_engine_passes(compare):
    results = compare()
    assert set(results) == {("torch", 1), ("torch", 2), ("onnxruntime", 1), ("onnxruntime", 2)}
    assert {result.status for result in results.values()} == {"passed"}
    infos = parity.require_passed(list(results.values()), Path("unused"))
    assert {info.status for info in infos} == {ParityStatus.PASSED}


def test_cases_cover_two_batch_sizes_and_two_feature_sizes(cases):
    assert {(case.graph, case.batch) for case in cases} == {
        (graph, batch)
        for graph in ("condition_encoder", "time_embedding", "denoiser", "denoiser_unguided", "decoder")
        for batch in (1, 2)
    }
    sizes = {tuple(case.inputs[0].shape) for case in cases if case.graph == "condition_encoder"}
    assert sizes == {(1, 48, 9, 12), (2, 48, 40, 36)}
    assert all(case.expected.shape[0] == case.batch and case.expected.isfinite().all() for case in cases)


def test_cases_tell_branches_and_residuals_apart(cases):
    for case in cases:
        if case.graph == "denoiser":
            scales = case.inputs[-1]
            assert scales.unique().numel() >= 13
            assert not torch.equal(scales[0], scales[1])


def test_b12_a_wrong_weight_fails_on_every_backend(candidate, compare, tmp_path: Path):
    path = candidate.folder / "weights.safetensors"
    tensors = load_file(path)
    place = weight_index(candidate.folder)["decoder.conv_in.bias"]
    tensors["decoder.conv_in.bias"][0] += 0.1
    with path.open("r+b") as file:
        file.seek(place.offset)
        file.write(tensors["decoder.conv_in.bias"].numpy().tobytes())
    results = compare()
    assert {result.status for result in results.values()} == {"failed"}
    report = tmp_path / "engine.parity.json"
    with pytest.raises(ParityError, match="4 of 4 comparisons") as caught:
        parity.require_passed(list(results.values()), report)
    assert str(report) in caught.value.remedy
    rows = json.loads(report.read_text())
    assert [row["graph"] for row in rows] == [GRAPH] * 4
    assert all(row["status"] == "failed" and row["relative"] > row["tolerance"] == 2e-5 for row in rows)


def test_b12_nan_fails(candidate, compare, tmp_path: Path):
    path = candidate.folder / "weights.safetensors"
    place = weight_index(candidate.folder)["decoder.conv_out.bias"]
    with path.open("r+b") as file:
        file.seek(place.offset)
        file.write(torch.tensor([torch.nan]).numpy().tobytes())
    results = compare()
    assert {result.status for result in results.values()} == {"failed"}
    with pytest.raises(ParityError, match="nan"):
        parity.require_passed(list(results.values()), tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())[0]["relative"] == "nan"


def test_b13_a_graph_that_took_the_batch_for_a_constant_fails(golden, candidate, compare, monkeypatch):
    static = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda module, example, **_: static(module, example))
    structure = EngineModel.empty(golden.config)
    model = onnx_graphs.export_graph(structure.graphs()[GRAPH], candidate.specs[GRAPH], weight_index(candidate.folder))
    ir.save(model, candidate.folder / f"{GRAPH}.onnx")
    results = compare()
    assert results["torch", 1].status == results["torch", 2].status == "passed"
    assert results["onnxruntime", 1].status == results["onnxruntime", 2].status == "failed"


def test_a_graph_that_is_no_graph_fails(candidate, compare):
    (candidate.folder / f"{GRAPH}.onnx").write_bytes(b"not a graph")
    result = compare()["onnxruntime", 1]
    assert result.status == "failed"
    assert result.reason
    assert "\n" not in result.reason


def test_a_result_of_another_shape_fails():
    case = parity.Case("decoder", 1, (), torch.ones(1, 3))
    assert parity._difference(torch.ones(1, 1), case.expected) == (float("inf"), float("inf"))
    assert parity._difference(torch.ones(1, 3), torch.zeros(1, 3)) == (1.0, float("inf"))
    assert parity._difference(torch.zeros(1, 3), torch.zeros(1, 3)) == (0.0, 0.0)


def test_bf16_on_onnxruntime_is_not_run_for_a_reason(candidate, compare):
    path = candidate.folder / "weights.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    results = compare(dataclasses.replace(candidate, precision=Precision.BF16))
    for batch in (1, 2):
        result = results["onnxruntime", batch]
        assert (result.status, result.relative) == ("not run", None)
        assert "bf16" in result.reason
    assert "passed" in {results[key].status for key in results if key[0].startswith("torch")}


def test_without_onnxruntime_it_is_not_run_for_a_reason(compare, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    results = compare()
    assert results["onnxruntime", 1].status == "not run"
    assert "pip install" in results["onnxruntime", 1].reason
    assert results["torch", 1].status == "passed"


def test_where_the_cpu_has_no_kernels_the_stored_weights_are_checked_in_fp32(candidate, compare, monkeypatch):
    monkeypatch.setattr(parity, "has_kernels", lambda _: False)
    results = compare()
    assert results["torch", 1].status == "not run"
    assert "convolutions" in results["torch", 1].reason
    assert results["torch in fp32", 1].status == results["torch in fp32", 2].status == "passed"


def test_sessions_are_released_one_after_another(candidate, compare, monkeypatch):
    alive: list[weakref.ref] = []
    for module, name in ((parity, "TorchSession"), (onnxruntime_, "OnnxruntimeSession")):
        make = getattr(module, name)

        def tracked(*arguments, make=make, **options):
            gc.collect()
            assert not [reference for reference in alive if reference() is not None]
            session = make(*arguments, **options)
            alive.append(weakref.ref(session))
            return session

        monkeypatch.setattr(module, name, tracked)
    assert {result.status for result in compare().values()} == {"passed"}
    assert len(alive) == 2

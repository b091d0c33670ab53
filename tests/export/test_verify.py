"""`featinv-export --verify`: the comparisons of an engine once more, all or nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from featinv_export import cli
from featinv_export.verify import verify
from featinv_fast.engine import Manifest, ParityInfo, ParityStatus, open_engine
from featinv_fast.errors import ExportError


def parity(engine: Path) -> dict[tuple[str, str, int], ParityInfo]:
    return {(info.graph, info.backend, info.batch): info for info in open_engine(engine).manifest.parity}


def content(engine: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in engine.iterdir()}


@pytest.fixture
def stale(tiny_engine, restage, tmp_path) -> Callable[..., Path]:
    """`stale(edit)`: a copy of the tiny engine whose comparisons all say the same, and one that was made elsewhere."""

    def make(edit: Callable[[Path], object] = lambda _: None) -> Path:
        known = open_engine(tiny_engine).manifest.parity
        same = [dataclasses.replace(info, max_abs=0.5, relative=1e-6) for info in known]
        elsewhere = dataclasses.replace(same[0], backend="tensorrt")
        return restage(tiny_engine, tmp_path / "stale.engine", edit, parity=(*same, elsewhere))

    return make


def test_numbers_are_renewed_where_they_can_be_repeated(stale, tiny_engine):
    engine = stale()
    before, files = open_engine(engine).manifest, content(engine)
    assert verify(engine) == engine
    after = open_engine(engine).manifest
    assert dataclasses.replace(after, parity=(), files={}) == dataclasses.replace(before, parity=(), files={})
    changed = {name for name, digest in content(engine).items() if digest != files[name]}
    assert changed == {"README.md", "manifest.json", "manifest.json.sha256"}

    renewed = parity(engine)
    assert set(renewed) == {(info.graph, info.backend, info.batch) for info in before.parity}
    for (_, backend, _), info in renewed.items():
        assert info.status is ParityStatus.PASSED
        # Torch in fp32 is the reference and would be compared with itself; what is not here keeps its numbers.
        assert (info.max_abs == 0.5) == (backend in ("torch", "tensorrt"))
        assert info.relative <= info.tolerance
    # The reference is the plain model at export and the stored weights here; both are fp32 on the same machine.
    for key, info in parity(tiny_engine).items():
        if key[1] == "onnxruntime":
            assert renewed[key].relative < 10 * info.relative + 1e-6
    assert f"{renewed['decoder', 'onnxruntime', 2].relative:.1e}" in (engine / "README.md").read_text()


def test_b12_a_failing_graph_changes_nothing(stale, tiny_engine, capsys):
    """One weight more than the others' rounding: a constant inside a graph is not the one that was exported."""

    def edit(folder: Path) -> None:
        model = onnx.load(folder / "decoder.onnx", load_external_data=False)
        last = model.graph.node[-1]
        name = last.output[0]
        last.output[0] = "before"
        model.graph.node.append(onnx.helper.make_node("Neg", ["before"], [name], name="planted"))
        (folder / "decoder.onnx").write_bytes(model.SerializeToString())

    engine = stale(edit)
    files = content(engine)
    assert cli.main(["--verify", str(engine)]) == 1
    error = capsys.readouterr().err
    assert "2 of 20 comparisons" in error
    assert "decoder on onnxruntime with batch 1: relative difference 2.0e+00" in error
    assert content(engine) == files
    report = engine.with_name("stale.engine.parity.json")
    rows = [row for row in json.loads(report.read_text()) if row["status"] == "failed"]
    assert {(row["graph"], row["backend"], row["batch"]) for row in rows} == {
        ("decoder", "onnxruntime", 1),
        ("decoder", "onnxruntime", 2),
    }
    assert {path.name for path in engine.parent.iterdir()} == {engine.name, report.name}


def test_what_cannot_run_here_is_refused_or_keeps_its_numbers(stale, monkeypatch):
    monkeypatch.setattr("featinv_fast.backends.provider_problems", lambda _: ["planted"])
    engine = stale()
    before = open_engine(engine).manifest.parity
    with pytest.raises(ExportError, match=r"ONNX graphs: planted(.|\n)*--unchecked"):
        verify(engine)
    verify(engine, unchecked=True)
    assert open_engine(engine).manifest.parity == before


def test_half_precision_is_compared_with_fp32(tiny_fp16_engine, restage, tmp_path):
    known = open_engine(tiny_fp16_engine).manifest.parity
    engine = restage(tiny_fp16_engine, tmp_path / "half.engine", parity=())
    verify(engine)
    renewed = parity(engine)
    ran = {(info.graph, info.backend, info.batch) for info in known if info.status is ParityStatus.PASSED}
    passed = {key for key, info in renewed.items() if info.status is ParityStatus.PASSED}
    assert ran == passed
    assert renewed["denoiser", "onnxruntime", 1].tolerance == 1e-2
    assert renewed["denoiser", "onnxruntime", 1].relative > 1e-5


def test_packages_are_verified_where_they_may_run(aoti_engine, restage, tmp_path, monkeypatch):
    known = open_engine(aoti_engine).manifest.parity
    same = [dataclasses.replace(info, max_abs=0.5) for info in known]
    engine = restage(aoti_engine, tmp_path / "copy.engine", parity=tuple(same))
    monkeypatch.setenv("FEATINV_CACHE", str(tmp_path / "empty"))  # where nothing was noted as built here
    with pytest.raises(ExportError, match="AOTInductor packages: not built here"):
        verify(engine)
    verify(engine, unchecked=True)
    assert {info.max_abs for info in parity(engine).values()} == {0.5}
    monkeypatch.undo()
    verify(engine)
    for (_, backend, _), info in parity(engine).items():
        assert (info.max_abs == 0.5) == (backend != "aoti")


def test_the_command_prints_the_engine_or_json(stale, capsys):
    engine = stale()
    assert cli.main(["--verify", str(engine), "--json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)["parity"]
    assert {row["max_abs"] for row in rows if row["backend"] == "torch"} == {0.5}
    assert captured.err == ""


def test_c1_a_damaged_engine_is_a_failure(stale, capsys):
    engine = stale()
    with (engine / "decoder.onnx").open("ab") as file:
        file.write(b"x")
    assert cli.main(["--verify", str(engine)]) == 1
    assert "decoder.onnx has" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--onnx"], ["--precision", "fp16"], ["--out", "x"], ["--force"]])
@pytest.mark.parametrize("command", ["--verify", "--inspect"])
def test_options_without_effect_are_wrong_usage(command, more, tmp_path, capsys):
    assert cli.main([command, str(tmp_path), *more]) == 2
    assert f"no effect with {command}" in capsys.readouterr().err


def test_one_subject_at_a_time(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--verify", str(tmp_path), "--inspect", str(tmp_path)])
    assert caught.value.code == 2
    assert "--ckpt PATH, --from-onnx DIR, --verify DIR or --inspect DIR" in capsys.readouterr().err


def test_the_manifest_is_the_one_on_the_disk(stale):
    engine = stale()
    verify(engine)
    assert Manifest.from_json((engine / "manifest.json").read_bytes()) == open_engine(engine).manifest

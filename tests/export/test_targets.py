"""A target is one object: what is asked of the exporter for one that it has never heard of."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pytest

from featinv_export import cli, from_onnx, inspect_engine, model_card, targets
from featinv_export.exporter import export
from featinv_export.options import ExportOptions
from featinv_export.parity import Candidate, Case, Comparison
from featinv_export.progress import Steps
from featinv_export.targets import Target
from featinv_export.verify import verify
from featinv_fast.engine import open_engine
from featinv_fast.errors import ArgumentError


@dataclasses.dataclass(frozen=True)
class SizesTarget(Target):
    """The size of each graph's ONNX file, as JSON."""

    largest: int = 0

    option = "sizes"
    help = "sizes of the graphs"
    title = "listings of sizes"
    suffix = ".sizes.json"
    backend = "sizes"
    of_graphs = True

    def make(self, candidate: Candidate, steps: Steps) -> SizesTarget:
        sizes = {name: (candidate.folder / f"{name}.onnx").stat().st_size for name in candidate.specs}
        for name, size in sizes.items():
            steps.begin(f"writing {name}{self.suffix}")
            (candidate.folder / (name + self.suffix)).write_text(json.dumps(size))
        return dataclasses.replace(self, largest=max(sizes.values()))

    def run(self, candidate: Candidate, cases: Sequence[Case], steps: Steps) -> list[Comparison]:
        steps.begin(f"checking the {self.title}")
        results = []
        for case in cases:
            listed = json.loads((candidate.folder / (case.graph + self.suffix)).read_text())
            same = listed == (candidate.folder / f"{case.graph}.onnx").stat().st_size
            status: dict[str, Any] = {"status": "passed", "max_abs": 0.0, "relative": 0.0, "tolerance": 0.0}
            if not same:
                status = {"status": "failed", "reason": "another size"}
            results.append(Comparison(graph=case.graph, backend=self.backend, batch=case.batch, **status))
        return results

    def facts(self) -> dict[str, str]:
        return {"largest": f"{self.largest} bytes"}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line in `TARGETS`: every module that loops over it sees the target."""
    more = (*targets.TARGETS, SizesTarget)
    for module in (targets, cli, inspect_engine, model_card):
        monkeypatch.setattr(module, "TARGETS", more)
    readers = inspect_engine.READERS | {SizesTarget.suffix: SizesTarget.backend}
    monkeypatch.setattr(inspect_engine, "READERS", readers)
    monkeypatch.setattr(cli, "FIXED_BY_ENGINE", cli.FIXED_BY_ENGINE | {"sizes"})


@pytest.mark.usefixtures("registered")
def test_a_target_that_is_new_is_served_by_every_command(tiny_engine, restage, tmp_path, capsys):
    engine = restage(tiny_engine, tmp_path / "e.engine")
    graphs = open_engine(engine).manifest.graph_specs()
    assert cli.main(["--from-onnx", str(engine), "--sizes"]) == 0
    manifest = open_engine(engine).manifest
    assert {f"{name}.sizes.json" for name in graphs} <= set(manifest.files)
    (info,) = manifest.targets
    assert (info.suffix, info.backend) == (".sizes.json", "sizes")
    assert {row.graph for row in manifest.parity if row.backend == "sizes"} == set(graphs)
    assert f"(listings of sizes: largest {info.facts['largest']})" in (engine / "README.md").read_text()
    capsys.readouterr()
    assert cli.main(["--inspect", str(engine)]) == 0
    assert f"listings of sizes: largest {info.facts['largest']}" in capsys.readouterr().out
    assert [kind.option for kind in targets.carried(open_engine(engine))] == ["onnx", "sizes"]
    assert verify(engine) == engine
    assert open_engine(engine).manifest.targets == (info,)
    assert cli.main(["--ckpt", "x", "--refit", str(engine), "--sizes"]) == 2
    assert "--sizes" in capsys.readouterr().err


@pytest.mark.usefixtures("registered")
def test_a_new_target_is_asked_for_by_its_option_and_wants_its_graphs(tmp_path):
    (target,) = targets.asked(ExportOptions(checkpoint=tmp_path / "x", onnx=True, targets={"sizes": True}))[1:]
    assert isinstance(target, SizesTarget)
    with pytest.raises(ArgumentError, match="sizes is made of ONNX graphs"):
        targets.asked(ExportOptions(checkpoint=tmp_path / "x", targets={"sizes": True}))
    assert cli.main(["--from-onnx", str(tmp_path)]) == 2


def test_an_unknown_target_is_refused_before_any_work(tmp_path):
    with pytest.raises(ArgumentError, match=r"no such target(.|\n)*onnx, aoti, trt, trt_rtx"):
        export(ExportOptions(checkpoint=tmp_path / "none", targets={"sizes": True}))


@pytest.mark.usefixtures("registered")
def test_the_files_of_a_target_that_nobody_compared_are_unchecked(tiny_engine, restage, tmp_path, monkeypatch):
    monkeypatch.setattr(SizesTarget, "problems", lambda *_: ["nobody"])
    engine = restage(tiny_engine, tmp_path / "e.engine")
    manifest = open_engine(from_onnx.add_files(engine, SizesTarget())).manifest
    assert set(manifest.unchecked()) == {f"{name}.sizes.json" for name in manifest.graph_specs()}

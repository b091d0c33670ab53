"""What goes wrong around plans: kills, damaged caches, graphs that lead elsewhere, machines without a GPU."""

from __future__ import annotations

import functools
import itertools
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from contract import plan_info

from featinv_export import cli
from featinv_export.from_onnx import add_plans
from featinv_export.tensorrt_ import plans
from featinv_export.tensorrt_.cache import PlanCache
from featinv_export.tensorrt_.options import PlanOptions
from featinv_fast import Runtime
from featinv_fast.backends import tensorrt_plan, torch_
from featinv_fast.engine import open_engine
from featinv_fast.engine.plans import PlanInfo
from featinv_fast.errors import EngineIntegrityError


@pytest.fixture
def engine(simulation, tiny_engine, tmp_path) -> Path:
    """A copy of the tiny engine, without plans."""
    return Path(shutil.copytree(tiny_engine, tmp_path / "work" / "tiny.engine"))


@pytest.fixture
def decoder_plan(simulation, tiny_engine) -> PlanInfo:
    """What a plan of the decoder is built for."""
    return plan_info(open_engine(tiny_engine).graph_specs()["decoder"])


def test_b9_killed_while_a_plan_is_built(simulation, engine, killed):
    before = open_engine(engine).manifest
    graphs = list(before.graph_specs())

    def build(kill: Callable[[], None]) -> None:
        def progress(what: str, *_: int) -> None:
            if what == f"building {graphs[2]}.plan: Building 1/2":
                kill()

        add_plans(engine, PlanOptions(), progress)

    assert killed(build)
    assert open_engine(engine).manifest == before
    assert len(list(engine.parent.iterdir())) > 1  # what was half written
    add_plans(engine, PlanOptions())
    assert simulation.builds == graphs[2:]  # those that were finished before are in the cache
    assert len(open_engine(engine).manifest.plans) == len(graphs)
    assert [path.name for path in engine.parent.iterdir()] == ["tiny.engine"]


@pytest.mark.parametrize("before", [None, b"old"])
def test_c5_a_cache_that_is_killed_at_every_operation(decoder_plan, killed, tmp_path, before):
    def store(cache: PlanCache, point: int, kill: Callable[[], None]) -> None:
        operations = itertools.count()

        def count(event: str, _: object) -> None:
            if event.startswith(("open", "os.", "shutil.", "fcntl.")) and next(operations) == point:
                kill()

        sys.addaudithook(count)
        cache.store(decoder_plan, [], b"new")

    copy = tmp_path / "copy"
    for point in itertools.count():
        cache = PlanCache(tmp_path / str(point))
        if before is not None:
            cache.store(decoder_plan, [], before)
        was_killed = killed(functools.partial(store, cache, point))
        if cache.fetch(decoder_plan, [], copy):
            assert copy.read_bytes() in (before, b"new")
        else:
            assert was_killed
        cache.store(decoder_plan, [], b"newest")
        assert cache.fetch(decoder_plan, [], copy)
        assert copy.read_bytes() == b"newest"
        if not was_killed:
            break
    assert point > 10


@pytest.mark.parametrize("damage", [lambda plan: plan[:-1], lambda plan: plan[:100] + b"!" + plan[101:]])
def test_c5_a_damaged_plan_is_built_again_and_no_other(simulation, engine, tmp_path, caplog, damage):
    add_plans(engine, PlanOptions())
    graphs = list(simulation.builds)
    decoder = (engine / "decoder.plan").read_bytes()
    (stored,) = (path for path in (tmp_path / "cache").glob("plans/*/plan") if path.read_bytes() == decoder)
    stored.write_bytes(damage(decoder))
    add_plans(engine, PlanOptions())
    assert simulation.builds == [*graphs, "decoder"]
    assert "damaged" in caplog.text
    assert (engine / "decoder.plan").read_bytes() == decoder


def test_c4_a_cache_miss_names_the_field_and_builds_again(simulation, engine, caplog):
    add_plans(engine, PlanOptions(max_batch=8))
    graphs = list(simulation.builds)
    with caplog.at_level(logging.INFO):
        add_plans(engine, PlanOptions(max_batch=4))
    assert simulation.builds == [*graphs, *(name for name in graphs if name != "time_embedding")]  # it has no batch
    assert "building denoiser.plan: the nearest plan of denoiser in the cache has profiles 1:" in caplog.text
    built = {plan.profiles[-1].maximum for plan in open_engine(engine).manifest.plans if plan.profiles}
    assert built == {4}


@pytest.mark.parametrize("location", ["../outside.safetensors", "/outside.safetensors", "other.safetensors", ""])
@pytest.mark.parametrize("part", ["initializer", "constant"])
def test_c2_weights_outside_the_engine_never_reach_tensorrt(simulation, engine, restage, tmp_path, location, part):
    def lead_elsewhere(folder: Path) -> None:
        model = onnx.load(folder / "decoder.onnx", load_external_data=False)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
        (entry,) = (entry for entry in tensor.external_data if entry.key == "location")
        entry.value = location
        if part == "constant":
            node = onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
            model.graph.initializer.remove(tensor)
            model.graph.node.insert(0, node)
        (folder / "decoder.onnx").write_bytes(model.SerializeToString())

    other = restage(engine, tmp_path / "elsewhere.engine", lead_elsewhere)
    before = open_engine(other).manifest
    with pytest.raises(EngineIntegrityError, match=r"decoder\.onnx has weights outside") as caught:
        add_plans(other, PlanOptions())
    assert repr(location) in caught.value.given
    assert simulation.recorder.calls == []
    assert open_engine(other).manifest == before


def test_c1_a_missing_plan(simulation, engine):
    add_plans(engine, PlanOptions())
    (engine / "decoder.plan").unlink()
    simulation.recorder.calls.clear()
    with pytest.raises(EngineIntegrityError, match=r"decoder\.plan"):
        Runtime(engine, backend="tensorrt", device="cpu")
    assert simulation.recorder.calls == []


def test_c6_tensorrt_without_a_gpu_is_refused_before_any_work(simulation, engine, monkeypatch, capsys):
    monkeypatch.setattr(plans, "GPU", torch.device("cuda"))
    monkeypatch.setattr(tensorrt_plan, "device_problems", torch_.device_problems)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["--from-onnx", str(engine), "--trt"]) == 1
    error = capsys.readouterr().err
    assert "torch sees no NVIDIA GPU and driver" in error
    assert "cannot be imported" not in error
    assert f"run `featinv-export --from-onnx {engine} --trt` on the machine with the GPU" in error
    assert simulation.recorder.calls == []

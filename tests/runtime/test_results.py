"""What `invert` gives back: forms of images, files, sheets, and what the runtime says of itself."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from featinv_fast import Inversion, Runtime
from featinv_fast.config import FeatureLayout
from featinv_fast.engine import open_engine
from featinv_fast.errors import ArgumentError, FeatInvError, FileError, NonFiniteFeatureError


@pytest.fixture(scope="module")
def failing(runtimes, tiny_maps):
    """`failing(output_type)`: three rows of which the second one failed."""
    maps = tiny_maps[:3].clone()
    maps[1, 0, 0, 0] = float("nan")

    def make(output_type: str) -> Inversion:
        return runtimes["torch"].invert(maps, errors="return", output_type=output_type, seed=8)

    return make


def test_every_output_type_holds_the_same_images(runtime, tiny_maps):
    results = {
        name: runtime.invert(tiny_maps[:2], output_type=name, seed=8)
        for name in ("uint8", "float", "torch", "pil", "latent")
    }
    images = {name: inversion.images for name, inversion in results.items()}
    assert (images["uint8"].shape, images["uint8"].dtype) == ((2, 16, 16, 3), np.uint8)
    assert (images["float"].shape, images["float"].dtype) == ((2, 3, 16, 16), np.float32)
    assert (images["torch"].shape, images["torch"].device.type) == ((2, 3, 16, 16), "cpu")
    assert np.array_equal(images["torch"].numpy(), images["float"])
    truncated = (images["float"] * np.float32(127.5) + np.float32(127.5)).clip(0, 255).astype(np.uint8)
    assert np.array_equal(truncated.transpose(0, 2, 3, 1), images["uint8"])
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in images["pil"])
    assert np.array_equal(np.stack([np.asarray(image) for image in images["pil"]]), images["uint8"])
    assert (images["latent"].shape, images["latent"].dtype) == ((2, 4, 8, 8), np.float32)
    for inversion in results.values():
        assert np.array_equal(inversion.latents.numpy(), images["latent"])
        assert inversion.errors == {}
        assert inversion.seeds == (8, 9)
        assert len(inversion) == 2
    assert np.array_equal(runtime.decode(images["latent"]), images["uint8"])
    assert np.array_equal(runtime.decode(results["latent"].latents, output_type="float"), images["float"])


def test_tensors_are_the_callers_to_change(runtime, tiny_maps):
    """torch forbids in-place changes of what was computed in inference mode."""
    inversion = runtime.invert(tiny_maps[:1], output_type="torch")
    tensors = (
        inversion.images,
        inversion.latents,
        runtime.decode(inversion.latents, output_type="torch"),
        runtime.encode_condition(tiny_maps[:1]),
    )
    for tensor in tensors:
        assert not tensor.is_inference()
        assert not tensor.mul_(0.0).any()
    maps = tiny_maps[:1].numpy().copy()
    inversion = runtime.invert(maps, output_type="latent")
    inversion.images.fill(1.0)
    assert np.array_equal(maps, tiny_maps[:1])


def test_latents_are_not_decoded_where_they_are_asked_for(own_runtime, watch, tiny_maps):
    calls = []
    watch(own_runtime, lambda graph, _: calls.append(graph))
    own_runtime.invert(tiny_maps[:2], steps=1, output_type="latent", samples=3)
    assert calls == ["time_embedding", "condition_encoder", "denoiser"]


def test_a_condition_is_computed_once_per_map_and_batch(own_runtime, watch, tiny_maps):
    maps = []
    watch(own_runtime, lambda graph, inputs: maps.append(inputs[0]) if graph == "condition_encoder" else None)
    own_runtime.invert(tiny_maps[:2], steps=1, samples=3, batch_size=4)
    assert [len(batch) for batch in maps] == [2, 1]  # rows 0 0 0 1 and 1 1
    assert torch.equal(maps[0], tiny_maps[:2])
    assert torch.equal(maps[1], tiny_maps[1:2])


@pytest.mark.parametrize("guidance_scale", [1.0, 1.75])
def test_guidance_of_one_runs_one_branch(own_runtime, watch, tiny_maps, guidance_scale):
    calls = set()
    watch(own_runtime, lambda graph, _: calls.add(graph))
    own_runtime.invert(tiny_maps[:1], guidance_scale=guidance_scale)
    assert calls & {"denoiser", "denoiser_unguided"} == {"denoiser_unguided" if guidance_scale == 1.0 else "denoiser"}


def test_guidance_of_one_is_the_limit_of_guidance(runtime, tiny_maps, relative_norm):
    alone = runtime.invert(tiny_maps[:2], guidance_scale=1.0).latents
    both = runtime.invert(tiny_maps[:2], guidance_scale=1.0 + 1e-6).latents
    assert relative_norm(both, alone) <= 1e-5


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"strength": 0.5}, {"guess_mode": True}])
def test_control_options_have_an_effect(runtime, tiny_maps, options):
    usual = runtime.invert(tiny_maps[:2]).latents
    other = runtime.invert(tiny_maps[:2], **options).latents
    assert (usual - other).abs().max() > 1e-2
    if options == {"strength": 0.0}:  # no control: the features do not matter
        assert torch.equal(other, runtime.invert(tiny_maps[2:4], strength=0.0).latents)


@pytest.mark.parametrize(
    ("sampler", "steps", "made"),
    [
        ("ddim", 1, 1),
        ("ddim", 3, 4),  # 1, 334, 667 and 1000, which becomes 999
        ("ddim", 30, 31),
        ("ddim", 36, 38),
        ("lcm", 1, 1),
        ("lcm", 4, 4),
        ("dpm++2m", 1, 1),
        ("dpm++2m", 7, 7),
    ],
)
def test_samplers_and_steps_that_do_not_divide_a_thousand(runtimes, tiny_maps, sampler, steps, made):
    inversion = runtimes["torch"].invert(tiny_maps[:2], sampler=sampler, steps=steps, output_type="float")
    assert inversion.flags.sampler == sampler
    assert inversion.flags.steps == made
    assert inversion.errors == {}
    assert np.isfinite(inversion.images).all()
    assert inversion.images.std() > 0.01


def test_failed_rows_in_every_form(failing):
    assert not failing("uint8").images[1].any()
    assert np.isnan(failing("float").images[1]).all()
    assert failing("torch").images[1].isnan().all()
    assert np.isnan(failing("latent").images[1]).all()
    assert [image is None for image in failing("pil").images] == [False, True, False]
    for output_type in ("uint8", "float", "torch", "pil", "latent"):
        inversion = failing(output_type)
        assert inversion.ok.tolist() == [True, False, True]
        assert list(inversion.errors) == [1]
        assert inversion.latents[[0, 2]].isfinite().all()


@pytest.mark.parametrize("output_type", ["uint8", "float", "torch", "pil"])
def test_to_pil_and_files(failing, tmp_path, output_type):
    inversion = failing(output_type)
    images = inversion.to_pil()
    assert [image is None for image in images] == [False, True, False]
    paths = inversion.save(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["000000.png", "000002.png"]
    for path, row in zip(paths, (0, 2), strict=True):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), np.asarray(images[row]))
    reference = failing("uint8").images
    assert np.array_equal(np.asarray(images[2]), reference[2])

    record = json.loads((tmp_path / "new" / "folder" / "inversion.json").read_text())
    assert [(item["name"], item["seed"]) for item in record["items"]] == [("000000", 8), ("000001", 9), ("000002", 10)]
    assert [bool(item["error"]) for item in record["items"]] == [False, True, False]
    assert record["flags"]["backend"] == "torch"
    assert record["flags"]["recomputed"] == []


def test_files_with_names(failing, tmp_path):
    paths = failing("uint8").save(tmp_path, names=["cat", "dog", "emu"])
    assert [path.name for path in paths] == ["cat.png", "emu.png"]
    with pytest.raises(ArgumentError, match="expected: 3"):
        failing("uint8").save(tmp_path / "other", names=["cat", "dog"])
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_written_is_said_and_not_left_empty(failing, tmp_path):
    inversion = failing("uint8")
    (tmp_path / "file").touch()
    for folder, says in ((tmp_path / "file", "already"), (tmp_path / "file" / "out", "not a folder")):
        with pytest.raises(FileError, match=says) as caught:
            inversion.save(folder)
        assert caught.value.remedy
    with pytest.raises(FileError, match="too long"):
        inversion.save(tmp_path / "new" / "deep", names=["x" * 300] * 3)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_sheet_of_images(failing, runtimes, tiny_maps):
    inversion = failing("uint8")
    sheet = inversion.grid()
    assert sheet.size == (32, 32)
    pixels = np.asarray(sheet)
    assert np.array_equal(pixels[:16, :16], inversion.images[0])
    assert (pixels[:16, 16:] == 127).all()  # the failed one
    assert np.array_equal(pixels[16:, :16], inversion.images[2])
    assert inversion.grid(columns=3).size == (48, 16)
    for empty in (runtimes["torch"].invert([]), failing("latent")):
        with pytest.raises(ArgumentError):
            empty.grid()


def test_latents_are_not_images(failing, tmp_path):
    with pytest.raises(ArgumentError, match="decode"):
        failing("latent").to_pil()
    with pytest.raises(ArgumentError, match="decode"):
        failing("latent").save(tmp_path)


def test_decode_refuses_what_it_cannot_decode(runtimes, failing):
    runtime = runtimes["torch"]
    with pytest.raises(ArgumentError, match=r"\['N', 4, 8, 8\]"):
        runtime.decode(torch.zeros(4, 8, 8))
    with pytest.raises(ArgumentError, match="rows \\[1\\]"):
        runtime.decode(failing("latent").latents)
    with pytest.raises(ArgumentError, match="uint8"):
        runtime.decode(torch.zeros(1, 4, 8, 8), output_type="latent")


def test_flags_tell_what_ran(runtime, tiny_maps):
    flags = runtime.invert(tiny_maps[:2], sampler="lcm", steps=2, guidance_scale=2, batch_size=5).flags
    assert dataclasses.asdict(flags) == {
        "backend": runtime.info["backend"],
        "device": "cpu",
        "precision": "fp32",
        "sampler": "lcm",
        "steps": 2,
        "guidance_scale": 2.0,
        "batch_size": 5,
        "recomputed": (),
    }


def test_info_is_plain_data(runtime, tiny_engine):
    info = json.loads(json.dumps(runtime.info))
    assert info["engine"] == str(tiny_engine)
    assert info["backend"] in ("torch", "onnxruntime")
    assert (info["device"], info["precision"], info["image_size"], info["max_batch"]) == ("cpu", "fp32", 16, 64)
    assert info["features"]["channels"] == 6
    assert info["sampling"] == {"sampler": "ddim", "steps": 3, "guidance_scale": 1.75, "unconditional_strength": 1.0}
    assert info["reasons_against"]["torch"] == info["reasons_against"]["onnxruntime"] == []


def test_progress_goes_to_stderr_alone(runtime, tiny_maps, capfd):
    runtime.invert(tiny_maps[:3], steps=2, progress=True)
    output = capfd.readouterr()
    assert output.out == ""
    assert "inverting" in output.err
    assert "6/6" in output.err
    runtime.invert(tiny_maps[:3], steps=2)
    runtime.warmup()
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")


@pytest.mark.parametrize("layout", FeatureLayout)
def test_warmup_runs_every_graph_without_a_warning(tiny_engine, restage, tmp_path, watch, layout):
    spec = dataclasses.replace(open_engine(tiny_engine).manifest.features, layout=layout, height=None, width=None)
    runtime = Runtime(restage(tiny_engine, tmp_path / "warm.engine", features=spec), backend="torch")
    calls = []
    watch(runtime, lambda graph, inputs: calls.append((graph, len(inputs[0]))))
    runtime.warmup()
    assert {graph for graph, _ in calls} == {"time_embedding", "condition_encoder", "denoiser", "decoder"}
    calls.clear()
    runtime.warmup(batch_size=3, guidance_scale=1.0)
    assert {"denoiser_unguided", "decoder"} <= {graph for graph, rows in calls if rows == 3}
    with pytest.raises(ArgumentError):
        runtime.warmup(0)


def test_every_error_of_a_row_is_one_of_ours(failing):
    assert all(isinstance(error, FeatInvError) for error in failing("uint8").errors.values())
    assert isinstance(failing("uint8").errors[1], NonFiniteFeatureError)

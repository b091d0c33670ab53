"""How a checkpoint says that it was trained, in every place where tools write it, against what the samplers assume."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from featinv_fast.checkpoints import fuse_lora, load, load_base, replace_unet, save
from featinv_fast.checkpoints import training as training_checks
from featinv_fast.checkpoints.reader import HYPER_PARAMETERS, SCHEDULER, YAML, Raw
from featinv_fast.checkpoints.training import check_training, schedule_buffers
from featinv_fast.errors import CheckpointCorruptError, CheckpointMismatchError
from featinv_fast.samplers import lcm
from featinv_fast.samplers.schedule import OFFICIAL_SCHEDULE

BUFFERS = schedule_buffers()
BETAS = BUFFERS["betas"]
OTHERWISE = "trained in another way"
ZERO_SNR = torch.cat([BUFFERS["alphas_cumprod"][:-1], torch.zeros(1, dtype=torch.float64)])


def test_the_samplers_assume_this_schedule():
    torch.testing.assert_close(BETAS, torch.from_numpy(OFFICIAL_SCHEDULE.betas.copy()))
    torch.testing.assert_close(BUFFERS["alphas_cumprod"], torch.from_numpy(OFFICIAL_SCHEDULE.alphas_cumprod.copy()))
    assert training_checks.TRAINING["timestep_scaling"] == (lcm.TIMESTEP_SCALING,)
    assert training_checks.TRAINING["original_inference_steps"] == (lcm.ORIGINAL_INFERENCE_STEPS,)


def raw(tensors=None, metadata=None, **configs):
    return Raw(tensors or {}, metadata or {}, configs)


@pytest.mark.parametrize(
    "config",
    [
        {"prediction_type": "v_prediction"},
        {"prediction_type": "sample"},
        {"prediction_type": None},
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_start": 0.0001},
        {"beta_end": 0.02},
        {"beta_end": "0.012"},
        {"num_train_timesteps": 500},
        {"rescale_betas_zero_snr": True},
        {"trained_betas": [0.1] * 1000},
        {"trained_betas": BETAS[:500].tolist()},
        {"trained_betas": "all"},
        {"timestep_spacing": "trailing"},
        {"timestep_type": "continuous"},
        {"variance_type": "learned_range"},
        {"use_flow_sigmas": True},
        {"use_dynamic_shifting": True},
        {"timestep_scaling": 1.0},
        {"original_inference_steps": 100},
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"_class_name": "EDMEulerScheduler"},
        {"_class_name": "os.system"},
        {"snr_shift_scale": 3.0},
    ],
    ids=lambda config: " ".join(f"{key} {str(value)[:20]}" for key, value in config.items()),
)
def test_another_training_in_a_schedulers_configuration_is_refused(config):
    with pytest.raises(CheckpointMismatchError, match=OTHERWISE) as caught:
        check_training(raw(**{SCHEDULER: config}))
    assert next(iter(config)) in str(caught.value)


def test_every_scheduler_of_the_installed_diffusers_is_taken_with_the_same_training():
    import diffusers

    published = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    for name in training_checks.SCHEDULERS:
        kind = getattr(diffusers, f"{name}Scheduler")
        if getattr(kind, "_backends", None):  # a stand-in for one that needs another package
            continue
        scheduler = kind.from_config(published.config)
        config = json.loads(scheduler.to_json_string())
        check_training(raw(**{SCHEDULER: config}))
        with pytest.raises(CheckpointMismatchError, match=OTHERWISE):
            check_training(raw(**{SCHEDULER: config | {"prediction_type": "v_prediction"}}))


@pytest.mark.parametrize("config", [{"trained_betas": BETAS.tolist()}, {"thresholding": True, "steps_offset": 0}, {}])
def test_the_same_training_said_otherwise_is_taken(config):
    check_training(raw(**{SCHEDULER: config}))


METADATA = [
    {"modelspec.prediction_type": "v"},
    {"modelspec.prediction_type": "v_prediction"},
    {"modelspec.architecture": "stable-diffusion-v2-768-v"},
    {"ss_v_parameterization": "True"},
    {"ss_zero_terminal_snr": "True"},
    {"ss_base_model_version": "sd_v2_768_v"},
]


@pytest.mark.parametrize("metadata", METADATA)
def test_another_training_in_metadata_is_refused_for_every_kind_of_file(tiny, tiny_tensors, tmp_path, metadata):
    save_file(tiny_tensors, tmp_path / "x.safetensors", metadata)
    with pytest.raises(CheckpointMismatchError, match=OTHERWISE):
        load(tmp_path / "x.safetensors")
    stem = "lora_unet_mid_block_resnets_0_conv1"
    lora = {f"{stem}.lora_down.weight": torch.ones(1, 64, 3, 3), f"{stem}.lora_up.weight": torch.ones(64, 1, 1, 1)}
    save_file(lora | {f"{stem}.alpha": torch.ones(())}, tmp_path / "lora.safetensors", metadata)
    with pytest.raises(CheckpointMismatchError, match=OTHERWISE):
        fuse_lora(tiny, tmp_path / "lora.safetensors")


def test_metadata_of_the_same_training_are_taken():
    same = {"modelspec.prediction_type": "epsilon", "modelspec.architecture": "stable-diffusion-v1/lora"}
    kohya = {"ss_v_parameterization": "False", "ss_zero_terminal_snr": "None", "ss_base_model_version": "sd_v1"}
    check_training(raw(metadata=same | kohya | {"ss_min_snr_gamma": "5.0"}))


@pytest.mark.parametrize("marker", ["v_pred", "ztsnr", "zsnr", "model.v_pred", "edm_vpred.sigma_max", "edm_mean"])
def test_tensors_that_mark_another_training_are_refused(tiny_tensors, tmp_path, marker):
    save_file(tiny_tensors | {marker: torch.zeros(0)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointMismatchError, match=OTHERWISE) as caught:
        load(tmp_path / "x.safetensors")
    assert marker in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_stored_schedule_is_taken_in_any_precision(dtype):
    check_training(raw({name: values.to(dtype) for name, values in BUFFERS.items()}))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("betas", torch.linspace(0.0001, 0.02, 1000)),
        ("betas", torch.full((500,), 0.01)),
        ("betas", torch.full((1000,), torch.nan)),
        ("betas", torch.zeros(1000, dtype=torch.int64)),
        ("alphas_cumprod", ZERO_SNR),
        ("alphas_cumprod", ZERO_SNR.half()),
        ("sqrt_alphas_cumprod", ZERO_SNR.sqrt()),
        ("sqrt_one_minus_alphas_cumprod", (1 - ZERO_SNR).sqrt()),
        ("alphas_cumprod", torch.zeros(0)),
    ],
)
def test_another_stored_schedule_is_refused(name, values):
    with pytest.raises(CheckpointMismatchError, match=f"the noise schedule '{name}'"):
        check_training(raw({name: values}))


@pytest.mark.parametrize("place", [HYPER_PARAMETERS, YAML])
@pytest.mark.parametrize(
    "stated",
    [
        {"parameterization": "v"},
        {"timesteps": 500},
        {"linear_end": 0.02},
        {"beta_schedule": "cosine"},
        {"given_betas": [0.1] * 1000},
        {"zero_terminal_snr": True},
    ],
)
def test_another_training_in_hyper_parameters_is_refused(place, stated):
    with pytest.raises(CheckpointMismatchError, match=OTHERWISE) as caught:
        check_training(raw(**{place: stated}))
    assert next(iter(stated)) in str(caught.value)


SAME = {"parameterization": "eps", "timesteps": 1000, "linear_start": 0.00085, "linear_end": 0.012, "given_betas": None}


def test_lightnings_hyper_parameters_are_read(tiny_tensors, tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": tiny_tensors, "hyper_parameters": SAME}, path)
    load(path)
    torch.save({"state_dict": tiny_tensors, "hyper_parameters": SAME | {"parameterization": "v"}}, path)
    with pytest.raises(CheckpointMismatchError, match="hyper-parameter 'parameterization'"):
        load(path)


CONFIGURATION = """
model:
  target: os.system
  params:
    parameterization: "{}"
    linear_start: 8.5e-4
    linear_end: 0.0120
    timesteps: 1_000
    unet_config: !!python/object/apply:os.system ['false']
"""


def test_b7_the_numbers_of_the_yaml_beside_a_file_are_read_and_no_class(tiny_tensors, tmp_path):
    save_file(tiny_tensors, tmp_path / "x.safetensors")
    yaml = tmp_path / "x.yaml"
    yaml.write_text(CONFIGURATION.format("eps"))
    load(tmp_path / "x.safetensors")
    yaml.write_text(CONFIGURATION.format("v"))
    with pytest.raises(CheckpointMismatchError, match=r"\.yaml file's entry 'parameterization'"):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "text", ["model: [", "[" * 90_000, "a: " * 40_000, "\0", "&a [*a]", "model: {params: {? {a: b} : c}}"]
)
def test_b2_a_yaml_that_is_none_is_refused_in_words(tiny_tensors, tmp_path, text):
    save_file(tiny_tensors, tmp_path / "x.safetensors")
    (tmp_path / "x.yaml").write_text(text)
    try:
        load(tmp_path / "x.safetensors")
    except CheckpointCorruptError as error:
        assert "x.yaml" in str(error)  # noqa: PT017 -- some of these are YAML that says nothing


def test_the_scheduler_of_a_pipeline_counts_for_its_unet_and_for_base_models(tiny, tmp_path):
    folder = save(tiny, tmp_path / "x", "diffusers")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rescale_betas_zero_snr": True}))
    for read in (load, lambda path: replace_unet(tiny, path), lambda path: replace_unet(tiny, path / "unet")):
        with pytest.raises(CheckpointMismatchError, match="rescale_betas_zero_snr"):
            read(folder)
    for part in ("controlnet", "condition_encoder"):
        shutil.rmtree(folder / part)
    with pytest.raises(CheckpointMismatchError, match="rescale_betas_zero_snr"):
        load_base(folder)


def test_what_is_saved_says_the_same_training(tiny, tmp_path):
    other = dataclasses.replace(tiny, metadata={"modelspec.prediction_type": "epsilon"})
    assert load(save(other, tmp_path / "y", "diffusers")).config == tiny.config

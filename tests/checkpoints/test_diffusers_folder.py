"""What we save for diffusers loads there and computes the same; what we read from there is checked."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from featinv_fast.checkpoints import load, save
from featinv_fast.checkpoints.diffusers_configs import component_configs
from featinv_fast.checkpoints.diffusers_layout import identity_embedding
from featinv_fast.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError
from featinv_fast.models import FeatInv

TOLERANCE = 5e-6  # relative norm, fp32: summation order


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """The tiny checkpoint in the diffusers layout. Do not change it."""
    return save(tiny, tmp_path_factory.mktemp("diffusers") / "x", "diffusers")


@pytest.fixture
def copy(folder, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(folder, tmp_path / "x")


@pytest.fixture(scope="module")
def model(tiny):
    with torch.device("meta"):
        model = FeatInv(tiny.config)
    model.load_state_dict(tiny.tensors, strict=True, assign=True)
    return model.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = {"latents": (2, 4, 8, 8), "condition": (2, 32, 8, 8), "prompt": (1, 7, 64), "image": (1, 3, 16, 16)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_the_denoiser_computes_the_same_in_diffusers(folder, model, inputs, relative_norm):
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    controlnet = ControlNetModel.from_pretrained(folder / "controlnet", low_cpu_mem_usage=False)
    x, condition, context = inputs["latents"], inputs["condition"], inputs["prompt"].expand(2, -1, -1)
    with torch.no_grad():
        *theirs, middle = controlnet(x, 321, context, controlnet_cond=condition, return_dict=False)
        theirs = [*theirs[0], middle]
        eps = unet(
            x, 321, context, down_block_additional_residuals=theirs[:-1], mid_block_additional_residual=middle
        ).sample
    ours = model.denoiser.controlnet(x, condition, torch.tensor([321.0]), inputs["prompt"])
    assert len(ours) == len(theirs) == model.config.control_count
    for mine, other in zip(ours, theirs, strict=True):
        assert relative_norm(other, mine) < TOLERANCE
    scales = torch.ones(1, model.config.control_count)
    assert relative_norm(eps, model.denoiser(x, condition, torch.tensor([321.0]), inputs["prompt"], scales)) < TOLERANCE


def test_the_autoencoder_computes_the_same_in_diffusers(folder, model, inputs, relative_norm):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder / "vae", low_cpu_mem_usage=False)
    with torch.no_grad():
        posterior = vae.encode(inputs["image"]).latent_dist
        image = vae.decode(inputs["latents"] / vae.config.scaling_factor).sample
    mean, log_variance = model.autoencoder.encoder(inputs["image"])
    assert relative_norm(posterior.mean, mean) < TOLERANCE
    assert relative_norm(posterior.logvar, log_variance) < TOLERANCE
    assert relative_norm(image, model.autoencoder.decode(inputs["latents"])) < TOLERANCE


def test_the_golden_checkpoint_in_diffusers(golden, golden_checkpoint, tmp_path, relative_norm):
    from diffusers import ControlNetModel, UNet2DConditionModel

    path = save(load(golden_checkpoint), tmp_path / "x", "diffusers")
    unet = UNet2DConditionModel.from_pretrained(path / "unet", low_cpu_mem_usage=False)
    controlnet = ControlNetModel.from_pretrained(path / "controlnet", low_cpu_mem_usage=False)
    x, context = golden.inputs["in.latent"], golden.inputs["in.context"].expand(2, -1, -1)
    with torch.no_grad():
        down, middle = controlnet(x, 481, context, controlnet_cond=golden.expected["condition.nchw"], return_dict=False)
        eps = unet(x, 481, context, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample
    assert relative_norm(eps, golden.expected["eps.t481.cond"]) < 2e-5


def test_the_text_encoder_loads_in_transformers(folder, tiny):
    from transformers import CLIPTextModel

    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    state = {name.removeprefix("text_model."): t for name, t in text_encoder.state_dict().items()}
    state.pop("embeddings.position_ids", None)
    assert state.keys() == tiny.text_encoder.keys()
    for name, tensor in tiny.text_encoder.items():
        assert torch.equal(state[name], tensor), name


def test_what_diffusers_saves_is_read(folder, tiny, tmp_path):
    from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    for name, kind in (("unet", UNet2DConditionModel), ("controlnet", ControlNetModel), ("vae", AutoencoderKL)):
        kind.from_pretrained(folder / name, low_cpu_mem_usage=False).save_pretrained(tmp_path / name)
    CLIPTextModel.from_pretrained(folder / "text_encoder").save_pretrained(tmp_path / "text_encoder")
    DDIMScheduler.from_pretrained(folder / "scheduler").save_pretrained(tmp_path / "scheduler")
    shutil.copytree(folder / "condition_encoder", tmp_path / "condition_encoder")
    loaded = load(tmp_path)
    assert loaded.config == tiny.config
    assert loaded.named_tensors().keys() == tiny.named_tensors().keys()
    for name, tensor in tiny.named_tensors().items():
        assert torch.equal(loaded.named_tensors()[name], tensor), name


def test_the_config_of_each_component_is_what_diffusers_takes_for_granted(tiny):
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

    kinds = {"unet": UNet2DConditionModel, "controlnet": ControlNetModel, "vae": AutoencoderKL}
    configs = component_configs(tiny.config)
    for component, kind in kinds.items():
        given = {key: value for key, value in configs[component].items() if not key.startswith("_")}
        with torch.device("meta"):
            full = dict(kind(**given).config)
        # Nothing that we leave out has a default that switches something on.
        rest = {key: value for key, value in full.items() if key not in given and not key.startswith("_")}
        harmless = {"dropout", "addition_embed_type_num_heads", "force_upcast"}
        assert {key for key, value in rest.items() if value not in (None, False)} <= harmless


def test_the_identity_embedding_is_exact(tiny, inputs, relative_norm):
    parts = {name.split("embedding.")[1]: t.double() for name, t in identity_embedding(tiny.config).items()}
    x = inputs["condition"].double() * 10
    hidden = torch.nn.functional.conv2d(x, parts["conv_in.weight"], parts["conv_in.bias"], padding=1)
    hidden = torch.nn.functional.silu(hidden)
    y = torch.nn.functional.conv2d(hidden, parts["conv_out.weight"], parts["conv_out.bias"], padding=1)
    assert relative_norm(y, x) < 1e-15


def test_b4_another_condition_embedding_is_refused(copy):
    file = copy / "controlnet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["controlnet_cond_embedding.conv_in.weight"] = tensors["controlnet_cond_embedding.conv_in.weight"] + 0.1
    save_file(tensors, file)
    with pytest.raises(CheckpointMismatchError, match=r"conv_in\.weight \(not the constant"):
        load(copy)


def test_b4_missing_and_unexpected_tensors_in_a_folder(copy):
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["extra"] = tensors.pop("conv_out.bias")
    save_file(tensors, file)
    with pytest.raises(CheckpointMismatchError, match=r"1 missing: unet\.conv_out\.bias; 1 unexpected: unet\.extra"):
        load(copy)


@pytest.mark.parametrize("missing", ["unet", "controlnet", "vae", "condition_encoder"])
def test_b4_a_folder_without_a_component(copy, missing):
    shutil.rmtree(copy / missing)
    with pytest.raises(CheckpointMismatchError, match=f"missing: {missing}"):
        load(copy)


def test_b4_folders_of_other_kinds(copy, tmp_path):
    shutil.rmtree(copy / "controlnet")
    shutil.rmtree(copy / "condition_encoder")
    (copy / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(CheckpointMismatchError, match="text-to-image base model in the diffusers layout"):
        load(copy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointMismatchError, match="nothing in it"):
        load(tmp_path / "empty")


def test_a_component_without_weights(copy):
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights of the component 'vae'"):
        load(copy)


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("component", "entries"),
    [
        ("unet", {"block_out_channels": [32, 128]}),
        ("unet", {"attention_head_dim": 8}),
        ("unet", {"attention_head_dim": "8"}),
        ("unet", {"cross_attention_dim": 768}),
        ("unet", {"act_fn": "gelu"}),
        ("unet", {"use_linear_projection": True}),
        ("unet", {"addition_embed_type": "text"}),
        ("unet", {"time_cond_proj_dim": 256}),
        ("controlnet", {"layers_per_block": 2}),
        ("controlnet", {"controlnet_conditioning_channel_order": "bgr"}),
        ("controlnet", {"global_pool_conditions": True}),
        ("vae", {"scaling_factor": 0.13025}),
        ("vae", {"scaling_factor": None}),
        ("vae", {"shift_factor": 0.1}),
        ("vae", {"use_quant_conv": False}),
        ("condition_encoder", {"latent_size": 64}),
        ("condition_encoder", {"latent_size": -8}),
        ("condition_encoder", {"feature_channels": 7}),
    ],
)
def test_b6_numbers_that_contradict_the_tensors(copy, component, entries):
    change(copy / component / "config.json", **entries)
    with pytest.raises(
        CheckpointMismatchError, match=f"{component}'s configuration does not fit: '{next(iter(entries))}'"
    ):
        load(copy)


@pytest.mark.parametrize(
    ("component", "entries"),
    [
        ("unet", {"sample_size": 64, "_diffusers_version": "0.6.0", "dual_cross_attention": False, "new_option": None}),
        ("unet", {"attention_head_dim": [4, 4], "layers_per_block": [1, 1]}),
        ("vae", {"sample_size": 512, "force_upcast": True}),
    ],
)
def test_numbers_that_say_the_same_or_nothing(copy, tiny, component, entries):
    change(copy / component / "config.json", **entries)
    assert load(copy).config == tiny.config


def test_b6_without_our_metadata_the_numbers_of_the_configs_stand(copy, tiny):
    file = copy / "condition_encoder" / "model.safetensors"
    save_file(load_file(file), file)
    loaded = load(copy)
    assert loaded.config == tiny.config
    assert loaded.features.backbone is None


@pytest.mark.parametrize("component", ["unet", "controlnet", "vae", "condition_encoder"])
def test_b7_other_classes_are_refused_and_never_instantiated(copy, component):
    change(copy / component / "config.json", _class_name="os.system")
    with pytest.raises(CheckpointMismatchError, match="_class_name"):
        load(copy)


def test_b7_foreign_files_beside_are_not_followed(copy, tiny):
    index = {"_class_name": ["evil", "Pipeline"], "unet": ["evil_module", "EvilClass"], "auto_map": {"a": "evil.py--X"}}
    (copy / "model_index.json").write_text(json.dumps(index))
    (copy / "unet" / "evil_module.py").write_text("raise SystemExit")
    (copy / "v1-inference.yaml").write_text("model: !!python/object/apply:os.system ['false']")
    assert load(copy).config == tiny.config


def test_b7_another_text_encoder_or_training_is_refused(copy):
    change(copy / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler", skip_prk_steps=True)
    load(copy)
    change(copy / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    with pytest.raises(CheckpointMismatchError, match="prediction_type"):
        load(copy)
    shutil.rmtree(copy / "scheduler")
    change(copy / "text_encoder" / "config.json", model_type="t5")
    with pytest.raises(CheckpointMismatchError, match="model_type"):
        load(copy)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_b2_damaged_configs(copy, content):
    (copy / "unet" / "config.json").write_text(content)
    with pytest.raises(CheckpointCorruptError, match=r"config\.json"):
        load(copy)


def test_older_names_of_the_autoencoder_and_the_text_encoder_are_read(copy, tiny):
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(file).items():
        for new, old in older.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        tensors[name] = tensor
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in tensors
    save_file(tensors, file)
    file = copy / "text_encoder" / "model.safetensors"
    save_file(load_file(file) | {"text_model.embeddings.position_ids": torch.arange(7)[None]}, file)
    loaded = load(copy)
    for name, tensor in tiny.named_tensors().items():
        assert torch.equal(loaded.named_tensors()[name], tensor), name

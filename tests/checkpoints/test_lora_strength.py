"""How strong a LoRA is fused: as strong as PEFT's own merge, or not at all."""

from __future__ import annotations

import copy
import json
import logging
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from featinv_fast.checkpoints import fuse_lora, save
from featinv_fast.checkpoints.diffusers_layout import unet_modules
from featinv_fast.checkpoints.peft_config import INERT, REFUSED, SERVED, parse_peft_config
from featinv_fast.errors import (
    ArgumentError,
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
)

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
QUERY = "denoiser.unet.encoder.levels.0.blocks.0.transformer.self_attention.query.weight"
QUERY_LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def unet(tiny, tmp_path_factory):
    """The tiny checkpoint's U-Net in diffusers."""
    from diffusers import UNet2DConditionModel

    folder = save(tiny, tmp_path_factory.mktemp("unet") / "x", "diffusers") / "unet"
    return UNet2DConditionModel.from_pretrained(folder, low_cpu_mem_usage=False)


@pytest.fixture(scope="module")
def peft_adapter(unet):
    """`peft_adapter(folder, **options)`: save a random adapter with PEFT; returns the weights that PEFT merges."""
    from peft import LoraConfig, get_peft_model

    def make(folder, **options):
        config = LoraConfig(**{"r": 4, "target_modules": ATTENTION, "init_lora_weights": "gaussian", **options})
        model = get_peft_model(copy.deepcopy(unet), config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder)
        return model.merge_and_unload().state_dict()

    return make


def assert_adds_what_peft_adds(fused, tiny, merged):
    changed = 0
    for ours, theirs in unet_modules(tiny.config).items():
        name = f"{ours}.weight"
        if name in fused.tensors:
            theirs = merged[f"{theirs.removeprefix('unet.')}.weight"].reshape(tiny.tensors[name].shape)
            torch.testing.assert_close(fused.tensors[name], theirs, rtol=0, atol=1e-5)
            changed += (theirs - tiny.tensors[name]).abs().max() > 1e-3
    assert changed > 20


@pytest.mark.parametrize(
    "options",
    [
        {"lora_alpha": 1},
        {"lora_alpha": 4},
        {"lora_alpha": 16},
        {"lora_alpha": 16, "use_rslora": True},
        {"lora_alpha": 2.5, "rank_pattern": {"to_q": 2, "mid_block.*to_k": 7}, "init_lora_weights": False},
        {"lora_alpha": 8, "alpha_pattern": {"to_v": 32, f"^{QUERY_LAYER}": 0.5, "to_q": 3}, "lora_dropout": 0.1},
        {
            "lora_alpha": 8,
            "use_rslora": True,
            "rank_pattern": {r"attn1\.to_(q|k)": 3},
            "alpha_pattern": {"attn2.to_q": 1},
        },
        {"lora_alpha": 16, "target_modules": ["conv1", "proj_in", "time_emb_proj", "ff.net.2", "to_q"]},
    ],
    ids=["alpha 1", "alpha 4", "alpha 16", "rslora", "ranks", "alphas", "ranks, alphas and rslora", "convolutions"],
)
def test_a_folder_that_peft_saved_adds_what_peft_merges(tiny, peft_adapter, tmp_path, options):
    merged = peft_adapter(tmp_path, **options)
    assert_adds_what_peft_adds(fuse_lora(tiny, tmp_path), tiny, merged)
    assert_adds_what_peft_adds(fuse_lora(tiny, tmp_path / "adapter_model.safetensors"), tiny, merged)


def test_peft_weights_under_another_name_or_as_a_pickle(tiny, peft_adapter, tmp_path):
    merged = peft_adapter(tmp_path / "a", lora_alpha=16)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    torch.save(tensors, tmp_path / "a" / "adapter_model.bin")
    shutil.move(tmp_path / "a" / "adapter_model.safetensors", tmp_path / "a" / "style.safetensors")
    for path in (tmp_path / "a", tmp_path / "a" / "style.safetensors"):
        assert_adds_what_peft_adds(fuse_lora(tiny, path), tiny, merged)
    alone = tmp_path / "alone.safetensors"
    save_file(tensors, alone)
    with pytest.raises(CheckpointMismatchError, match="does not say how strong it is"):
        fuse_lora(tiny, alone)
    assert_adds_what_peft_adds(fuse_lora(tiny, alone, alpha=16), tiny, merged)


def write_adapter(folder, tensors=None, **fields):
    """A small adapter folder; fields of None are left out of its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **fields}
    text = json.dumps({name: value for name, value in config.items() if value is not None})
    (folder / "adapter_config.json").write_text(text)
    save_file(small_lora() if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


def small_lora(stem=f"base_model.model.{QUERY_LAYER}", rank=2, width=32):
    generator = torch.Generator().manual_seed(1)
    return {
        f"{stem}.lora_A.weight": torch.randn(rank, width, generator=generator),
        f"{stem}.lora_B.weight": torch.randn(width, rank, generator=generator),
    }


def added(fused, tiny, tensors):
    """The factor by which up @ down was added to the query layer."""
    down, up = tensors.values()
    change = fused.tensors[QUERY] - tiny.tensors[QUERY]
    return (change * (up @ down)).sum().item() / (up @ down).square().sum().item()


def test_every_field_of_the_installed_peft_is_decided():
    from peft import LoraConfig

    fields = LoraConfig(r=4).to_dict() | {"runtime_config": None}
    assert fields.keys() <= {*SERVED, *INERT, *REFUSED}
    assert len(set(SERVED) | set(INERT) | set(REFUSED)) == len(SERVED) + len(INERT) + len(REFUSED)
    parse_peft_config(json.loads(json.dumps(LoraConfig(r=4).to_dict())))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("peft_type", kind) for kind in ("LOHA", "LOKR", "IA3", "OFT", "BOFT", "ADALORA", "VERA", "XLORA")),
        *(("init_lora_weights", start) for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")),
        ("init_lora_weights", "mica"),
        ("bias", "all"),
        ("bias", "lora_only"),
        *((field, True) for field in ("use_dora", "fan_in_fan_out", "lora_bias", "use_qalora", "ensure_weight_tying")),
        ("modules_to_save", ["conv_out"]),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("target_parameters", ["conv_out.weight"]),
        ("trainable_token_indices", [1, 2]),
        ("megatron_config", {"a": 1}),
        ("arrow_config", {"top_k": 3}),
        ("alora_invocation_tokens", [1]),
        ("a_field_of_tomorrow", 1),
        ("lora_alpha", None),
        ("lora_alpha", "16"),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("r", 0),
        ("r", 2.5),
        ("rank_pattern", {"to_q": 0}),
        ("alpha_pattern", {"to_q": "x"}),
        ("alpha_pattern", [1]),
        ("alpha_pattern", {"(": 1}),
        ("alpha_pattern", {"(a+)+$": 1}),
        ("use_rslora", "yes"),
    ],
)
def test_what_peft_can_write_and_is_not_a_plain_lora_is_refused_by_name(tiny, tmp_path, field, value):
    with pytest.raises(CheckpointMismatchError, match="cannot be fused") as caught:
        fuse_lora(tiny, write_adapter(tmp_path, **{field: value}))
    assert field in str(caught.value)


def test_an_alpha_beyond_all_numbers_is_refused(tiny, tmp_path):
    with pytest.raises(CheckpointCorruptError, match="401 digits"):
        fuse_lora(tiny, write_adapter(tmp_path, lora_alpha=10**400))


def test_a_rank_that_the_matrices_do_not_have_is_refused(tiny, tmp_path):
    with pytest.raises(CheckpointMismatchError, match="rank 3 for"):
        fuse_lora(tiny, write_adapter(tmp_path / "a", r=3))
    with pytest.raises(CheckpointMismatchError, match="rank 5 for"):
        fuse_lora(tiny, write_adapter(tmp_path / "b", rank_pattern={"to_q": 5}))


def test_two_statements_must_agree(tiny, tmp_path):
    tensors = {**small_lora(), f"base_model.model.{QUERY_LAYER}.alpha": torch.tensor(3.0)}
    with pytest.raises(CheckpointMismatchError, match="different strengths"):
        fuse_lora(tiny, write_adapter(tmp_path, tensors))
    tensors[f"base_model.model.{QUERY_LAYER}.alpha"] = torch.tensor(4.0)
    fuse_lora(tiny, write_adapter(tmp_path, tensors))
    header = {"lora_adapter_metadata": json.dumps({"r": 2, "lora_alpha": 5})}
    save_file(small_lora(), tmp_path / "adapter_model.safetensors", header)
    with pytest.raises(CheckpointMismatchError, match="different strengths"):
        fuse_lora(tiny, tmp_path)


@pytest.mark.parametrize(
    "metadata",
    [
        {"unet.r": 2, "unet.lora_alpha": 6},
        {"unet.r": 2, "unet.lora_alpha": 1, "unet.alpha_pattern": {f"^{QUERY_LAYER}": 6}, "text_encoder.lora_alpha": 9},
        {"r": 2, "lora_alpha": 1, "alpha_pattern": {"to_q": 6}},
    ],
)
def test_the_metadata_of_diffusers_tell_the_alpha_of_each_component(tiny, tmp_path, metadata):
    tensors = small_lora(f"unet.{QUERY_LAYER}")
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(metadata)})
    assert added(fuse_lora(tiny, tmp_path / "x.safetensors"), tiny, tensors) == pytest.approx(3.0, rel=1e-4)


KOHYA = {"ss_network_module": "networks.lora", "ss_network_dim": "2", "ss_network_alpha": "6.0"}


@pytest.mark.parametrize(
    ("metadata", "factor"),
    [
        (KOHYA, 3.0),
        (KOHYA | {"ss_network_alpha": "None"}, 1.0),
        (KOHYA | {"ss_network_args": '{"conv_dim": "1", "conv_alpha": "1"}'}, 3.0),
        (KOHYA | {"ss_network_dim": "4"}, None),
        (KOHYA | {"ss_network_args": '{"block_dims": "1,2"}'}, None),
        (KOHYA | {"ss_network_module": "lycoris.kohya"}, None),
        ({"ss_network_module": "networks.lora"}, None),
    ],
)
def test_kohyas_metadata_tell_the_alpha_where_the_tensors_do_not(tiny, tmp_path, metadata, factor):
    tensors = small_lora()
    renamed = dict(
        zip((f"lora_unet_{QUERY_LAYER.replace('.', '_')}.lora_{part}.weight" for part in ("down", "up")),
            tensors.values(), strict=True)
    )  # fmt: skip
    save_file(renamed, tmp_path / "x.safetensors", metadata)
    if factor is None:
        with pytest.raises(CheckpointMismatchError, match="does not say how strong it is"):
            fuse_lora(tiny, tmp_path / "x.safetensors")
    else:
        assert added(fuse_lora(tiny, tmp_path / "x.safetensors"), tiny, tensors) == pytest.approx(factor, rel=1e-4)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"r": 1, "r": 2, "lora_alpha": 2}', '{"lora_alpha": 1e999}', "7", ""])
def test_metadata_that_cannot_be_read_are_refused(tiny, tmp_path, text):
    save_file(small_lora(), tmp_path / "x.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(CheckpointMismatchError, match="cannot be fused"):
        fuse_lora(tiny, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (f"lora_unet_{QUERY_LAYER.replace('.', '_')}.dora_scale", "DoRA"),
        (f"base_model.model.{QUERY_LAYER}.lora_magnitude_vector", "DoRA"),
        ("lora_unet_mid_block_resnets_0_conv1.lora_mid.weight", "Tucker"),
        ("lora_unet_mid_block_resnets_0_conv1.hada_w1_a", "LoHa"),
        ("lora_unet_mid_block_resnets_0_conv1.lokr_w1", "LoKr"),
        ("lora_unet_mid_block_resnets_0_conv1.oft_blocks", "OFT"),
        (f"base_model.model.{QUERY_LAYER}.boft_R", "OFT"),
        (f"base_model.model.{QUERY_LAYER}.ia3_l", r"\(IA\)3"),
        (f"base_model.model.{QUERY_LAYER}.lora_E", "AdaLoRA"),
        (f"base_model.model.{QUERY_LAYER}.lora_B.bias", "bias"),
        ("lora_unet_conv_out.diff_b", "whole differences"),
    ],
)
def test_tensors_of_other_kinds_of_adapters_are_refused_by_name(tiny, tmp_path, key, kind):
    save_file({**small_lora(), key: torch.ones(2)}, tmp_path / "x.safetensors", {"x": "y"})
    with pytest.raises(CheckpointMismatchError, match="cannot be fused") as caught:
        fuse_lora(tiny, tmp_path / "x.safetensors", alpha=2.0)
    assert re.search(kind, str(caught.value))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: t | {"lora_A": torch.ones(0, 32), "lora_B": torch.ones(32, 0)}, CheckpointMismatchError),
        (lambda t: t | {"lora_A": torch.ones(2, 32, dtype=torch.int32)}, CheckpointMismatchError),
        (lambda t: t | {"lora_A": torch.full((2, 32), torch.nan)}, CheckpointCorruptError),
        (lambda t: t | {"lora_A": torch.full((2, 32), 3e38)}, CheckpointCorruptError),
    ],
    ids=["rank 0", "integers", "not a number", "overflow"],
)
def test_matrices_that_add_no_finite_number_are_refused(tiny, tmp_path, change, error):
    stem = f"base_model.model.{QUERY_LAYER}"
    parts = change({key.split(".")[-2]: tensor for key, tensor in small_lora().items()})
    save_file({f"{stem}.{part}.weight": t for part, t in parts.items()}, tmp_path / "x.safetensors", {"x": "y"})
    with pytest.raises(error):
        fuse_lora(tiny, tmp_path / "x.safetensors", alpha=4.0)


@pytest.mark.parametrize("alpha", [torch.tensor(float("nan")), torch.tensor(float("inf")), torch.tensor(1j)])
def test_an_alpha_that_is_no_finite_number_is_refused(tiny, tmp_path, alpha):
    torch.save({**small_lora(), f"base_model.model.{QUERY_LAYER}.alpha": alpha}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError):
        fuse_lora(tiny, tmp_path / "x.bin")


@pytest.mark.parametrize(
    "options", [{"scale": float("nan")}, {"alpha": float("inf")}, {"alpha": "ranks"}, {"scale": float("inf")}]
)
def test_a_strength_that_is_no_number_is_refused(tiny, tmp_path, options):
    with pytest.raises(ArgumentError):
        fuse_lora(tiny, write_adapter(tmp_path), **options)


def test_a_folder_without_an_adapter_is_refused(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="holds no LoRA"):
        fuse_lora(tiny, tmp_path)


def test_nothing_that_a_caller_has_set_in_torch_reaches_the_sum(tiny, tmp_path):
    folder = write_adapter(tmp_path)
    expected = fuse_lora(tiny, folder).tensors[QUERY]
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fused = fuse_lora(tiny, folder)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(fused.tensors[QUERY], expected)


TEXT_LAYER = "encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("stem", "down", "up"),
    [
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "lora_down", "lora_up"),
        ("lora_te_encoder_layers_0_self_attn_q_proj", "lora_down", "lora_up"),
        (f"text_encoder.text_model.{TEXT_LAYER}", "lora_A", "lora_B"),
        (f"text_encoder.text_model.{TEXT_LAYER}", "lora_linear_layer.down", "lora_linear_layer.up"),
        (f"base_model.model.{TEXT_LAYER}", "lora_A", "lora_B"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora", "down", "up"),
    ],
)
def test_layers_of_the_text_encoder_are_fused_into_it(tiny, tmp_path, caplog, stem, down, up):
    a, b = small_lora(width=64).values()
    tensors = {**small_lora(), f"{stem}.{down}.weight": a, f"{stem}.{up}.weight": b}
    save_file(tensors, tmp_path / "x.safetensors")
    with caplog.at_level(logging.WARNING, logger="featinv_fast"):
        fused = fuse_lora(tiny, tmp_path / "x.safetensors", alpha=4.0)
    weight = f"{TEXT_LAYER}.weight"
    torch.testing.assert_close(fused.text_encoder[weight], tiny.text_encoder[weight] + 2 * b @ a)
    assert all(tensor is tiny.text_encoder[name] for name, tensor in fused.text_encoder.items() if name != weight)
    # The stored prompts were made before: nobody may take them for adapted ones.
    (note,) = fused.adaptations
    assert "1 of the text encoder" in note
    assert "do not reach the stored prompts" in note
    assert "stored prompts" in caplog.text


def test_without_a_text_encoder_its_layers_are_left_out_with_a_word(golden_checkpoint, tmp_path, caplog):
    from featinv_fast.checkpoints import load

    golden = load(golden_checkpoint)
    a, b = small_lora(width=768).values()
    stem = "lora_te_text_model_encoder_layers_11_self_attn_q_proj"
    save_file({**small_lora(), f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}, tmp_path / "x.safetensors")
    with caplog.at_level(logging.WARNING, logger="featinv_fast"):
        fused = fuse_lora(golden, tmp_path / "x.safetensors", alpha=4.0)
    assert not torch.equal(fused.tensors[QUERY], golden.tensors[QUERY])
    assert "its 1 layers of the text encoder do not reach the stored prompts" in fused.adaptations[0]
    assert "stored prompts" in caplog.text

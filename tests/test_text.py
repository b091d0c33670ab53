import json
import sys

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from featinv_fast.errors import CheckpointMismatchError, MissingPackageError, TextError
from featinv_fast.text import EMPTY_PROMPT, OFFICIAL_PROMPT, TRAINING_PROMPT, encode_prompt, prompt_ids

BYTES = [chr(i) for i in range(33, 127)]
MERGES = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
VOCABULARY = [
    *BYTES,
    *(f"{c}</w>" for c in BYTES),
    *("".join(pair) for pair in MERGES),
    "<|startoftext|>",
    "<|endoftext|>",
]
IDS = {token: i for i, token in enumerate(VOCABULARY)}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = CLIPTextConfig(
        hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2, vocab_size=49408
    )
    model = CLIPTextModel(config).eval()
    for parameter in model.parameters():  # its own initialisation has zero biases and unit norms, which hide mistakes
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def state(model):
    return {name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}


@pytest.fixture
def folder(tmp_path):
    """A tokenizer in the two files of CLIP, with a vocabulary of ASCII bytes and two words."""
    (tmp_path / "vocab.json").write_text(json.dumps(IDS))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in MERGES))
    return tmp_path


@pytest.fixture
def tokenizer_json(tmp_path):
    """The same as a tokenizer.json that adds its own start and end, cuts at five tokens and pads."""
    tokenizer = Tokenizer(models.BPE(IDS, MERGES, unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+"), behavior="removed", invert=True)
    start, end = ("<|startoftext|>", IDS["<|startoftext|>"]), ("<|endoftext|>", IDS["<|endoftext|>"])
    tokenizer.post_processor = processors.BertProcessing(end, start)
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9, pad_id=0)
    path = tmp_path / "own" / "tokenizer.json"
    path.parent.mkdir()
    tokenizer.save(str(path))
    return path


def test_the_official_ids():
    text = [320, 1400, 268, 3027, 267, 12609, 267, 537, 4774, 2867]
    assert prompt_ids(TRAINING_PROMPT) == [49406, *text, *[49407] * 66]
    assert prompt_ids(OFFICIAL_PROMPT) == [49406, *text, 267, *[49407] * 65]
    assert prompt_ids(EMPTY_PROMPT) == [49406, *[49407] * 76]
    assert OFFICIAL_PROMPT == TRAINING_PROMPT + ", " + EMPTY_PROMPT


def test_case_and_white_space_do_not_matter():
    assert prompt_ids(f"  {TRAINING_PROMPT.upper()},\n") == prompt_ids(OFFICIAL_PROMPT)
    assert prompt_ids(" \t") == prompt_ids(EMPTY_PROMPT)


@pytest.mark.parametrize("prompt", [OFFICIAL_PROMPT, TRAINING_PROMPT, EMPTY_PROMPT])
def test_embeddings_equal_transformers(model, state, prompt):
    with torch.no_grad():
        expected = model(torch.tensor([prompt_ids(prompt)])).last_hidden_state
    embedding = encode_prompt(prompt, state)
    assert embedding.shape == (1, 77, 128)
    assert embedding.dtype == torch.float32
    assert not embedding.requires_grad
    assert (embedding - expected).norm() / expected.norm() < 2e-6


def test_half_precision_weights_and_position_ids_are_read(model, state):
    halved = {name: tensor.half() for name, tensor in state.items()}
    widened = {name: tensor.float() for name, tensor in halved.items()}
    halved["embeddings.position_ids"] = torch.arange(77)[None]
    assert torch.equal(encode_prompt(OFFICIAL_PROMPT, halved), encode_prompt(OFFICIAL_PROMPT, widened))


def test_other_prompts_need_a_tokenizer(state):
    with pytest.raises(TextError, match="needs a tokenizer") as caught:
        encode_prompt("a cat", state)
    assert "--tokenizer" in caught.value.message(command_line=True)
    assert "which work without" in str(caught.value)


def test_a_folder_of_vocabulary_and_merges(folder):
    for prompt in ("A cat", "dog's  CAT, catdog!", ""):
        reference = CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
        expected = reference(prompt, padding="max_length", max_length=20)["input_ids"]
        assert prompt_ids(prompt, tokenizer=folder, length=20) == expected
    end = IDS["<|endoftext|>"]
    assert prompt_ids("cat", tokenizer=str(folder), length=5) == [IDS["<|startoftext|>"], IDS["cat</w>"], end, end, end]


def test_a_tokenizer_json_neither_cuts_nor_pads_by_itself(tokenizer_json):
    start, end = IDS["<|startoftext|>"], IDS["<|endoftext|>"]
    expected = [start, *[IDS["cat</w>"]] * 6, end, end]
    assert prompt_ids("cat " * 6, tokenizer=tokenizer_json, length=9) == expected
    assert prompt_ids("cat " * 6, tokenizer=tokenizer_json.parent, length=9) == expected


def test_prompts_are_never_cut(folder, state):
    assert prompt_ids("cat " * 75, tokenizer=folder)[-1] == IDS["<|endoftext|>"]
    with pytest.raises(TextError, match=r"(?s)78 tokens.*at most 77"):
        encode_prompt("cat " * 76, state, tokenizer=folder)
    with pytest.raises(TextError, match=r"(?s)13 tokens.*at most 12"):
        prompt_ids(OFFICIAL_PROMPT, length=12)


def test_a_given_tokenizer_is_used_for_every_prompt(folder):
    assert prompt_ids(EMPTY_PROMPT, tokenizer=folder, length=3) == [IDS["<|startoftext|>"], *[IDS["<|endoftext|>"]] * 2]


def test_tokenizers_that_cannot_be_used(tmp_path):
    with pytest.raises(TextError, match="no tokenizer"):
        prompt_ids("cat", tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TextError, match="cannot be read"):
        prompt_ids("cat", tokenizer=tmp_path)
    Tokenizer(models.WordLevel({"cat": 0}, unk_token="cat")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TextError, match="not CLIP's tokenizer"):
        prompt_ids("cat", tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps({"c": 0, "<|endoftext|>": 1}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(TextError, match="not CLIP's tokenizer"):
        prompt_ids("cat", tokenizer=tmp_path)


def test_without_the_tokenizers_package_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingPackageError, match=r"featinv-fast\[text\]"):
        prompt_ids("cat", tokenizer=folder)


def test_b4_text_encoders_that_do_not_fit(state):
    def changed(**changes):
        return {name: tensor for name, tensor in {**state, **changes}.items() if tensor is not None}

    fc2 = "encoder.layers.1.mlp.fc2.weight"
    for wrong, message in [
        (changed(**{fc2: None}), rf"1 missing \['{fc2}'\], 0 unexpected"),
        (changed(**{"text_projection.weight": torch.zeros(1)}), r"1 unexpected \['text_projection.weight'\]"),
        (changed(**{fc2: torch.zeros(128, 191)}), rf"1 of another shape \['{fc2} \[128, 191\]'\]"),
        ({}, "4 missing"),
        ({name: tensor for name, tensor in state.items() if "layers" not in name}, "0 layers"),
    ]:
        with pytest.raises(CheckpointMismatchError, match=message):
            encode_prompt(EMPTY_PROMPT, wrong)


def test_b4_a_vocabulary_without_the_prompt(state):
    small = {**state, "embeddings.token_embedding.weight": state["embeddings.token_embedding.weight"][:1000]}
    with pytest.raises(TextError, match="49407"):
        encode_prompt(EMPTY_PROMPT, small)

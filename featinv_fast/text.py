"""Prompts -> constant embeddings.

A prompt never changes while images are made, so it is embedded once and stored. The encoder is CLIP's text transformer
(arXiv 2103.00020) as Stable Diffusion 1 uses it: the last hidden states after the final norm, of all 77 positions,
padded with the end token and without a padding mask. It is written out here because it is short, needs no package whose
parameter names change between versions, and reads the checkpoint's tensors in place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from featinv_fast.errors import CheckpointMismatchError, MissingPackageError, TextError

# What the official code asks for when it samples: the prompt, ", " and an added prompt that is empty by default.
OFFICIAL_PROMPT = "a high-quality, detailed, and professional image, "
TRAINING_PROMPT = "a high-quality, detailed, and professional image"
EMPTY_PROMPT = ""

_START, _END = "<|startoftext|>", "<|endoftext|>"
_START_ID, _END_ID = 49406, 49407
# CLIP's byte-pair encoding: a, high, -, quality, ",", detailed, ",", and, professional, image.
_TRAINING_IDS = (320, 1400, 268, 3027, 267, 12609, 267, 537, 4774, 2867)
_KNOWN_IDS = {EMPTY_PROMPT: (), TRAINING_PROMPT: _TRAINING_IDS, OFFICIAL_PROMPT.strip(): (*_TRAINING_IDS, 267)}

_HEAD_CHANNELS = 64  # of every published CLIP text encoder
_LAYER_KEY = re.compile(r"encoder\.layers\.(\d+)\.")


def prompt_ids(prompt: str, *, tokenizer: str | Path | None = None, length: int = 77) -> list[int]:
    """The CLIP token ids of `prompt`: start, text, and end tokens up to `length`.

    Args:
        prompt: any text with a tokenizer; without one the official prompts and the empty prompt.
        tokenizer: a `tokenizer.json`, or a folder with one or with `vocab.json` and `merges.txt`.
        length: the number of positions of the text encoder.

    Raises:
        TextError: the prompt needs a tokenizer, the tokenizer cannot be used, or the prompt is too long.
        MissingPackageError: a tokenizer is given but the tokenizers package is not installed.
    """
    if tokenizer is not None:
        start, ids, end = _tokenize(prompt, Path(tokenizer))
    else:
        # CLIP ignores case and the amount of white space.
        known = _KNOWN_IDS.get(" ".join(prompt.lower().split()))
        if known is None:
            raise TextError(
                "this prompt needs a tokenizer",
                given=repr(prompt),
                expected=f"{OFFICIAL_PROMPT!r}, {TRAINING_PROMPT!r} or the empty prompt, which work without",
                remedy="pass CLIP's tokenizer.json, or a folder with vocab.json and merges.txt, as tokenizer",
                command_remedy="name it with --tokenizer, or the folder that holds it",
            )
        start, ids, end = _START_ID, list(known), _END_ID
    if len(ids) + 2 > length:
        raise TextError(
            "the prompt is too long",
            given=f"{len(ids) + 2} tokens with start and end",
            expected=f"at most {length}",
            remedy="shorten the prompt; it is never cut silently",
        )
    return [start, *ids, *[end] * (length - 1 - len(ids))]


@torch.no_grad()
def encode_prompt(prompt: str, text_state: Mapping[str, Tensor], *, tokenizer: str | Path | None = None) -> Tensor:
    """The embedding [1, T, D] of `prompt` by the CLIP text encoder of a checkpoint, float32 on the CPU.

    Args:
        prompt: see `prompt_ids`.
        text_state: the encoder's tensors under Hugging Face's names without the `text_model.` prefix, of any
            floating-point type; T and D (77 and 768 in official models) are their number of positions and width.
        tokenizer: see `prompt_ids`.

    Raises:
        CheckpointMismatchError: tensors are missing, unexpected or of another shape.
        TextError, MissingPackageError: see `prompt_ids`; TextError also when the encoder lacks the prompt's tokens.
    """
    layers = _checked_layers(text_state)
    state = {name: tensor.detach().cpu() for name, tensor in text_state.items()}
    positions = state["embeddings.position_embedding.weight"].float()  # [T, D]
    vocabulary = state["embeddings.token_embedding.weight"]  # [V, D]
    ids = prompt_ids(prompt, tokenizer=tokenizer, length=len(positions))
    if max(ids) >= len(vocabulary):
        raise TextError(
            "the text encoder does not know a token of the prompt",
            given=f"token {max(ids)}",
            expected=f"tokens below {len(vocabulary)}",
            remedy="pass the tokenizer that this text encoder was trained with",
        )
    hidden = vocabulary[ids].float() + positions  # [T, D]
    for i in range(layers):
        hidden = _layer(hidden, state, f"encoder.layers.{i}")
    return _norm(hidden, state, "final_layer_norm")[None]  # [1, T, D]


def _layer(hidden: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    """A pre-norm transformer layer with causal attention and CLIP's sigmoid approximation of GELU; [T, D]."""
    normed = _norm(hidden, state, f"{name}.layer_norm1")
    query, key, value = (
        _linear(normed, state, f"{name}.self_attn.{part}").view(1, len(hidden), -1, _HEAD_CHANNELS).transpose(1, 2)
        for part in ("q_proj", "k_proj", "v_proj")
    )  # [1, heads, T, 64]
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)[0].transpose(0, 1).flatten(1)  # [T, D]
    hidden = hidden + _linear(attended, state, f"{name}.self_attn.out_proj")
    inner = _linear(_norm(hidden, state, f"{name}.layer_norm2"), state, f"{name}.mlp.fc1")
    return hidden + _linear(inner * torch.sigmoid(1.702 * inner), state, f"{name}.mlp.fc2")


def _linear(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    return F.linear(x, state[f"{name}.weight"].float(), state[f"{name}.bias"].float())


def _norm(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"].float(), state[f"{name}.bias"].float(), eps=1e-5)


def _checked_layers(state: Mapping[str, Tensor]) -> int:
    """The number of layers, after comparing every name and shape with what such an encoder has."""
    given = {name: tuple(tensor.shape) for name, tensor in state.items() if name != "embeddings.position_ids"}
    layers = 1 + max((int(match[1]) for name in given if (match := _LAYER_KEY.match(name))), default=-1)
    width = given.get("final_layer_norm.weight", (0,))[0]
    expected = _expected_shapes(
        layers,
        width=width,
        inner=given.get("encoder.layers.0.mlp.fc1.weight", (0,))[0],
        vocabulary=given.get("embeddings.token_embedding.weight", (0,))[0],
        positions=given.get("embeddings.position_embedding.weight", (0,))[0],
    )
    missing = sorted(expected.keys() - given.keys())
    unexpected = sorted(given.keys() - expected.keys())
    misshapen = [
        f"{name} {list(given[name])}"
        for name in sorted(expected.keys() & given.keys())
        if given[name] != expected[name]
    ]
    if missing or unexpected or misshapen or not layers or width % _HEAD_CHANNELS:
        raise CheckpointMismatchError(
            "the text encoder's tensors are not those of a CLIP text transformer",
            given=f"{len(missing)} missing {missing[:10]}, {len(unexpected)} unexpected {unexpected[:10]}, "
            f"{len(misshapen)} of another shape {misshapen[:10]}, {layers} layers of width {width}",
            expected=f"one layer or more, of a width that is a multiple of {_HEAD_CHANNELS}",
            remedy="use a checkpoint that carries its prompts' embeddings or a whole CLIP text encoder",
        )
    return layers


def _expected_shapes(
    layers: int, *, width: int, inner: int, vocabulary: int, positions: int
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.token_embedding.weight": (vocabulary, width),
        "embeddings.position_embedding.weight": (positions, width),
        "final_layer_norm.weight": (width,),
        "final_layer_norm.bias": (width,),
    }
    linears = {f"self_attn.{part}": (width, width) for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
    linears |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    for i in range(layers):
        name = f"encoder.layers.{i}"
        for part, (rows, columns) in linears.items():
            shapes[f"{name}.{part}.weight"] = (rows, columns)
            shapes[f"{name}.{part}.bias"] = (rows,)
        for part in ("layer_norm1", "layer_norm2"):
            shapes[f"{name}.{part}.weight"] = shapes[f"{name}.{part}.bias"] = (width,)
    return shapes


def _tokenize(prompt: str, path: Path) -> tuple[int, list[int], int]:
    """The ids of the start token, the prompt's text and the end token."""
    try:
        import tokenizers
    except ImportError as error:
        raise MissingPackageError(
            "reading a tokenizer needs the tokenizers package", remedy="pip install 'featinv-fast[text]'"
        ) from error
    file = path / "tokenizer.json" if path.is_dir() else path
    pair = (path / "vocab.json", path / "merges.txt")
    try:
        if file.is_file():
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        elif all(part.is_file() for part in pair):
            tokenizer = _clip_tokenizer(tokenizers, *pair)
        else:
            raise TextError(
                "there is no tokenizer",
                given=path,
                expected="a tokenizer.json, or a folder with one or with vocab.json and merges.txt",
                remedy="check the path",
            )
    except TextError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions for files it cannot parse
        raise TextError(
            "the tokenizer cannot be read",
            given=f"{path}: {error}",
            expected="CLIP's tokenizer",
            remedy="download the tokenizer.json of the checkpoint's text encoder again",
        ) from error
    start, end = (tokenizer.token_to_id(token) for token in (_START, _END))
    if start is None or end is None:
        raise TextError(
            "this is not CLIP's tokenizer",
            given=path,
            expected=f"tokens {_START} and {_END}",
            remedy="take the tokenizer.json of the checkpoint's text encoder",
        )
    # A saved tokenizer may cut and pad by itself; the length is checked and filled by the caller instead.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return start, tokenizer.encode(prompt, add_special_tokens=False).ids, end


def _clip_tokenizer(tokenizers: Any, vocabulary: Path, merges: Path) -> Any:
    """CLIP's tokenizer from its two original files: lower case, words by pattern, then byte-pair encoding."""
    model = tokenizers.models.BPE.from_file(str(vocabulary), str(merges), unk_token=_END, end_of_word_suffix="</w>")
    tokenizer = tokenizers.Tokenizer(model)
    normalizers, splitters = tokenizers.normalizers, tokenizers.pre_tokenizers
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = tokenizers.Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = splitters.Sequence(
        [splitters.Split(words, behavior="removed", invert=True), splitters.ByteLevel(add_prefix_space=False)]
    )
    # Special only if the vocabulary has them: adding would invent ids for a vocabulary that is not CLIP's.
    tokenizer.add_special_tokens([token for token in (_START, _END) if tokenizer.token_to_id(token) is not None])
    return tokenizer

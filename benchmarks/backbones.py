"""What maps vision models of all families give, each held against its own library: the table of docs/backbones.md.

    python benchmarks/backbones.py [--out docs/backbones.md] [NAME ...]

Every model is opened with random weights as `featinv features --backbone NAME --backbone-weights random:0` opens it.
One image goes through ours and through the library's own ways (timm: `forward_features` and `forward_intermediates`;
torchvision and transformers: a hook on the module), and the largest difference is part of the table. Models of
transformers are made from configurations written into a temporary folder. Exit code 1 where a model is refused that is
not known to be, or a map is not the library's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from featinv_fast.errors import FeatInvError
from featinv_fast.features import Backbone, normalise, open_backbone

TIMM = (
    "convnext_tiny.fb_in22k_ft_in1k",
    "convnextv2_atto.fcmae_ft_in1k",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "swinv2_tiny_window8_256.ms_in1k",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_base_patch16_siglip_224.webli",
    "vit_medium_patch16_reg4_gap_256.sbb_in12k_ft_in1k",
    "deit_tiny_distilled_patch16_224.fb_in1k",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
    "eva02_tiny_patch14_224.mim_in22k",
    "beit_base_patch16_224.in22k_ft_in22k_in1k",
    "maxvit_tiny_tf_224.in1k",
    "pvt_v2_b0.in1k",
    "efficientnet_b0.ra_in1k",
    "tf_efficientnet_lite0.in1k",
    "regnety_002.pycls_in1k",
    "resnet50.a1_in1k",
    "mobilenetv3_large_100.ra_in1k",
    "hiera_tiny_224.mae_in1k_ft_in1k",
    "nextvit_small.bd_in1k",
    "fastvit_t8.apple_in1k",
    "vgg11.tv_in1k",
    "densenet121.ra_in1k",
    "inception_next_atto.sail_in1k",
    "mambaout_femto.in1k",
    "poolformer_s12.sail_in1k",
    "mixer_s16_224",
    "edgenext_xx_small.in1k",
    "davit_tiny.msft_in1k",
    "levit_128.fb_dist_in1k",
    "xcit_nano_12_p16_224.fb_in1k",
)
TORCHVISION = ("resnet18", "convnext_tiny", "swin_v2_t", "vit_b_16", "mobilenet_v3_small", "densenet121")
# Of transformers: the class of the configuration, and what it is made with.
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2-with-registers": (
        "Dinov2WithRegistersConfig",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 112, "patch_size": 14},
    ),
    "siglip": (
        "SiglipVisionConfig",
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 96,
            "patch_size": 16,
        },
    ),
    "convnext": ("ConvNextConfig", {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1], "image_size": 128}),
    "swin": (
        "SwinConfig",
        {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "image_size": 56, "window_size": 7},
    ),
}
# A module of one's own, as a user writes it.
OWN_MODULE = """
    import torch

    def own_network():
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 4, 4), torch.nn.GELU(), torch.nn.Conv2d(16, 32, 2, 2))
        network.input_size, network.mean, network.std = 64, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        return network
"""
HEAD = """# Which backbones

What `featinv features --backbone NAME --backbone-weights random:0` says of models of many families at the size they
were published for, made by `python benchmarks/backbones.py`. "off by" is the largest difference between our map and the
library's own, of one random image: with timm `forward_features` (and, rearranged, `forward_intermediates`), with
torchvision, transformers and modules of one's own a hook. Models of transformers and the own module are small ones made
for this table.

| backbone | layer | layout | map | prefix tokens | image size | off by |
|---|---|---|---|---|---|---|
"""


class Line(NamedTuple):
    """What a row of the table says; `reason` where the model is refused."""

    name: str
    backbone: Backbone | None
    off_by: float
    reason: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Look at the models, write the table; 1 where one is wrong."""
    parser = argparse.ArgumentParser(description="the table of docs/backbones.md")
    parser.add_argument("names", nargs="*", help="these models alone, printed")
    parser.add_argument("--out", type=Path, help="where the table of all is written")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        places = dict(_models(Path(folder)))
        chosen = options.names or list(places)
        lines = []
        for name in chosen:
            lines.append(_look(name, places.get(name, name)))
            print(_cells(lines[-1]), file=sys.stderr)
    if options.out is not None:
        options.out.write_text(HEAD + "".join(f"{_cells(line)}\n" for line in lines))
    return int(any(line.reason or line.off_by > 1e-6 for line in lines))


def _models(folder: Path) -> Iterator[tuple[str, str]]:
    """How the table calls a model -> how it is opened here."""
    yield from ((name, name) for name in TIMM)
    yield from ((name, name) for name in (f"torchvision:{name}" for name in TORCHVISION))
    import transformers

    for name, (kind, stated) in TRANSFORMERS.items():
        place = folder / name
        getattr(transformers, kind)(**stated).save_pretrained(place)
        colours = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": stated["image_size"]}}
        (place / "preprocessor_config.json").write_text(json.dumps(colours))
        yield f"hf:{name} (folder)", f"hf:{place}"
    (folder / "own_networks.py").write_text(textwrap.dedent(OWN_MODULE))
    sys.path.append(str(folder))
    yield "own_networks:own_network", "own_networks:own_network"


def _look(name: str, opened_as: str) -> Line:
    try:
        backbone = open_backbone(opened_as, weights="random:0")
    except FeatInvError as error:
        return Line(name, None, 0.0, str(error).replace("\n", "; "))
    size = backbone.input_size
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    ours = backbone(pixels)
    with torch.no_grad():
        theirs = list(_own_ways(backbone, pixels, ours))
    return Line(name, backbone, max(float((one - other).abs().max()) for one, other in theirs), "")


def _own_ways(backbone: Backbone, pixels: Tensor, ours: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of our map and the library's, in the same arrangement."""
    model = backbone.model
    if hasattr(model, "forward_features"):
        yield ours, model.forward_features(pixels)
        plain = normalise(ours, backbone.spec, layout=backbone.spec.layout)  # [1, C, H, W]
        # Before and after the last norm: one of them is ours; some models count what comes before a last convolution.
        same = [one for one in backbone.network.arranged("final", pixels) if one.shape == plain.shape]
        if same:
            yield plain, min(same, key=lambda one: float((one - plain).abs().max()))
        return
    if backbone.spec.layer in backbone.network.counted:
        yield ours, model(pixels).last_hidden_state
        return
    seen: list[Tensor] = []
    module = dict(model.named_modules())[backbone.network.path(backbone.spec.layer or "final")]
    # What follows may change the map in its place.
    hook = module.register_forward_hook(lambda *given: seen.append(given[2].clone()))
    model(pixels)
    hook.remove()
    yield ours, seen[0]


def _cells(line: Line) -> str:
    if line.backbone is None:
        return f"| {line.name} | | | | | | {line.reason} |"
    spec = line.backbone.spec
    prefix = "" if spec.prefix_tokens is None else str(spec.prefix_tokens)
    form = f"{spec.channels} x {spec.height} x {spec.width}"
    return f"| {line.name} | {spec.layer} | {spec.layout} | {form} | {prefix} | {spec.input_size} | {line.off_by:.0e} |"


if __name__ == "__main__":
    sys.exit(main())

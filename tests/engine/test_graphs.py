import pytest

from featinv_fast.config import FeatureSpec, ModelConfig
from featinv_fast.engine import Dim, GraphSpec, TensorSpec, graph_specs
from featinv_fast.errors import ArgumentError, ConfigError

OFFICIAL = ModelConfig()
FEATURES = FeatureSpec(channels=1024)


def specs(model: ModelConfig = OFFICIAL, features: FeatureSpec = FEATURES, **sizes: int) -> dict[str, GraphSpec]:
    return graph_specs(model, features, **({"time_bias_size": 23_040, "max_batch": 8, "optimal_batch": 4} | sizes))


def test_graphs_of_the_official_model() -> None:
    shapes = {
        name: ({tensor.name: tensor.shape for tensor in spec.inputs}, spec.output.name, spec.output.shape)
        for name, spec in specs().items()
    }
    latents, condition = ("batch", 4, 32, 32), ("batch", 320, 32, 32)
    assert shapes == {
        "condition_encoder": ({"features": ("batch", 1024, "height", "width")}, "condition", condition),
        "time_embedding": ({"timesteps": ("steps",)}, "time_bias", ("steps", 23_040)),
        "denoiser": (
            {
                "latents": latents,
                "condition": condition,
                "time_bias": (23_040,),
                "guidance_scale": (),
                "control_scales": (2, 13),
            },
            "eps",
            latents,
        ),
        "denoiser_unguided": (
            {"latents": latents, "condition": condition, "time_bias": (23_040,), "control_scales": (1, 13)},
            "eps",
            latents,
        ),
        "decoder": ({"latents": latents}, "image", ("batch", 3, 256, 256)),
    }


def test_every_tensor_is_float32() -> None:
    for spec in specs().values():
        assert {tensor.dtype for tensor in (*spec.inputs, spec.output)} == {"float32"}


def test_a_guidance_embedding_adds_an_input() -> None:
    spec = specs(ModelConfig(guidance_embedding_channels=256))["time_embedding"]
    assert spec.input_names == ("timesteps", "guidance")
    assert spec.profile("max") == {"timesteps": (1000,), "guidance": (1000,)}


def test_a_known_feature_size_is_static() -> None:
    spec = specs(features=FeatureSpec(channels=1024, height=9, width=7))["condition_encoder"]
    assert spec.inputs[0].shape == ("batch", 1024, 9, 7)
    assert [dim.name for dim in spec.dims] == ["batch"]


def test_axes_and_profiles_of_the_condition_encoder() -> None:
    spec = specs()["condition_encoder"]
    assert spec.dynamic_axes == {"features": {0: "batch", 2: "height", 3: "width"}, "condition": {0: "batch"}}
    assert spec.profile("min") == {"features": (1, 1024, 1, 1)}
    assert spec.profile("opt") == {"features": (4, 1024, 16, 16)}
    assert spec.profile("max") == {"features": (8, 1024, 128, 128)}
    assert spec.input_shapes({"batch": 3, "width": 9}) == {"features": (3, 1024, 16, 9)}


def test_scalars_and_rows_have_no_dynamic_axes() -> None:
    axes = specs()["denoiser"].dynamic_axes
    assert axes["guidance_scale"] == axes["time_bias"] == axes["control_scales"] == {}
    assert axes["latents"] == axes["condition"] == axes["eps"] == {0: "batch"}


def test_every_profile_fits_its_graph_and_sizes_its_output() -> None:
    for spec in specs().values():
        for which in ("min", "opt", "max"):
            assert spec.check(spec.profile(which)) == []
    denoiser = specs()["denoiser"]
    assert denoiser.output_shape(denoiser.profile("max")) == (8, 4, 32, 32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"latents": (2, 4, 32, 33)}, "axis 3 of latents is 33, expected 32"),
        ({"latents": (3, 4, 32, 32)}, "batch is 3 in latents but 2 in condition"),
        ({"latents": (4, 32, 32)}, "latents has 3 axes, expected 4"),
        ({"guidance_scale": (1,)}, "guidance_scale has 1 axes, expected 0"),
        ({"noise": (1,)}, "noise is not an input"),
        ({"latents": (9, 4, 32, 32), "condition": (9, 320, 32, 32)}, "batch is 9, expected 1 to 8"),
        ({"latents": (0, 4, 32, 32), "condition": (0, 320, 32, 32)}, "batch is 0, expected 1 to 8"),
    ],
)
def test_check_gives_the_reason(change: dict[str, tuple[int, ...]], reason: str) -> None:
    spec = specs()["denoiser"]
    shapes = spec.input_shapes({"batch": 2}) | change
    assert spec.check(shapes) == [reason]
    with pytest.raises(ArgumentError, match="do not fit the graph denoiser"):
        spec.output_shape(shapes)


def test_check_gives_every_reason() -> None:
    assert specs()["decoder"].check({"eps": (1,)}) == ["eps is not an input", "latents is missing"]


@pytest.mark.parametrize("sizes", [{"max_batch": 0}, {"max_batch": 2}, {"optimal_batch": 0}, {"time_bias_size": 0}])
def test_impossible_sizes_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        specs(**sizes)


def test_features_of_another_model_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"512 channels\n  expected: 1024 channels"):
        specs(features=FeatureSpec(channels=512))


def test_a_graph_must_know_the_size_of_its_output() -> None:
    with pytest.raises(AssertionError, match="output's size is not known"):
        GraphSpec("g", (TensorSpec("x", ("batch",)),), TensorSpec("y", ("rows",)), (Dim("batch", 1, 1, 2),))

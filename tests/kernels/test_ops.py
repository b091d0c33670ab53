"""What holds for every op of the registry, at every case: maths, schema, graphs."""

from pathlib import Path

import numpy as np
import pytest
import torch

import featinv_kernels
from featinv_kernels import OPS

CPU = torch.device("cpu")
# With TRITON_INTERPRET=1 the kernels compute with NumPy, which warns of NaN and infinity; so does the oracle.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
EVERY_CASE = [pytest.param(op, case, id=f"{op.name}-{case.label}") for op in OPS.values() for case in op.small_cases]
EVERY_OP = [pytest.param(op, id=op.name) for op in OPS.values()]
# Half the distance between 1 and the next fp32 number: the largest relative error of one operation.
ROUNDING = 2.0**-24


def sampler_step_oracle(inputs):
    """[(value, largest error)] of x' and h' in float64; the error is that of at most six roundings of the terms."""
    x, eps, table, z, h = (
        None if inputs[name] is None else inputs[name].double().numpy()
        for name in ("latents", "eps", "coefficients", "noise", "history")
    )
    new = [table[0] * x, table[1] * eps]
    new += [table[2] * z] if z is not None else []
    new += [table[3] * h] if h is not None else []
    old = [table[4] * x, table[5] * eps]
    return [(sum(terms), 6 * ROUNDING * sum(np.abs(term) for term in terms)) for terms in (new, old)]


def to_uint8_oracle(inputs):
    """The bytes from float64; one off is right only where fp32 cannot tell the value from the integer next to it."""
    scaled = inputs["image"].double().numpy() * 127.5 + 127.5
    scaled = np.where(np.isnan(scaled), 0.0, scaled.clip(0.0, 255.0)).transpose(0, 2, 3, 1)  # [N, H, W, 3]
    near_an_integer = np.abs(scaled - scaled.round()) <= 512 * ROUNDING
    return [(np.floor(scaled), near_an_integer.astype(np.float64))]


ORACLES = {"sampler_step": sampler_step_oracle, "to_uint8": to_uint8_oracle}


def provider_names(op):
    return [provider.name for provider in op.providers]


# Of the other ops the truth is what torch's own ops give in float64; conftest.py says how.
COMPARED_WITH_TORCH = [op for op in OPS.values() if op.name not in ORACLES]


def outputs_of(op, inputs, **options):
    outputs = op.function(**inputs, **options)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def test_every_op_has_an_oracle_and_its_folder():
    assert set(ORACLES) <= set(OPS)
    assert all("torch" in provider_names(op) for op in COMPARED_WITH_TORCH)
    root = Path(featinv_kernels.__file__).parent / "ops"
    assert {path.name for path in root.iterdir() if (path / "op.py").exists()} == set(OPS)
    for name in OPS:
        files = {path.name for path in (root / name).iterdir()}
        assert {"op.py", "reference.py", "triton_kernel.py", "cases.py", "README.md"} <= files


@pytest.mark.parametrize("op", EVERY_OP)
def test_case_labels_are_unique_and_providers_end_with_the_reference(op):
    labels = [case.label for case in op.cases]
    assert len(set(labels)) == len(labels)
    names = provider_names(op)
    assert len(set(names)) == len(names)
    assert names[-1] == "reference"


@pytest.mark.parametrize(("op", "case"), [p for p in EVERY_CASE if p.values[0] in COMPARED_WITH_TORCH])
def test_reference_agrees_with_torch(op, case, assert_as_accurate_as_torch):
    inputs = op.make_inputs(case, CPU)
    if case.dtype != torch.float64:
        assert_as_accurate_as_torch(op, inputs, op.function(**inputs, provider="reference"))
    double = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    expected = op.function(**double, provider="torch")
    error = torch.linalg.vector_norm(op.function(**double, provider="reference") - expected)
    assert error <= 1e-10 * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize(("op", "case"), [p for p in EVERY_CASE if p.values[0].name in ORACLES])
def test_reference_agrees_with_float64(op, case):
    inputs = op.make_inputs(case, CPU)
    outputs = outputs_of(op, inputs, provider="reference")
    expected = ORACLES[op.name](inputs)
    assert len(outputs) == len(expected)
    for output, (value, bound) in zip(outputs, expected, strict=True):
        actual = output.double().numpy()
        assert actual.shape == value.shape
        finite = np.isfinite(value)
        assert np.array_equal(actual[~finite], value[~finite], equal_nan=True)
        assert (np.abs(actual - value)[finite] <= bound[finite]).all()


@pytest.mark.parametrize(("op", "case"), EVERY_CASE)
def test_outputs_are_new_contiguous_and_inputs_unchanged(op, case):
    inputs = op.make_inputs(case, CPU)
    tensors = {name: t for name, t in inputs.items() if isinstance(t, torch.Tensor)}
    again = op.make_inputs(case, CPU)
    for provider in ("reference", "torch") if op in COMPARED_WITH_TORCH else ("reference",):
        outputs = outputs_of(op, inputs, provider=provider)
        assert all(output.is_contiguous() for output in outputs)
        storages = {t.untyped_storage().data_ptr() for t in tensors.values() if t.numel()}
        results = [t.untyped_storage().data_ptr() for t in outputs if t.numel()]
        assert len(set(results)) == len(results)
        assert not storages & set(results)
        for name, tensor in tensors.items():
            assert torch.equal(tensor.nan_to_num(), again[name].nan_to_num()), name


@pytest.mark.parametrize(("op", "case"), EVERY_CASE)
def test_fake_outputs_are_like_the_real_ones(op, case):
    inputs = op.make_inputs(case, CPU)
    with torch._subclasses.FakeTensorMode() as mode:
        fake_inputs = {k: mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for k, t in inputs.items()}
        fakes = outputs_of(op, fake_inputs)
    for fake, real in zip(fakes, outputs_of(op, inputs), strict=True):
        assert (fake.shape, fake.dtype, fake.stride(), fake.device) == (
            real.shape,
            real.dtype,
            real.stride(),
            real.device,
        )


@pytest.mark.parametrize("op", EVERY_OP)
def test_opcheck(op):
    torch_op = getattr(torch.ops.featinv, op.name).default
    case = op.small_cases[1]
    torch.library.opcheck(torch_op, (*op.make_inputs(case, CPU).values(), "auto"))


class Caller(torch.nn.Module):
    """Calls an op from inside a graph."""

    def __init__(self, op):
        super().__init__()
        self.function = op.function

    def forward(self, inputs):
        return self.function(**inputs)


@pytest.mark.parametrize("op", EVERY_OP)
def test_exported_graph_keeps_the_op_as_one_node(op):
    inputs = op.make_inputs(op.small_cases[0], CPU)
    exported = torch.export.export(Caller(op), (inputs,))
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert [target for target in targets if "getitem" not in target] == [f"featinv.{op.name}.default"]
    torch.testing.assert_close(exported.module()(inputs), op.function(**inputs), rtol=0, atol=0)


@pytest.mark.parametrize("op", EVERY_OP)
def test_compiled_without_a_graph_break(op):
    inputs = op.make_inputs(op.small_cases[0], CPU)
    compiled = torch.compile(Caller(op), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), op.function(**inputs), rtol=0, atol=0)


@pytest.mark.parametrize("op", EVERY_OP)
def test_going_backward_is_an_error_and_not_a_silent_zero(op):
    inputs = op.make_inputs(op.small_cases[0], CPU)
    leaf = next(iter(inputs.values())).requires_grad_()
    output = outputs_of(op, inputs)[0]
    if output.dtype.is_floating_point:
        with pytest.raises(NotImplementedError, match="has no gradient"):
            output.sum().backward()
    else:
        assert not output.requires_grad
    assert leaf.grad is None


@pytest.mark.parametrize("op", EVERY_OP)
def test_runs_in_inference_mode(op):
    inputs = op.make_inputs(op.small_cases[0], CPU)
    with torch.inference_mode():
        inside = op.function(**inputs)
    torch.testing.assert_close(inside, op.function(**inputs), rtol=0, atol=0)

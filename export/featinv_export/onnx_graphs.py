"""One graph of an engine as an ONNX model without weights of its own.

The graph is traced on the meta device: its structure never depends on a weight's value, so that another checkpoint
of the same architecture fits it, and no weight is held in memory. Initializers point into the engine's weight file.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import warnings
from collections.abc import Mapping

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import torch
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as common_rules
from torch import nn

from featinv_export.half_precision import NAMES, arithmetic, nodes_in_fp32
from featinv_export.translations import BF16_OPSET, OPSET, translations
from featinv_export.weights import StoredTensor
from featinv_fast.backends.torch_ import WEIGHT_FILE
from featinv_fast.engine.graphs import GraphSpec
from featinv_fast.errors import ExportError

# Sizes of the traced example. All differ from each other and from 1, so that no two dimensions are taken for one.
_EXAMPLE_SIZES = {"batch": 3, "height": 7, "width": 11, "steps": 5}

# What a reader of a graph sees beside the name of a tensor.
_MEANINGS = {
    "features": "feature maps as the vision model gives them, channels first",
    "condition": "what the condition encoder makes of the features; one for an image, the same in every step",
    "latents": "latents in the scale of the sampler; the decoder brings them into the autoencoder's",
    "time_bias": "a row of the time embedding's output",
    "timesteps": "time steps, 0 to 999",
    "guidance": "guidance scale of a consistency model, one for each time step",
    "guidance_scale": "classifier-free guidance, 1 for none",
    "control_scales": "strength of each ControlNet residual, first row conditional, second row unconditional",
    "eps": "the predicted noise",
    "image": "images, about -1 to 1",
}

_DTYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}


def export_graph(module: nn.Module, spec: GraphSpec, weights: Mapping[str, StoredTensor]) -> ir.Model:
    """Trace `module` (on the meta device) as `spec` declares it.

    Raises:
        ExportError: the graph's weights are not those of the weight file.
    """
    model = graph_structure(module, spec)
    _attach_initializers(model, list(model.graph.inputs[len(spec.inputs) :]), weights)
    _describe(model, spec)
    return model


def graph_structure(module: nn.Module, spec: GraphSpec) -> ir.Model:
    """The graph with its weights as inputs behind those of `spec`: the same for all weights of an architecture."""
    model = _translate(_trace(module.eval(), spec))
    _detach_initializers(model)
    _optimize(model)
    return model


def _trace(module: nn.Module, spec: GraphSpec) -> torch.export.ExportedProgram:
    dims = {dim.name: torch.export.Dim(dim.name) for dim in spec.dims}
    shapes = spec.input_shapes({name: _EXAMPLE_SIZES[name] for name in dims})
    example = tuple(torch.empty(shape, device="meta") for shape in shapes.values())
    dynamic = tuple({axis: dims[name] for axis, name in tensor.dynamic_axes.items()} for tensor in spec.inputs)
    with torch.no_grad(), warnings.catch_warnings():
        # Tracer and translation warn about torch's own deprecated helpers.
        warnings.simplefilter("ignore")
        return torch.export.export(module, example, dynamic_shapes=dynamic)


def _translate(program: torch.export.ExportedProgram) -> ir.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            verbose=False,
            custom_translation_table=translations(),
        )
    assert exported is not None
    return exported.model


def _detach_initializers(model: ir.Model) -> None:
    """Make every weight a graph input for now: an optimiser that cannot see values cannot fold or merge them."""
    initializers = model.graph.initializers
    for value in list(initializers.values()):
        del initializers[str(value.name)]
        value.const_value = None
        model.graph.inputs.append(value)


def _holds(stored: StoredTensor, dtype: ir.DataType | None) -> bool:
    """Whether a graph can take a weight for one of type `dtype`: of that type, or of a narrower one."""
    return dtype in (_DTYPES[stored.dtype], ir.DataType.FLOAT)


def _optimize(model: ir.Model) -> None:
    """Fold shape arithmetic and merge equal nodes.

    The optimiser's whole rule set takes a time quadratic in the number of nodes (ten seconds here); these are the
    rules of it that find something in our graphs.
    """
    rules = [
        common_rules.reshape_reshape_rule,
        common_rules.transpose_transpose_rule,
        common_rules.unsqueeze_unsqueeze_rule,
        common_rules.materialize_reshape_shape_rule,
    ]
    common_passes.InlinePass()(model)
    for _ in range(2):  # what the rules leave may fold again
        optimizer.fold_constants(model)
        optimizer.remove_unused_nodes(model)
        rewriter.rewrite(model, rules)
    for cleanup in (
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common_passes.DeduplicateInitializersPass(),
        common_passes.CommonSubexpressionEliminationPass(),
        common_passes.NameFixPass(),
    ):
        cleanup(model)


def _attach_initializers(model: ir.Model, parameters: list[ir.Value], weights: Mapping[str, StoredTensor]) -> None:
    for value in parameters:
        name = str(value.name)
        stored = weights.get(name)
        shape = tuple(value.shape.numpy()) if value.shape is not None else None
        if stored is None or stored.shape != shape or not _holds(stored, value.dtype):
            raise ExportError(
                f"the graph's tensor {name!r} is not in the weight file as the graph needs it",
                given=stored,
                expected=f"{value.dtype} {shape}",
                remedy="this is a bug: please report it",
            )
        model.graph.inputs.remove(value)
        if not value.uses():
            continue
        dtype = _DTYPES[stored.dtype]
        if dtype != value.dtype:
            # Runtimes fold this cast when they load the graph.
            cast = ir.node("Cast", [value], {"to": value.dtype})
            cast.outputs[0].dtype, cast.outputs[0].shape = value.dtype, value.shape
            value.replace_all_uses_with(cast.outputs[0])
            cast.replace_input_with(0, value)
            model.graph.insert_before(model.graph[0], cast)
            value.dtype = dtype
        value.const_value = ir.ExternalTensor(
            WEIGHT_FILE, stored.offset, stored.length, dtype, shape=ir.Shape(stored.shape), name=name
        )
        model.graph.register_initializer(value)


def _describe(model: ir.Model, spec: GraphSpec) -> None:
    """Names of the spec on inputs, output and axes; module paths on nodes; what the graph is as metadata.

    Nothing about the machine or the checkpoint: a checkpoint of the same architecture has the same graph.
    """
    symbols: dict[str, str] = {}  # the tracer's name of a dimension -> ours
    for value, tensor in zip(model.graph.inputs, spec.inputs, strict=True):
        if value.shape is not None:
            symbols |= {str(value.shape[axis]): name for axis, name in tensor.dynamic_axes.items()}
        value.name, value.shape, value.doc_string = tensor.name, ir.Shape(tensor.shape), _MEANINGS[tensor.name]
    (output,) = model.graph.outputs
    output.name, output.shape = spec.output.name, ir.Shape(spec.output.shape)
    output.doc_string = _MEANINGS[spec.output.name]
    model.graph.name = spec.name
    model.producer_name = "featinv-fast"
    model.producer_version = importlib.metadata.version("featinv-fast")
    model.doc_string = None
    model.metadata_props.clear()
    counts: dict[str, int] = {}
    scope = spec.name
    for node in model.graph:
        scope = _scope(node) or scope  # the tracer forgets some: they stand beside the nodes of their module
        counts[scope] = counts.get(scope, 0) + 1
        node.name = f"{scope}/{node.op_type}_{counts[scope]}"
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            if value.shape is not None and value is not output:
                value.shape = ir.Shape([_renamed(dim, symbols) for dim in value.shape])
    dtype = arithmetic(model)
    model.opset_imports[""] = BF16_OPSET if dtype == ir.DataType.BFLOAT16 else OPSET
    common_passes.ShapeInferencePass(check_type=True, strict_mode=True)(model)
    model.metadata_props.update({"featinv.graph": spec.name, "featinv.precision": NAMES[dtype]})
    if dtype != ir.DataType.FLOAT:
        model.metadata_props["featinv.nodes_in_fp32"] = json.dumps(nodes_in_fp32(model))


def _scope(node: ir.Node) -> str | None:
    """The path of the module that a node came from, as torch recorded it, if it did."""
    names: list[str] = [n for n in _literal(node.metadata_props.get("pkg.torch.onnx.name_scopes")) if n]
    return names[-2] if len(names) > 1 else None


def _literal(text: str | None) -> list[str]:
    return list(ast.literal_eval(text)) if text else []


def _renamed(dim: int | ir.SymbolicDim, symbols: dict[str, str]) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    text = str(dim.value)
    for symbol, name in symbols.items():
        text = text.replace(symbol, name)
    return text

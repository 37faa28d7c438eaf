"""The exporter's ONNX graph made fit for a bundle: equal stages give equal bytes, which don't tell where they were made.

The exporter writes stack traces, module names and source paths into every node (``metadata_props``, ``doc_string``) and names the free
batch after its own symbols. Both are taken out; inputs that no node reads are no inputs any more. Source: ONNX IR,
onnx.ai/onnx/repo-docs/IR.html.
"""

from __future__ import annotations

from typing import Any

import onnx

from quorate._optional import one_line

BATCH = "batch"
LARGEST = 2**31 - 2**20  # protobuf's limit of a message, less room for the graph beside the weights
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
_TOLD = ("doc_string", "metadata_props")


def finished(model: onnx.ModelProto, stage: str) -> bytes:
    """The graph's bytes, checked; the model is changed in place.

    Raises:
        ValueError: a graph that draws random numbers, or that ONNX's own check refuses.
    """
    graph = model.graph
    if drawn := sorted({node.op_type for node in nodes(model) if node.op_type in RANDOM or _drops(node)}):
        raise ValueError(
            f"stage {stage!r} draws random numbers when it predicts ({', '.join(drawn)}): a program has to give the same for "
            "the same rows; take the randomness out, or fix its draws as quorate.MCDropout does"
        )
    _strip_(model)
    del graph.value_info[:]
    model.producer_name, model.producer_version = "quorate", ""
    read = {name for node in nodes(model) for name in node.input} | {output.name for output in graph.output}
    kept = [value for value in graph.input if value.name in read]
    del graph.input[:]
    graph.input.extend(kept)
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = BATCH
    data = bytes(model.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(data, full_check=True)
    except Exception as error:  # of the checker and of shape inference, which have no common type
        raise ValueError(
            f"stage {stage!r} comes out as a graph that ONNX refuses ({one_line(error)}): write that part of its forward with "
            "other operations"
        ) from error
    return data


def nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Every node, of inner graphs and functions too."""
    found = [node for holder in (model.graph, *model.functions) for node in holder.node]
    for node in found:  # grows as it is read
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found.extend(inner.node)
    return found


def _drops(node: onnx.NodeProto) -> bool:
    """Whether it is a dropout that is told to act as in training; others do nothing."""
    return node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2])


def _strip_(message: Any) -> None:
    """Without what it tells beside what is computed, at any depth."""
    for told in _TOLD:
        if told in message.DESCRIPTOR.fields_by_name:
            message.ClearField(told)
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for inner in value if isinstance(value, _Repeated) else (value,):
                _strip_(inner)


_Repeated = type(onnx.GraphProto().node)

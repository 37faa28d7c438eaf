"""Which operators, sizes, loops, trees and functions a program may have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from onnx_checks import called, constant, function, graph, of, ok, refused, subgraph, whole
from quorate.runtime import onnx_file
from tiny_onnx import attribute, field, node, tensor, varint

pytestmark = pytest.mark.deciding


@pytest.mark.parametrize("domain", ["", "ai.onnx", "ai.onnx.ml", "com.microsoft"])
def test_domains(domain: str) -> None:
    ok(of(called("Gelu", domain)) + field(8, field(1, domain) + field(2, 1)))


@pytest.mark.parametrize("domain", ["com.evil", "com.ms.internal.nhwc", "com.microsoft ", "a\nb"])
def test_other_domains(domain: str) -> None:
    refused("operator domain", of(called("Relu", domain)))
    refused("operator domain", of(called("Relu")) + field(8, field(1, domain) + field(2, 1)))
    refused("operator domain", of(called("Relu")) + function("f", [], "own", field(9, field(1, domain))))


@pytest.mark.parametrize(
    "kind", ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"]
)
def test_random_numbers(kind: str) -> None:
    refused(f"{kind} draws random numbers", of(called(kind)))
    refused(f"{kind} draws random numbers", whole(graph(), function("f", [called(kind)])))
    inner = graph(nodes=[called(kind)])
    refused(f"{kind} draws", whole(graph(nodes=[node("If", ["c"], ["y"]) + subgraph("branches", inner, inner)])))


def test_dropout_in_training() -> None:
    mode = [tensor("off", np.array(False)), tensor("on", np.array(True))]
    ok(of(called("Dropout", inputs=["x", "r", "off"]), weights=mode))
    ok(of(called("Dropout", inputs=["x", "r"])))
    ok(of(called("Dropout", inputs=["x", "r", ""])))
    for name in ("on", "computed"):
        refused("training mode", of(called("Dropout", inputs=["x", "r", name]), weights=mode))


@pytest.mark.parametrize("kind", ["EPContext", "BeamSearch", "Sampling", "BiasDropout", "PythonOp", "Tokenizer", "Unheard"])
def test_other_operators_of_onnx_runtime(kind: str) -> None:
    refused(f"com.microsoft.{kind} is not one", of(called(kind, "com.microsoft")))
    refused("ImageDecoder is not one", of(called("ImageDecoder")))


HUGE = 2**29
FACTOR = tensor("f", np.array([1.0, 1.0, 1e5, 1e5], np.float32))


@pytest.mark.parametrize(
    ("kind", "inputs", "sizes"),
    [
        ("ConstantOfShape", ["s"], (HUGE,)), ("ConstantOfShape", ["s"], (2**15, 2**15)), ("Expand", ["x", "s"], (HUGE, 1)),
        ("Tile", ["x", "s"], (1, HUGE)), ("Pad", ["x", "s"], (0, 0, 0, HUGE)), ("Pad", ["x", "s"], (0, 2**15, 2**15, 0)),
        ("Resize", ["x", "", "", "s"], (1, 1, 2**15, 2**15)), ("Upsample", ["x", "s"], (HUGE,)), ("OneHot", ["x", "s", "v"], (HUGE,)),
        ("AffineGrid", ["x", "s"], (1, 1, 2**15, 2**15)), ("CenterCropPad", ["x", "s"], (HUGE,)), ("Col2Im", ["s"], (HUGE,)),
        ("MaxUnpool", ["x", "i", "s"], (HUGE,)), ("HannWindow", ["s"], (HUGE,)), ("MelWeightMatrix", ["s", "s"], (HUGE,)),
        ("DFT", ["x", "s"], (HUGE,)), ("Tile", ["x", "s"], (-(2**62), 4)), ("Expand", ["x", "s"], tuple([1] * 65)),
    ],
)  # fmt: skip
def test_sizes_that_are_constants(kind: str, inputs: list[str], sizes: tuple[int, ...]) -> None:
    why = "at most 268,435,456 elements|more numbers than an array has axes"
    refused(why, of(called(kind, inputs=inputs), weights=[constant("s", *sizes)]))
    refused(why, of(node("Constant", [], ["s"], value=constant("", *sizes)), called(kind, inputs=inputs)))
    refused(why, of(called(kind, inputs=inputs), node("Constant", [], ["s"], value_ints=sizes)))
    ok(of(called(kind, inputs=inputs), weights=[constant("s", *(min(abs(size), 7) for size in sizes[:4]))]))


def test_sizes_that_are_floats_or_attributes() -> None:
    refused("Resize's sizes", of(called("Resize", inputs=["x", "", "f"]), weights=[FACTOR]))
    for bad in (np.nan, np.inf):
        refused("Resize's sizes", of(called("Resize", inputs=["x", "", "f"]), weights=[tensor("f", np.array([bad], np.float32))]))
    refused("Conv's pads", of(called("Conv", pads=(2**14, 2**14, 2**14, 2**14))))
    ok(of(called("Conv", pads=(2**13, 2**13, 2**12, 2**12))))
    refused("MaxPool's kernel_shape", of(called("MaxPool", kernel_shape=(2**15, 2**15))))
    refused("LSTM's hidden_size", of(called("LSTM", hidden_size=2**40)))
    refused("ConvTranspose's output_shape", of(called("ConvTranspose", output_shape=(2**20, 2**20))))


def test_ranges() -> None:
    def ranged(*numbers: float) -> bytes:
        dtype = np.float32 if any(isinstance(number, float) for number in numbers) else np.int64
        return of(
            called("Range", inputs=["a", "b", "c"]),
            weights=[tensor(n, np.array(v, dtype)) for n, v in zip("abc", numbers, strict=True)],
        )

    ok(ranged(0, 2**28, 1))
    ok(ranged(2**40, 2**40 - 1000, -1))
    refused("Range's numbers", ranged(0, 2**28 + 1, 1))
    refused("Range's numbers", ranged(-(2**62), 2**62, 3))
    refused("Range's numbers", ranged(0, 1, 0))
    refused("Range's numbers", ranged(0.0, 1.0, 1e-30))
    refused("Range's numbers", ranged(0.0, float("nan"), 1.0))
    ok(
        of(called("Range", inputs=["a", "b", "c"]), weights=[constant("a", 0), constant("b", 2**60)])
    )  # not covered: c is computed


def test_loops() -> None:
    def loop(kind: str, steps: str = "s", inner: Sequence[bytes] = ()) -> bytes:
        return node(kind, [steps], ["y"]) + subgraph("body", graph(nodes=inner))

    few, many = [constant("s", 2**16)], [constant("s", 2**16 + 1)]
    ok(of(loop("Loop"), weights=few))
    ok(of(loop("Scan", "x"), loop("SequenceMap", "x")))
    ok(of(loop("If", "c", [loop("Loop")]), weights=few))
    for steps in ("", "computed"):
        refused("no constant number of at most 65,536 steps", of(loop("Loop", steps), weights=few))
    refused("65,536 steps", of(loop("Loop"), weights=many))
    refused("65,536 steps", of(loop("Loop"), weights=[*few, *many]))  # the same name in two scopes: either may be meant
    refused("65,536 steps", of(node("Loop", [], ["y"])))
    for outer in ("Loop", "Scan", "SequenceMap"):
        refused("Scan stands in another loop", of(loop(outer, "s", [loop("If", "c", [loop("Scan")])]), weights=few))
    refused("Loop stands in another loop or in a function", whole(graph(), function("f", [loop("Loop")])))


@pytest.mark.parametrize("kind", ["TreeEnsembleRegressor", "TreeEnsembleClassifier", "TreeEnsemble"])
def test_trees(kind: str) -> None:
    name = "nodes_truenodeids" if kind == "TreeEnsemble" else "nodes_treeids"

    def forest(ids: Sequence[int], packed: bool = False) -> bytes:
        held = field(1, name) + field(8, b"".join(map(varint, ids))) if packed else attribute(name, ids)
        return of(called(kind, "ai.onnx.ml") + field(5, held))

    for packed in (False, True):
        ok(forest([1] * 4_000, packed))
        refused("a tree of 4,001 nodes: expected at most 4,000", forest([1] * 4_001, packed))
    if kind != "TreeEnsemble":
        ok(forest([1] * 3_000 + [2] * 3_000))


def test_functions() -> None:
    call = called("f", "own")
    ok(whole(graph(nodes=[call]), function("f", [called("Relu")]), field(8, field(1, "own") + field(2, 1))))
    refused("operator domain 'own'", whole(graph(nodes=[called("g", "own")]), function("f", [])))
    refused("the function 'f' twice", whole(graph(), function("f", []), function("f", [])))
    refused("contains itself", whole(graph(nodes=[call]), function("f", [call])))
    refused("contains itself", whole(graph(), function("f", [called("g", "own")]), function("g", [call])))
    diamond = [function("f", [called("g", "own")] * 2), function("g", [called("Relu")])]
    ok(whole(graph(nodes=[call]), *diamond))


def test_functions_that_double_each_other() -> None:
    laughs = [function(f"f{k}", [called(f"f{k + 1}", "own")] * 2) for k in range(60)] + [function("f60", [called("Relu")])]
    refused("written out have more than 250,000 nodes", whole(graph(nodes=[called("f0", "own")]), *laughs))
    assert onnx_file.MOST_NODES == 250_000
    chain = [function(f"f{k}", [called(f"f{k + 1}", "own")]) for k in range(5000)] + [function("f5000", [called("Relu")])]
    ok(whole(graph(nodes=[called("f0", "own")]), *chain))

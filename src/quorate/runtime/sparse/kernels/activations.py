"""Activations of vectors in registers, without a call to a library.

    relu(x) = max(x, 0)        relu6(x) = min(max(x, 0), 6)
    gelu(x) = x · Φ(x) = max(x, 0) − t · Q(t),    t = |x|,  Q(t) = ½ erfc(t / √2)      (Hendrycks & Gimpel 2016, arXiv 1606.08415)

Q falls like exp(−t²/2), which no polynomial follows, but (2 Q)^(−1/8) is nearly one: 2 Q(t) ≈ p(t)⁻⁸ with p(t) = 1 + c₁t + … + c₈t⁸, the
form of Hastings 1955 (7.1.28 in Abramowitz & Stegun 1964) with one squaring less and two terms more. The coefficients minimise, over t in
[0, 7], the largest error of t · Q(t) / max(1, t), by weighted least squares whose weights are multiplied by the error again and again
(Lawson 1961): 1.9e-8, 2.2e-8 once they are rounded to float32, and 2e-7 in float32 arithmetic. p grows without end: p⁸ = ∞ from t = 20.4
on, and the tail is 0.
"""

from __future__ import annotations

from collections.abc import Collection

from quorate.runtime.sparse.machine.emitting import Writer, constant
from quorate.runtime.sparse.network import Activation

GELU = (0.0997341648, 0.0447754078, 0.00863078795, 9.24941327e-4, 1.5395676e-4, 7.97942848e-5, -1.29463906e-5, 2.60875572e-6)
"""c₁ … c₈, each a float32."""
FAR = 64.0
"""t is cut here: p(64)⁸ is infinite in float32, and ∞ · 0 never comes up."""


def activation(w: Writer, lanes: int, value: str, kind: Activation) -> str:
    """The activation of a vector.

    Args:
        w: what writes the routine; its module has :func:`definitions` of this kind, and the declarations of ``emitting``.
        lanes: floats of the vector.
        value: its name.
        kind: of activation. NaN stays NaN.

    Returns:
        The name of the result, ``value`` itself for ``none``.
    """
    v = f"<{lanes} x float>"
    if kind == "none":
        return value
    if kind == "gelu":
        return w(f"call {v} @gelu({v} {value})")
    positive = _at_least_zero(w, v, value)
    if kind == "relu":
        return positive
    six, beyond = constant(6, lanes), f"<{lanes} x i1>"
    return w(f"select {beyond} {w(f'fcmp ogt {v} {positive}, {six}')}, {v} {six}, {v} {positive}")


def _at_least_zero(w: Writer, v: str, value: str) -> str:
    """max(0, x), of which NaN stays NaN, as one instruction where there is one that takes its second operand then."""
    beyond = v.replace("float", "i1")
    return w(f"select {beyond} {w(f'fcmp ogt {v} zeroinitializer, {value}')}, {v} zeroinitializer, {v} {value}")


def definitions(kinds: Collection[Activation], lanes: int) -> str:
    """Functions that :func:`activation` calls for these kinds; "" where it calls none.

    GELU is one function, not a copy for each vector: a tile has up to 28 of them, and the end of a row of sums is short against the row.
    """
    if "gelu" not in kinds:
        return ""
    v, n = f"<{lanes} x float>", f"v{lanes}f32"
    w = Writer()
    w.lines.append(f"define internal {v} @gelu({v} %x) noinline {{")
    w.label("entry")
    positive = _at_least_zero(w, v, "%x")
    size = w(f"call {v} @llvm.fabs.{n}({v} %x)")
    t = w(f"call {v} @llvm.minnum.{n}({v} {size}, {v} {constant(FAR, lanes)})")
    p = constant(GELU[-1], lanes)
    for coefficient in (*GELU[-2::-1], 1.0):
        p = w(f"call {v} @llvm.fmuladd.{n}({v} {p}, {v} {t}, {v} {constant(coefficient, lanes)})")
    for _ in range(3):
        p = w(f"fmul {v} {p}, {p}")
    tail = w(f"fdiv {v} {w(f'fmul {v} {t}, {constant(0.5, lanes)}')}, {p}")
    w.do(f"ret {v} {w(f'fsub {v} {positive}, {tail}')}")
    w.lines.append("}")
    return w.text()

"""Writing LLVM's intermediate language as text: fresh names, steps of pointers, activations.

Every routine has the form ``void @run(ptr %args, i64 %part, i64 %parts)``: its arguments are 64-bit words (addresses, counts) in memory,
and of its work it does the part'th of so many parts, which may run at once.
"""

from __future__ import annotations

SIGNATURE = 'define void @{name}(ptr noalias %args, i64 %part, i64 %parts) nounwind "no-builtins" {{'


class Writer:
    """Lines with fresh names."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def __call__(self, expression: str) -> str:
        """Give a value a name."""
        self.count += 1
        self.lines.append(f"  %v{self.count} = {expression}")
        return f"%v{self.count}"

    def do(self, line: str) -> None:
        """A line as it is."""
        self.lines.append("  " + line)

    def label(self, name: str) -> None:
        """Begin a block."""
        self.lines.append(f"{name}:")

    def step(self, pointer: str, offset: str | int) -> str:
        """A pointer so many bytes further."""
        return self(f"getelementptr i8, ptr {pointer}, i64 {offset}") if offset != 0 else pointer

    def word(self, place: int, kind: str = "i64") -> str:
        """A 64-bit argument of the routine: a number, or a ``ptr``."""
        return self(f"load {kind}, ptr {self.step('%args', 8 * place)}, align 8")

    def spread(self, scalar: str, lanes: int, kind: str = "float") -> str:
        """A vector of one number."""
        v = f"<{lanes} x {kind}>"
        one = self(f"insertelement {v} undef, {kind} {scalar}, i32 0")
        return self(f"shufflevector {v} {one}, {v} undef, <{lanes} x i32> zeroinitializer")

    def text(self) -> str:
        return "\n".join(self.lines)


def number(value: float) -> str:
    """A float32 as LLVM writes it: the bits of the double that equals it."""
    import struct

    single = struct.unpack("<f", struct.pack("<f", value))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', single))[0]:016X}"


def constant(value: float, lanes: int) -> str:
    """A vector of one number."""
    return "<" + ", ".join(f"float {number(value)}" for _ in range(lanes)) + ">"


def declarations(lanes: int) -> str:
    """What every routine may call: multiply-add (fused where the machine can; never a call), the larger and the smaller."""
    v, n = f"<{lanes} x float>", f"v{lanes}f32"
    return "\n".join(
        [
            f"declare {v} @llvm.fmuladd.{n}({v}, {v}, {v})",
            f"declare {v} @llvm.maxnum.{n}({v}, {v})",
            f"declare {v} @llvm.minnum.{n}({v}, {v})",
            f"declare {v} @llvm.fabs.{n}({v})",
        ]
    )

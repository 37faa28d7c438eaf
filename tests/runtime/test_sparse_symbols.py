"""What an object wants from outside, found in its table of symbols; a damaged table is an error, never an endless loop."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from quorate.runtime.sparse.machine import code
from quorate.runtime.sparse.machine.host import Host
from quorate.runtime.sparse.machine.symbols import undefined

X86 = "x86_64-unknown-linux-gnu"
CALLS = """declare void @zoo(ptr)
declare void @ant(ptr)
define void @run(ptr %a) {
  call void @zoo(ptr %a)
  call void @two(ptr %a)
  call void @ant(ptr %a)
  call void @zoo(ptr %a)
  ret void
}
define internal void @two(ptr %a) noinline {
  store volatile i64 1, ptr %a
  ret void
}"""


def made_object(triple: str, text: str = CALLS) -> bytes:
    machine = code._machine(Host("generic", "", 4, 16, True, triple))
    return bytes(machine.emit_object(code._optimised(text, machine)))


@pytest.mark.parametrize(
    ("triple", "prefix"),
    [
        (X86, ""),
        ("aarch64-unknown-linux-gnu", ""),
        ("x86_64-pc-windows-msvc-elf", ""),
        ("arm64-apple-darwin", "_"),
        ("x86_64-apple-darwin", "_"),
    ],
)
def test_undefined_symbols_of_each_format(triple: str, prefix: str) -> None:
    found = [name for name in undefined(made_object(triple)) if name != "_GLOBAL_OFFSET_TABLE_"]
    assert found == [prefix + "ant", prefix + "zoo"]
    assert undefined(made_object(triple, "define void @run(ptr %a) {\n  ret void\n}")) == []


@pytest.mark.parametrize("triple", [X86, "arm64-apple-darwin"])
def test_damaged_objects_are_refused(triple: str) -> None:
    whole = made_object(triple)
    generator = np.random.default_rng(7)
    for size in range(6, len(whole), 37):
        try:
            undefined(whole[:size])
        except RuntimeError as error:
            assert "\n" not in str(error)  # noqa: PT017
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.integers(6, len(whole))] ^= int(generator.integers(1, 256))
        try:
            undefined(bytes(damaged))
        except RuntimeError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_a_load_command_without_end_is_refused() -> None:
    header = b"\xcf\xfa\xed\xfe" + bytes(12) + b"\xff\xff\xff\xff" + bytes(12)
    with pytest.raises(RuntimeError, match=r"damaged .a load command of 0 bytes"):
        undefined(header + bytes(64))


@pytest.mark.parametrize("data", [b"", b"MZ", b"\x7fELF\x01\x01" + bytes(100), b"\x64\x86" + bytes(100)])
def test_other_formats_are_refused(data: bytes) -> None:
    with pytest.raises(RuntimeError, match="no object of ELF or Mach-O of 64 bits"):
        undefined(data)

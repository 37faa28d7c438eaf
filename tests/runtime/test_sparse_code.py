"""Text becomes machine code that gives the same bits however it came; what is not complete code for this machine is refused."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import quorate

pytest.importorskip("llvmlite")

from quorate.runtime.sparse.machine import cache, code
from quorate.runtime.sparse.machine.code import Routine, assembly, routine
from quorate.runtime.sparse.machine.host import Host, here

PLAIN = Host("x86-64", "", 4, 16)
X86 = "x86_64-unknown-linux-gnu"
on_x86 = pytest.mark.skipif(not here().x86, reason="code for x86-64 is run")
VOID = "define void @run(ptr noalias %args, i64 %part, i64 %parts) {{\n{}  ret void\n}}\n"
# y[4·part …] = x[4·part …] · table + parts, the table a constant outside the function.
TEXT = """
@table = private constant <4 x float> <float 2.0, float 3.0, float 5.0, float 0.375>
declare <4 x float> @llvm.fmuladd.v4f32(<4 x float>, <4 x float>, <4 x float>)
""" + VOID.format("""
  %x = load ptr, ptr %args, align 8
  %second = getelementptr i8, ptr %args, i64 8
  %y = load ptr, ptr %second, align 8
  %at = shl i64 %part, 4
  %from = getelementptr i8, ptr %x, i64 %at
  %to = getelementptr i8, ptr %y, i64 %at
  %v = load <4 x float>, ptr %from, align 4
  %k = load <4 x float>, ptr @table, align 16
  %n = sitofp i64 %parts to float
  %one = insertelement <4 x float> undef, float %n, i32 0
  %all = shufflevector <4 x float> %one, <4 x float> undef, <4 x i32> zeroinitializer
  %s = call <4 x float> @llvm.fmuladd.v4f32(<4 x float> %v, <4 x float> %k, <4 x float> %all)
  store <4 x float> %s, ptr %to, align 4
""")
INPUTS = np.linspace(-3, 7, 12, dtype=np.float32)


def result(made: Routine, parts: int = 3) -> np.ndarray:
    out = np.zeros_like(INPUTS)
    for part in range(parts):
        made.run([INPUTS.ctypes.data, out.ctypes.data], part, parts)
    return out


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test as in a new process, without the user's own cache."""
    monkeypatch.setattr(code, "_KNOWN", {})
    monkeypatch.setenv("QUORATE_CACHE", "off")


@on_x86
@pytest.mark.parametrize("host", [here(), PLAIN], ids=["here", "plain"])
def test_runs_what_the_text_says(host: Host) -> None:
    table = np.tile(np.array([2, 3, 5, 0.375], np.float32), 3)
    np.testing.assert_allclose(result(routine(TEXT, host)), INPUTS.astype(np.float64) * table + 3, rtol=1e-6)
    only = np.zeros_like(INPUTS)
    routine(TEXT, host).run([INPUTS.ctypes.data, only.ctypes.data], part=1, parts=2)
    np.testing.assert_allclose(only, np.where(np.arange(12) // 4 == 1, INPUTS.astype(np.float64) * table + 2, 0), rtol=1e-6)


@pytest.mark.skipif(os.name == "nt", reason="tried as it is")
def test_the_way_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older linker and whole addresses, as far as they can be tried elsewhere."""
    expected = result(routine(TEXT, here()))
    monkeypatch.setattr(code, "_WINDOWS", True)
    monkeypatch.setattr(code, "_KNOWN", {})
    linker = functools.cache(code._linker.__wrapped__)
    monkeypatch.setattr(code, "_linker", linker)
    for source in ("compiled", "disk"):
        made = routine(TEXT, here(), tmp_path / "sparse")
        assert made.source == source
        assert result(made).tobytes() == expected.tobytes()
        code._KNOWN.clear()
    with pytest.raises(RuntimeError, match="calls memset outside itself"):
        routine(FILL.format(""), here())


def test_words_are_64_bits_of_either_sign() -> None:
    made = routine(
        VOID.format("""
  %to = load ptr, ptr %args, align 8
  %a = getelementptr i64, ptr %args, i64 1
  %n = load i64, ptr %a, align 8
  %twice = mul i64 %n, 2
  store i64 %twice, ptr %to, align 8
"""),
        here(),
    )
    out = np.zeros(1, np.int64)
    for number in (-5, 2**40 + 1, 0):
        made.run([out.ctypes.data, number])
        assert out[0] == 2 * number
    routine(VOID.format(""), here()).run([])


def test_equal_texts_are_one_routine(tmp_path: Path) -> None:
    first, second = routine(TEXT, here()), routine(TEXT, here(), tmp_path / "unused")
    assert (first.source, second.source) == ("compiled", "memory")
    assert first.address == second.address
    assert first.seconds > 0
    assert second.seconds == 0
    assert routine(TEXT + "; other", here()).address != first.address
    assert not list(tmp_path.iterdir())


@on_x86
def test_routines_of_other_processors_are_others() -> None:
    made = [routine(TEXT, host) for host in (PLAIN, replace(PLAIN, cpu="x86-64-v2"), replace(PLAIN, features="+sse3"))]
    assert [one.source for one in made] == ["compiled"] * 3
    assert len({one.address for one in made}) == 3


def test_many_threads_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Routine] = []
    count: list[int] = []
    real = code._made
    monkeypatch.setattr(code, "_made", lambda *arguments: (count.append(1), real(*arguments))[1])
    threads = [threading.Thread(target=lambda: made.append(routine(TEXT, here()))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.address for one in made}) == 1
    assert sum(one.source == "compiled" for one in made) == len(count) == 1


NEW_PROCESS = """
import ctypes, sys
from pathlib import Path
from quorate.runtime.sparse.machine import code
from quorate.runtime.sparse.machine.host import here
def never(*_):
    raise AssertionError("compiled")
code._optimised = never
made = code.routine(sys.stdin.read(), here(), Path(sys.argv[1]))
data = bytearray.fromhex(sys.argv[2])
source, target = (ctypes.c_char * len(data)).from_buffer(data), (ctypes.c_char * len(data))()
for part in range(3):
    made.run([ctypes.addressof(source), ctypes.addressof(target)], part, 3)
print(made.source, bytes(target).hex())
"""


def test_a_new_process_links_the_object_from_the_disk(tmp_path: Path) -> None:
    expected = result(routine(TEXT, here(), tmp_path / "sparse"))
    run = subprocess.run(
        [sys.executable, "-c", NEW_PROCESS, str(tmp_path / "sparse"), INPUTS.tobytes().hex()],
        input=TEXT, text=True, capture_output=True, check=True, env=os.environ | {"PYTHONPATH": str(Path(quorate.__file__).parents[1])},
    )  # fmt: skip
    assert run.stdout.split() == ["disk", expected.tobytes().hex()]


def test_the_default_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_CACHE", str(tmp_path))
    assert routine(TEXT, here()).source == "compiled"
    code._KNOWN.clear()
    assert routine(TEXT, here()).source == "disk"
    assert len(list((tmp_path / "sparse").iterdir())) == 1
    code._KNOWN.clear()
    monkeypatch.setenv("QUORATE_CACHE", "off")
    assert routine(TEXT, here()).source == "compiled"


@on_x86
def test_the_key_holds_all_that_code_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def source(text: str = TEXT, host: Host = PLAIN) -> str:
        code._KNOWN.clear()
        return routine(text, host, tmp_path / "sparse").source

    assert (source(), source()) == ("compiled", "disk")
    assert source(TEXT + "; other") == "compiled"
    assert source(host=replace(PLAIN, cpu="x86-64-v2")) == "compiled"
    assert source(host=replace(PLAIN, features="+sse3")) == "compiled"
    with monkeypatch.context() as changed:
        changed.setattr(code, "_toolchain", lambda: "llvmlite 0.44.0 LLVM 15.0.7")
        assert source() == "compiled"
    with monkeypatch.context() as changed:
        changed.setattr(cache, "FORMAT", cache.FORMAT + 1)
        assert source() == "compiled"
    assert source() == "disk"


def test_toolchain_names_the_versions() -> None:
    import llvmlite.binding

    assert ".".join(map(str, llvmlite.binding.llvm_version_info)) in code._toolchain()
    assert llvmlite.__version__ in code._toolchain()


@pytest.mark.parametrize("kept", [b"", b"no object", b"\x7fELF\x02\x01" + bytes(80)], ids=["empty", "text", "header"])
def test_an_object_that_is_none_is_made_anew(kept: bytes, tmp_path: Path) -> None:
    """As a cache of ours would hold it if it had been written by something else."""
    expected = result(routine(TEXT, here(), tmp_path / "sparse"))
    (name,) = (entry.stem for entry in (tmp_path / "sparse").iterdir())
    good = cache.read_object(name, tmp_path / "sparse")
    assert cache.write_object(name, kept, tmp_path / "sparse")
    code._KNOWN.clear()
    again = routine(TEXT, here(), tmp_path / "sparse")
    assert again.source == "compiled"
    assert result(again).tobytes() == expected.tobytes()
    assert cache.read_object(name, tmp_path / "sparse") == good


def test_damaged_bytes_are_never_run(tmp_path: Path) -> None:
    expected = result(routine(TEXT, here(), tmp_path / "sparse"))
    (file,) = (tmp_path / "sparse").iterdir()
    whole = file.read_bytes()
    for at in range(0, len(whole), len(whole) // 8):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        code._KNOWN.clear()
        again = routine(TEXT, here(), tmp_path / "sparse")
        assert again.source == "compiled"
        assert result(again).tobytes() == expected.tobytes()


FILL = """define void @run(ptr %to, i64 %part, i64 %parts) {} {{
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %p = getelementptr float, ptr %to, i64 %i
  store float 0.0, ptr %p, align 4
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %parts
  br i1 %more, label %loop, label %end
end:
  ret void
}}"""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("declare void @puts(ptr)\n" + VOID.format("  call void @puts(ptr %args)\n"), "puts"),
        ("declare void @nowhere(ptr)\n" + VOID.format("  call void @nowhere(ptr %args)\n"), "nowhere"),
        ("@outside = external global i64\n" + VOID.format("  store i64 1, ptr @outside\n"), "outside"),
        ("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)\n"
         + VOID.format("  call void @llvm.memset.p0.i64(ptr %args, i8 0, i64 %part, i1 0)\n"), "memset"),
        (FILL.format(""), "memset"),
        (VOID.replace("{{", '"probe-stack"="__probe" {{').format(
            "  %b = alloca [9000 x i64]\n  %p = getelementptr i64, ptr %b, i64 %part\n  store volatile i64 1, ptr %p\n"), "__probe"),
    ],
    ids=["library", "unknown", "variable", "intrinsic", "loop", "probe"],
)  # fmt: skip
def test_calls_outside_are_refused(text: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"calls {name} outside itself") as caught:
        routine(text, here(), tmp_path / "sparse")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    routine(FILL.format('"no-builtins"'), here())


@on_x86
def test_a_fused_multiply_add_is_a_call_where_there_is_none() -> None:
    text = TEXT.replace("llvm.fmuladd", "llvm.fma")
    with pytest.raises(RuntimeError, match="calls fmaf outside itself"):
        routine(text, PLAIN)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hello", "expected top-level entity"),
        ("", "run"),
        (TEXT.replace("@run", "@walk"), "run"),
        (TEXT.replace("%s, ptr %to", "%q, ptr %to"), "undefined value '%q'"),
        (VOID.format("  br label %x\nx:\n  %q = phi i64 [1, %x]\n"), "PHI node entries do not match"),
    ],
)
def test_what_llvm_refuses_is_one_line(text: str, reason: str) -> None:
    for _ in range(2):  # and isn't remembered as if it had been made
        with pytest.raises(RuntimeError, match=f"LLVM refuses a routine: .*{reason}") as caught:
            routine(text, here())
        assert "\n" not in str(caught.value)
    assert result(routine(TEXT, here())).any()


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (replace(here(), triple="riscv64-unknown-linux-gnu"), "expected a host whose triple is ''"),
        (replace(here(), lanes=16, cpu="x86-64-v4") if here().lanes < 16 else replace(here(), lanes=32), "can't run on"),
    ],
)
def test_code_of_another_machine_is_not_run(host: Host, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "name", property(lambda self: self.cpu))
    with pytest.raises(ValueError, match=reason) as caught:
        routine(TEXT, host)
    assert "\n" not in str(caught.value)


def wide(lanes: int) -> str:
    """y = x · x + x of one vector."""
    v = f"<{lanes} x float>"
    return f"declare {v} @llvm.fmuladd.v{lanes}f32({v}, {v}, {v})\n" + VOID.format(
        f"  %x = load {v}, ptr %args, align 4\n  %y = call {v} @llvm.fmuladd.v{lanes}f32({v} %x, {v} %x, {v} %x)\n"
        f"  store {v} %y, ptr %args, align 4\n"
    )


@pytest.mark.parametrize(
    ("host", "wanted", "unwanted"),
    [
        (Host("skylake-avx512", "-prefer-256-bit", 16, 32, True, X86), ["vfmadd", "%zmm0"], ["%ymm0", "call"]),
        (Host("haswell", "", 8, 16, True, X86), ["vfmadd", "%ymm0"], ["%zmm0", "call"]),
        (Host("x86-64", "", 4, 16, True, X86), ["mulps", "addps"], ["fmadd", "%ymm0", "call"]),
        (Host("neoverse-n1", "", 4, 32, False, "aarch64-unknown-linux-gnu"), ["fmla", "v0.4s"], ["\tbl\t"]),
        (Host("apple-m1", "", 4, 32, False, "arm64-apple-darwin"), ["fmla.4s", "_run"], ["\tbl\t"]),
    ],
    ids=lambda value: value.cpu if isinstance(value, Host) else "",
)
def test_assembly_of_other_machines(host: Host, wanted: list[str], unwanted: list[str]) -> None:
    text = assembly(wide(host.lanes), host)
    assert all(word in text for word in wanted)
    assert not any(word in text for word in unwanted)


def test_assembly_of_this_machine_and_of_none() -> None:
    assert "run" in assembly(TEXT, here())
    with pytest.raises(RuntimeError, match=r"LLVM refuses a routine: .*foo-bar") as caught:
        assembly(TEXT, Host("generic", "", 4, 16, True, "foo-bar"))
    assert "\n" not in str(caught.value)


def test_a_text_that_llvm_would_take_minutes_for_is_refused() -> None:
    with pytest.raises(
        RuntimeError, match=r"a routine has 52\d,\d+ characters: expected at most 524,288; run such a layer dense"
    ):
        code.routine("; \n" * (code.LONGEST // 3 + 1), here())

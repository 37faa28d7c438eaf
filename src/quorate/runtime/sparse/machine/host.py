"""The machine that code is made for: its name and features for LLVM, floats per vector, vector registers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Host:
    """A processor as code is made for it.

    Attributes:
        cpu, features: LLVM's names.
        lanes: floats of a vector.
        registers: vector registers.
        x86: whether values are spread by shuffles (else by lane).
        triple: LLVM's target, of another machine than this one; "" for this one.
    """

    cpu: str
    features: str
    lanes: int
    registers: int
    x86: bool = True
    triple: str = ""

    @property
    def name(self) -> str:
        """For people."""
        kind = {16: "AVX-512", 8: "AVX2", 4: "plain" if self.x86 else "NEON"}[self.lanes]
        return f"{self.cpu} ({kind})"


@cache
def here() -> Host:
    """This machine. ImportError where llvmlite is not installed."""
    llvm = started()
    features = dict(llvm.get_host_cpu_features())
    flags = ",".join(("+" if on else "-") + name for name, on in sorted(features.items()))
    cpu = llvm.get_host_cpu_name()
    if features.get("avx512f") and features.get("avx512vl"):
        return Host(cpu, flags + ",-prefer-256-bit", 16, 32)
    if features.get("avx2") and features.get("fma"):
        return Host(cpu, flags, 8, 16)
    x86 = llvm.get_process_triple().split("-")[0] in ("x86_64", "i386", "i686", "amd64")
    return Host(cpu, flags, 4, 16 if x86 else 32, x86)


@cache
def started() -> Any:
    """llvmlite's binding, with this machine's target ready. ImportError where llvmlite is not installed."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    return llvm

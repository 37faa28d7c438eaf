"""Text of LLVM's intermediate language → machine code in this process.

    text → module, verified → optimised (speed 2; loops are neither unrolled nor vectorised: the text has its vectors already)
         → object (level 3) → linked into memory that is never writable and executable at once → the address of ``@run``

Routines made from equal text for an equal processor are one; they live as long as the process. The object, which has no address in it,
is kept on the disk (:mod:`.cache`), so that a later process only has to link it. Both ways lead through the same link, which takes
nothing but the object: a routine that wants a function from outside (a library's ``memset``, a probe of the stack)
is refused.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from quorate.runtime.sparse.machine import cache as disk
from quorate.runtime.sparse.machine.host import Host, here, started
from quorate.runtime.sparse.machine.symbols import undefined

# On Windows objects are ELF too, and linked by LLVM's older linker, which may lay sections far apart: addresses there are whole.
_WINDOWS = os.name == "nt"
LONGEST = 512 * 1024
"""Characters of a text; LLVM's time grows faster than these, to half a minute here."""
_SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


@dataclass(frozen=True)
class Routine:
    """Machine code of ``void run(ptr args, i64 part, i64 parts)``; calls may run at once if its arguments allow it.

    Attributes:
        address: of the function; valid as long as the process lives.
        source: where it came from: ``compiled`` now, linked from the ``disk``, or in ``memory`` already.
        seconds: that took (0 from memory).
    """

    address: int
    source: Literal["compiled", "disk", "memory"]
    seconds: float

    def run(self, words: Sequence[int], part: int = 0, parts: int = 1) -> None:
        """Call it: ``words`` are its arguments (addresses and counts), put into memory as 64 bits each. The GIL is released."""
        memory = (ctypes.c_int64 * max(len(words), 1))(*words)
        _SIGNATURE(self.address)(ctypes.addressof(memory), part, parts)


def routine(ir: str, host: Host, folder: Path | None = None) -> Routine:
    """Machine code of the function ``@run`` of a module.

    Args:
        ir: the module's text, complete: no function outside it is called, other than intrinsics that become instructions.
        host: the processor it is made for: this one (LLVM splits vectors that are wider than its own), or a plainer one whose code runs
            here.
        folder: where objects are kept; by default :func:`quorate.runtime.sparse.machine.cache.folder`.

    Raises:
        ImportError: llvmlite is not installed.
        ValueError: ``host`` is another machine than this one, or has wider vectors; or ``QUORATE_CACHE`` is a relative path.
        RuntimeError: LLVM refuses the text, it defines no ``@run``, it needs functions from outside, or is longer than :data:`LONGEST`.
    """
    if len(ir) > LONGEST:
        raise RuntimeError(f"a routine has {len(ir):,} characters: expected at most {LONGEST:,}; run such a layer dense")
    if host.triple:
        raise ValueError(f"code for {host.triple} can't run here: expected a host whose triple is '', or use assembly()")
    if host.lanes > here().lanes and (host.cpu, host.features) != (here().cpu, here().features):
        raise ValueError(f"code for {host.name} can't run on {here().name}: give a host of at most {here().lanes} lanes")
    known = (ir, host.cpu, host.features)
    with _LOCK:
        if known not in _KNOWN:
            _KNOWN[known] = _made(ir, host, disk.folder() if folder is None else folder)
            return _KNOWN[known]
        return replace(_KNOWN[known], source="memory", seconds=0.0)


def assembly(ir: str, host: Host) -> str:
    """What LLVM makes of a module for any host, for people to read: its ``triple`` names the system, "" this one.

    Raises:
        ImportError: llvmlite is not installed.
        RuntimeError: LLVM refuses the text or the triple.
    """
    with _LOCK:
        machine = _machine(host)
        return str(_one_line(machine.emit_assembly, _optimised(ir, machine)))


_LOCK = threading.Lock()
_KNOWN: dict[tuple[str, str, str], Routine] = {}
_NAMES = itertools.count()


def _made(ir: str, host: Host, folder: Path | None) -> Routine:
    begun = time.perf_counter()
    machine = _machine(host)
    key = disk.key(_toolchain(), machine.triple, host.cpu, host.features, ir)
    kept = None if folder is None else disk.read_object(key, folder)
    if kept is not None:
        try:
            return Routine(_linked(kept), "disk", time.perf_counter() - begun)
        except RuntimeError:
            pass  # no object of ours, in spite of its hash: it is made anew
    made: bytes = _one_line(machine.emit_object, _optimised(ir, machine))
    address = _linked(made)
    if folder is not None:
        disk.write_object(key, made, folder)
    return Routine(address, "compiled", time.perf_counter() - begun)


def _toolchain() -> str:
    import llvmlite

    return f"llvmlite {llvmlite.__version__} LLVM {'.'.join(map(str, started().llvm_version_info))}"


def _machine(host: Host) -> Any:
    """LLVM's target machine. Raises RuntimeError."""
    llvm = started()
    if host.triple:
        _all_targets()
    target = _one_line(llvm.Target.from_triple, host.triple or llvm.get_process_triple())
    reloc, model = ("default", "jitdefault") if _WINDOWS else ("pic", "small")
    return target.create_target_machine(cpu=host.cpu, features=host.features, opt=3, reloc=reloc, codemodel=model)


@cache
def _all_targets() -> None:
    llvm = started()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def _optimised(ir: str, machine: Any) -> Any:
    """The module, verified and optimised. Raises RuntimeError."""
    llvm = started()
    module = _one_line(llvm.parse_assembly, ir)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    _one_line(module.verify)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return module


def _linked(data: bytes) -> int:
    """The address of an object's ``run``, put into memory. Raises RuntimeError."""
    missing = undefined(data)
    if missing:
        raise RuntimeError(
            f"the routine calls {', '.join(missing)} outside itself: expected code that is complete; write it with vectors "
            '(loops that fill or copy become calls unless their function has the attribute "no-builtins")'
        )
    library = started().JITLibraryBuilder().add_object_img(data).export_symbol("run")
    tracker = _one_line(library.link, _linker(), f"quorate{next(_NAMES)}")
    tracker.detach()  # never unloaded: its address is handed out
    return int(tracker["run"])


@cache
def _linker() -> Any:
    return started().create_lljit_compiler(use_jit_link=not _WINDOWS, suppress_errors=True)


def _one_line(function: Any, *arguments: Any) -> Any:
    """Call LLVM; its errors become one line."""
    try:
        return function(*arguments)
    except RuntimeError as error:
        raise RuntimeError(f"LLVM refuses a routine: {' '.join(str(error).split()) or 'it does not say why'}") from error

"""The functions that an object file wants from outside: undefined entries of its table of symbols.

Two formats, each of 64 bits and little-endian: ELF (also made for Windows) and Mach-O. In both a symbol is a fixed record with the place
of its name in a table of strings; only the fields needed here are read (System V ABI, "Symbol table"; Apple's ``mach-o/nlist.h``).
"""

from __future__ import annotations

import struct

_ELF, _MACHO = b"\x7fELF\x02\x01", b"\xcf\xfa\xed\xfe"
_SYMTAB, _LC_SYMTAB = 2, 2
_N_STAB, _N_TYPE = 0xE0, 0x0E


def undefined(data: bytes) -> list[str]:
    """Names of the symbols that an object uses and doesn't define, sorted. RuntimeError where it is no such object."""
    try:
        if data.startswith(_ELF):
            return sorted(set(_elf(data)))
        if data.startswith(_MACHO):
            return sorted(set(_macho(data)))
    except (struct.error, ValueError, OverflowError) as error:
        raise RuntimeError(f"an object's table of symbols is damaged ({error}): expected what LLVM wrote; delete it") from error
    raise RuntimeError(f"no object of ELF or Mach-O of 64 bits: it begins with {data[:8]!r}; expected what LLVM wrote")


def _name(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode("utf-8", "backslashreplace")


def _elf(data: bytes) -> list[str]:
    table, size, count = struct.unpack_from("<Q10xHH", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    found: list[str] = []
    for section in range(count):
        kind, start, length, link = struct.unpack_from("<4xI16xQQI", data, table + section * size)
        if kind != _SYMTAB:
            continue
        strings = struct.unpack_from("<24xQ", data, table + link * size)[0]
        for at in range(start + 24, start + length, 24):  # the first one is empty by definition
            name, home = struct.unpack_from("<I2xH", data, at)
            if home == 0:
                found.append(_name(data, strings + name))
    return found


def _macho(data: bytes) -> list[str]:
    at, found = 32, []
    for _ in range(struct.unpack_from("<16xI", data)[0]):
        command, size = struct.unpack_from("<II", data, at)
        if size < 8:
            raise ValueError(f"a load command of {size} bytes")
        if command == _LC_SYMTAB:
            start, count, strings = struct.unpack_from("<8xIII", data, at)
            for symbol in range(start, start + 16 * count, 16):
                name, kind = struct.unpack_from("<IB", data, symbol)
                if not kind & _N_STAB and kind & _N_TYPE == 0:
                    found.append(_name(data, strings + name))
        at += size
    return found

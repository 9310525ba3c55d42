"""Machine code from an object file that LLVM wrote, put into memory without LLVM, which would take 46 MB there.

It reads what our own builder writes, and no more: ELF for x86-64 of the large code model, where every reference is a
sum of 64-bit numbers. Source: System V ABI, AMD64 Architecture Processor Supplement, section 4.4 (relocation types).
"""

import ctypes
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass

_SECTION, _SYMBOL, _RELOCATION = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ"), struct.Struct("<QQq")
_PROGBITS, _SYMTAB, _RELA, _NOBITS = 1, 2, 4, 8  # types of sections
_ALLOC = 2  # a section's flag: it is in memory as the code runs
_UNDEFINED, _COMMON = 0, 0xFFF2  # where a symbol lies, other than in a section
_64, _PC64, _GOTOFF64, _GOT64, _GOTPC64 = 1, 24, 25, 27, 29  # types of relocations
_LINE = 64  # bytes to which everything is aligned


@dataclass(frozen=True)
class Code:
    """Code in memory, for as long as this object lives. symbols: address of each name that it defines."""

    memory: mmap.mmap
    symbols: dict[str, int]


def load_object(content: bytes, outside: Callable[[str], int]) -> Code:
    """Place the sections in memory, resolve references, and make the memory executable, no longer writable.

    outside: the address of a name that the code does not define. Raises ValueError for a damaged or another file.
    """
    try:
        return _load(content, outside)
    except (struct.error, IndexError, StopIteration) as error:
        raise ValueError(f"damaged object file ({error})") from None


def _load(content: bytes, outside: Callable[[str], int]) -> Code:
    if content[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<HH", content, 16) != (1, 62):
        raise ValueError("not an object file for x86-64")
    (table,) = struct.unpack_from("<Q", content, 40)
    count = struct.unpack_from("<H", content, 60)[0]
    sections = [_SECTION.unpack_from(content, table + i * _SECTION.size) for i in range(count)]
    _, _, _, _, at, size, link, *_ = next(section for section in sections if section[1] == _SYMTAB)
    strings = sections[link][4]
    symbols = []
    for offset in range(at, at + size, _SYMBOL.size):
        name, _, _, where, value, length = _SYMBOL.unpack_from(content, offset)
        text = content[strings + name : content.index(b"\0", strings + name)].decode()
        symbols.append((text, where, value, length))

    end = 0
    places: dict[int, int] = {}  # where each section is, from the beginning of the memory
    for index, (_, kind, flags, _, _, length, *_) in enumerate(sections):
        if flags & _ALLOC and kind in (_PROGBITS, _NOBITS):
            places[index], end = end, _up(end + length)
    got, end = end, _up(end + 8 * len(symbols))  # the table of addresses: one entry for each symbol, at its number
    commons = {}
    for number, (_, where, _, length) in enumerate(symbols):
        if where == _COMMON:
            commons[number], end = end, _up(end + length)

    memory = mmap.mmap(-1, max(end, 1))
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for index, place in places.items():
        _, kind, _, _, offset, length, *_ = sections[index]
        if kind == _PROGBITS:
            memory[place : place + length] = content[offset : offset + length]

    def address(number: int) -> int:
        name, where, value, _ = symbols[number]
        if where == _COMMON:
            return base + commons[number]
        return outside(name) if where == _UNDEFINED else base + places[where] + value

    for _, kind, _, _, offset, length, _, target, *_ in sections:
        if kind != _RELA or target not in places:
            continue
        for entry in range(offset, offset + length, _RELOCATION.size):
            at, info, addend = _RELOCATION.unpack_from(content, entry)
            number, form, place = info >> 32, info & 0xFFFFFFFF, places[target] + at
            if form == _GOT64:
                struct.pack_into("<Q", memory, got + 8 * number, address(number))
                value = 8 * number + addend
            elif form == _64:
                value = address(number) + addend
            elif form == _GOTOFF64:
                value = address(number) + addend - (base + got)
            elif form == _GOTPC64:
                value = base + got + addend - (base + place)
            elif form == _PC64:
                value = address(number) + addend - (base + place)
            else:
                raise ValueError(f"relocation of type {form} is not known")
            struct.pack_into("<q", memory, place, value)

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(base), ctypes.c_size_t(len(memory)), mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), "memory cannot be made executable")
    defined = {name: base + places[where] + value for name, where, value, _ in symbols if name and where in places}
    return Code(memory, defined)


def _up(size: int) -> int:
    return -(-size // _LINE) * _LINE

"""The program of a sandbox container: it waits, and its pid namespace has an init that leaves no zombies.

Made here as a static ELF file of some 230 bytes (elf(5)), for shims that know a pod only by its first container. It

    1. ignores SIGCHLD, upon which the kernel reaps its children itself, adopted ones too (wait(2));
    2. blocks SIGINT and SIGTERM: an init that blocks a signal gets it though it has no handler (pid_namespaces(7));
    3. waits for one of them, again when that is interrupted, and exits with 0.

One segment, readable and executable, holds the headers, the code and, behind it, the data: a struct sigaction as the
kernel has it (handler 1 for SIG_IGN, flags, restorer, mask) and a signal set.
"""

import platform
import signal
import struct
from typing import Final

from holdfast.model.errors import Unimplemented

BASE: Final = 0x40_0000
EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR: Final = struct.Struct("<IIQQQQQQ")
HEADERS: Final = EHDR.size + PHDR.size
IDENT: Final = b"\x7fELF" + bytes([2, 1, 1])  # 64 bits, little-endian, version 1
EM_X86_64: Final = 62
EM_AARCH64: Final = 183
ACTION: Final = struct.pack("<QQQQ", 1, 0, 0, 0)
AWAITED: Final = struct.pack("<Q", 1 << signal.SIGINT - 1 | 1 << signal.SIGTERM - 1)
SET_BYTES: Final = 8


def program(machine: str = "") -> bytes:
    """The ELF file for a machine as uname(2) names it, "" for this one. Raises Unimplemented for others."""
    machine = machine or platform.machine()
    if machine == "x86_64":
        return _elf(EM_X86_64, _x86_64())
    if machine == "aarch64":
        return _elf(EM_AARCH64, _aarch64())
    raise Unimplemented(f"cannot make a pause program for {machine}: only for x86_64 and aarch64")


def look() -> bytes:
    """The ELF file of a program that looks whether each of its arguments exists, and exits with 0. For x86_64."""
    clear_esi, clear_edi, syscall = b"\x31\xf6", b"\x31\xff", b"\x0f\x05"
    access = b"".join([
        b"\xb8" + struct.pack("<I", 21),  # mov eax, access
        clear_esi,  # F_OK
        syscall,
    ])  # fmt: skip
    begin = b"\x59\x5f"  # pop rcx, which is argc; pop rdi, which is argv[0]
    take = b"\x5f\x48\x85\xff"  # pop rdi; test rdi, rdi
    over = b"\x74" + struct.pack("<b", len(access) + 2)  # jz end
    again = b"\xeb" + struct.pack("<b", -len(take + over + access) - 2)  # jmp take
    end = b"\xb8" + struct.pack("<I", 60) + clear_edi + syscall  # exit(0)
    return _elf(EM_X86_64, begin + take + over + access + again + end, b"")


def _elf(machine: int, code: bytes, data: bytes = ACTION + AWAITED) -> bytes:
    body = code + data
    size, entry = HEADERS + len(body), BASE + HEADERS
    header = EHDR.pack(IDENT, 2, machine, 1, entry, EHDR.size, 0, 0, EHDR.size, PHDR.size, 1, 0, 0, 0)
    segment = PHDR.pack(1, 4 | 1, 0, BASE, BASE, size, size, 0x1_0000)  # PT_LOAD, PF_R | PF_X
    return header + segment + body


def _x86_64() -> bytes:
    """The number of a call is in eax, its arguments in edi, esi, edx, r10d; which a call leaves as they are."""
    length = 66
    action = struct.pack("<I", BASE + HEADERS + length)
    awaited = struct.pack("<I", BASE + HEADERS + length + len(ACTION))
    syscall = b"\x0f\x05"
    clear_edi, clear_esi, clear_edx = b"\x31\xff", b"\x31\xf6", b"\x31\xd2"  # xor with itself
    ignore = b"".join([
        b"\xb8" + struct.pack("<I", 13),  # mov eax, rt_sigaction
        b"\xbf" + struct.pack("<I", signal.SIGCHLD),  # mov edi, SIGCHLD
        b"\xbe" + action,  # mov esi, action
        clear_edx,
        b"\x41\xba" + struct.pack("<I", SET_BYTES),  # mov r10d, 8
        syscall,
    ])  # fmt: skip
    block = b"".join([
        b"\xb8" + struct.pack("<I", 14),  # mov eax, rt_sigprocmask
        clear_edi,  # SIG_BLOCK
        b"\xbe" + awaited,  # mov esi, awaited
        syscall,  # edx is 0 still
    ])  # fmt: skip
    wait = b"".join([
        b"\xb8" + struct.pack("<I", 128),  # mov eax, rt_sigtimedwait
        b"\xbf" + awaited,  # mov edi, awaited
        clear_esi,  # no siginfo
        syscall,  # edx: no timeout
        b"\x85\xc0",  # test eax, eax
    ])  # fmt: skip
    again = b"\x78" + struct.pack("<b", -len(wait) - 2)  # js wait
    end = b"\xb8" + struct.pack("<I", 60) + clear_edi + syscall  # exit(0)
    return ignore + block + wait + again + end


def _aarch64() -> bytes:
    """The number of a call is in x8, its arguments in x0 to x3, its result in x0; the others stay as they are."""
    length, svc = 80, 0xD400_0001

    def mov(register: int, value: int) -> int:  # movz
        return 0xD280_0000 | value << 5 | register

    def adr(register: int, target: int, at: int) -> int:
        distance = target - at
        return 0x1000_0000 | (distance & 3) << 29 | (distance >> 2) << 5 | register

    action, awaited = length, length + len(ACTION)
    words = [
        mov(8, 134), mov(0, signal.SIGCHLD), adr(1, action, 8), mov(2, 0), mov(3, SET_BYTES), svc,  # rt_sigaction
        mov(8, 135), mov(0, 0), adr(1, awaited, 32), mov(2, 0), svc,  # rt_sigprocmask, SIG_BLOCK
        mov(8, 137), adr(0, awaited, 48), mov(1, 0), mov(2, 0), svc,  # rt_sigtimedwait, no siginfo, no timeout
        0xB7F8_0000 | (-5 & 0x3FFF) << 5,  # tbnz x0, 63: back five instructions while the result is negative
        mov(8, 93), mov(0, 0), svc,  # exit(0)
    ]  # fmt: skip
    return struct.pack(f"<{len(words)}I", *words)

"""bpf(2): maps and programs, by ctypes. Sources: the uapi header linux/bpf.h, and bpf(2).

The system call lets other threads run while it works, so a million entries do not stop the event loop. No function here
needs more than the capabilities BPF, NET_ADMIN (a program) and PERFMON (a program that compares packet pointers); none
asks for an object by its id, which takes SYS_ADMIN, but `name_of_program`.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Iterator

import msgspec

LPM_TRIE, PERCPU_ARRAY, ARRAY_OF_MAPS, ARRAY = 11, 6, 12, 2
"""enum bpf_map_type."""
NO_PREALLOC = 1
"""BPF_F_NO_PREALLOC, without which there is no LPM trie."""
HAS_FRAGS = 1 << 5
"""BPF_F_XDP_HAS_FRAGS: the program takes frames in several buffers (kernel 5.18)."""

BATCH = 1 << 14
"""Entries per call: what a call costs by itself is nothing beside these, and others get the CPU between them."""

_NUMBER = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_CREATE, _LOOKUP, _UPDATE, _DELETE, _LOAD, _PIN, _GET, _RUN = 0, 1, 2, 3, 5, 6, 7, 10
_PROGRAM_BY_ID, _INFO, _LOOKUP_BATCH, UPDATE_BATCH, _DELETE_BATCH = 13, 15, 24, 26, 27
_XDP = 6
_LOG_BYTES = 1 << 20
_MOST_MAPS = 16
_BPF_FS = 0xCAFE4A11
"""BPF_FS_MAGIC."""
WRITES = frozenset((_UPDATE, UPDATE_BATCH))
"""Commands that put something into a map."""
_NAMES = {
    _CREATE: "make a map",
    _LOOKUP: "read a map",
    _UPDATE: "write to a map",
    _DELETE: "delete from a map",
    _LOAD: "load a program",
    _PIN: "pin",
    _GET: "open a pin",
    _RUN: "run a program",
    _PROGRAM_BY_ID: "open a program",
    _INFO: "describe an object",
    _LOOKUP_BATCH: "read a map",
    UPDATE_BATCH: "write to a map",
    _DELETE_BATCH: "delete from a map",
}

Attributes = ctypes.Array[ctypes.c_char]
"""`union bpf_attr`, which the kernel reads and writes."""

_libc = ctypes.CDLL(None, use_errno=True)


class Rejected(OSError):
    """The kernel did not take a program. log: what its verifier said, empty where it was not asked."""

    def __init__(self, code: int, log: str) -> None:
        super().__init__(code, f"cannot load a program: {os.strerror(code)}")
        self.log = log


class Shape(msgspec.Struct, frozen=True):
    """Of a map. sizes in bytes; most: entries that it holds."""

    kind: int
    key_size: int
    value_size: int
    most: int
    flags: int = 0


class MapInfo(msgspec.Struct, frozen=True):
    """A map as the kernel describes it."""

    identity: int
    shape: Shape


class ProgramInfo(msgspec.Struct, frozen=True):
    """A program as the kernel describes it. tag: a hash of its instructions, in hexadecimal digits.
    maps: the identities of those that it uses."""

    identity: int
    tag: str
    name: str
    maps: frozenset[int] = frozenset()


def bpf(command: int, attributes: Attributes) -> int:
    """The system call. Raises OSError, whose words name what was tried."""
    result = int(_libc.syscall(_NUMBER.get(platform.machine(), -1), command, attributes, len(attributes)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot {_NAMES[command]}: {os.strerror(code)}")
    return result


def create_map(name: str, shape: Shape, *, inner: int = 0) -> int:
    """A new map; its descriptor. `inner`: a descriptor of a map as those that it is to hold. Raises OSError."""
    sizes = (shape.kind, shape.key_size, shape.value_size, shape.most, shape.flags)
    return bpf(_CREATE, _packed("=7I16s", *sizes, inner, 0, name.encode()))


def describe_map(descriptor: int) -> MapInfo:
    """Raises OSError."""
    info = ctypes.create_string_buffer(80)
    bpf(_INFO, _packed("=IIQ", descriptor, len(info), _at(info)))
    kind, identity, *sizes = struct.unpack_from("=6I", info)
    return MapInfo(identity, Shape(kind, *sizes))


def lookup(descriptor: int, key: bytes, size: int) -> bytes | None:
    """The value, `size` bytes, of a key; None if it has none. Raises OSError."""
    held, value = _memory(key), ctypes.create_string_buffer(size)
    try:
        bpf(_LOOKUP, _packed("=I4xQQQ", descriptor, _at(held), _at(value), 0))
    except FileNotFoundError:
        return None
    return value.raw


def update(descriptor: int, key: bytes, value: bytes) -> None:
    """Set the value of a key, whether or not it has one. Raises OSError."""
    held, new = _memory(key), _memory(value)
    bpf(_UPDATE, _packed("=I4xQQQ", descriptor, _at(held), _at(new), 0))


def delete(descriptor: int, key: bytes) -> bool:
    """Delete a key; whether it was there. Raises OSError."""
    held = _memory(key)
    try:
        bpf(_DELETE, _packed("=I4xQQQ", descriptor, _at(held), 0, 0))
    except FileNotFoundError:
        return False
    return True


def update_all(descriptor: int, keys: bytes, values: bytes, key_size: int, value_size: int) -> None:
    """Set the values of these keys, in their order. Raises OSError: those before the one that failed are set."""
    held, new = _memory(keys), _memory(values)
    left, at = len(keys) // key_size, 0
    while left:
        count = min(left, BATCH)
        places = (_at(held) + at * key_size, _at(new) + at * value_size)
        bpf(UPDATE_BATCH, _packed("=QQQQIIQQ", 0, 0, *places, count, descriptor, 0, 0))
        at, left = at + count, left - count


def delete_all(descriptor: int, keys: bytes, key_size: int) -> int:
    """Delete these keys; how many of them were not there. Raises OSError."""
    held = _memory(keys)
    left, at, absent = len(keys) // key_size, 0, 0
    while left:
        attributes = _packed("=QQQQIIQQ", 0, 0, _at(held) + at * key_size, 0, min(left, BATCH), descriptor, 0, 0)
        try:
            bpf(_DELETE_BATCH, attributes)
        except FileNotFoundError:  # it ends at the first key that is not there, and says how many were before it
            absent += 1
            done = _count(attributes) + 1
        else:
            done = _count(attributes)
        at, left = at + done, left - done
    return absent


def entries(descriptor: int, key_size: int, value_size: int, batch: int = BATCH) -> Iterator[tuple[bytes, bytes]]:
    """All that a map holds, as runs of at most `batch` keys and their values. A trie tells longer prefixes before those
    that they are in, and otherwise by address. What is changed meanwhile may be missing, or there twice. Raises
    OSError."""
    keys, values = (ctypes.create_string_buffer(batch * size) for size in (key_size, value_size))
    place = ctypes.create_string_buffer(max(key_size, 8))
    first = True
    while True:
        start = 0 if first else _at(place)
        request = (start, _at(place), _at(keys), _at(values), batch, descriptor, 0, 0)
        attributes = _packed("=QQQQIIQQ", *request)
        try:
            bpf(_LOOKUP_BATCH, attributes)
            last = False
        except FileNotFoundError:
            last = True
        count = _count(attributes)
        if count:
            yield keys.raw[: count * key_size], values.raw[: count * value_size]
        if last:
            return
        first = False


def load_program(name: str, instructions: bytes, *, flags: int = 0) -> int:
    """Load an XDP program; its descriptor. Raises Rejected, with the verifier's log."""
    held, licence = _memory(instructions), _memory(b"Apache-2.0\0")
    count = len(instructions) // 8

    def attempt(level: int, log: "Attributes | None") -> int:
        logged = (level, len(log), _at(log)) if log is not None else (0, 0, 0)
        return bpf(
            _LOAD, _packed("=IIQQIIQII16s", _XDP, count, _at(held), _at(licence), *logged, 0, flags, name.encode())
        )

    try:
        return attempt(0, None)
    except OSError:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return attempt(1, log)
        except OSError as error:
            raise Rejected(error.errno or 0, log.value.decode(errors="replace").strip()) from error


def describe_program(descriptor: int) -> ProgramInfo:
    """Raises OSError."""
    maps = ctypes.create_string_buffer(4 * _MOST_MAPS)
    info = ctypes.create_string_buffer(struct.pack("=52xIQ16x", _MOST_MAPS, _at(maps)), 80)
    bpf(_INFO, _packed("=IIQ", descriptor, len(info), _at(info)))
    identity, tag, count, name = struct.unpack_from("=4xI8s36xI8x16s", info)
    used = struct.unpack_from(f"={min(count, _MOST_MAPS)}I", maps)
    return ProgramInfo(identity, tag.hex(), name.rstrip(b"\0").decode(errors="replace"), frozenset(used))


def name_of_program(identity: int) -> str:
    """Empty where it has none, is gone, or nobody may ask who has not the capability SYS_ADMIN."""
    try:
        descriptor = bpf(_PROGRAM_BY_ID, _packed("=III", identity, 0, 0))
    except OSError:
        return ""
    try:
        return describe_program(descriptor).name
    finally:
        os.close(descriptor)


def run_program(descriptor: int, frame: bytes, *, repeat: int = 1) -> tuple[int, int]:
    """Run an XDP program on a frame (at least 14 bytes), as the kernel offers for tests; its verdict (enum xdp_action)
    and the nanoseconds that a run took. Raises OSError."""
    held = _memory(frame)
    attributes = _packed("=4IQQI44x", descriptor, 0, len(frame), 0, _at(held), 0, repeat)
    bpf(_RUN, attributes)
    verdict, nanoseconds = struct.unpack_from("=4xI28xI", attributes)
    return verdict, nanoseconds


def pin(descriptor: int, path: str) -> None:
    """Give it a name on a bpffs, by which it lives on. Raises FileExistsError, PermissionError where that is none."""
    name = _memory(path.encode() + b"\0")
    bpf(_PIN, _packed("=QII", _at(name), descriptor, 0))


def open_pin(path: str) -> int:
    """A descriptor of what is pinned there. Raises FileNotFoundError, OSError."""
    name = _memory(path.encode() + b"\0")
    return bpf(_GET, _packed("=QII", _at(name), 0, 0))


def is_bpffs(path: str) -> bool:
    """Whether this is a folder on a bpffs, where programs and maps can be pinned."""
    answer = ctypes.create_string_buffer(256)
    if _libc.statfs(path.encode(), answer):
        return False
    return bool(struct.unpack_from("=I", answer)[0] == _BPF_FS)


def _packed(layout: str, *fields: "int | bytes") -> Attributes:
    packed = struct.pack(layout, *fields)
    return ctypes.create_string_buffer(packed, len(packed))


def _memory(content: bytes) -> "ctypes.c_char_p":
    """The bytes themselves, and no copy: a million keys are 8 MB. The kernel only reads them."""
    return ctypes.c_char_p(content)


def _at(memory: "Attributes | ctypes.c_char_p") -> int:
    if isinstance(memory, ctypes.c_char_p):
        return ctypes.cast(memory, ctypes.c_void_p).value or 0
    return ctypes.addressof(memory)


def _count(attributes: Attributes) -> int:
    """What the kernel wrote where a batch's number of entries was."""
    return int(struct.unpack_from("=32xI", attributes)[0])

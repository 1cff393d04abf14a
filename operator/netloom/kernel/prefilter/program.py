"""The program in the kernel: loaded with our maps, pinned, and found again after a restart by its pin and name.

Its name is made of its instructions, so nothing has to be loaded to see whether the one that is there is the right one.
Programs of other versions keep running where they are attached until ours has taken their place. Each set of rules has
a program of its own, which is the same but for the set's number.
"""

import errno
import os
import struct
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256

from netloom.kernel.prefilter import bpf
from netloom.kernel.prefilter.attachments import PROGRAM_PREFIX
from netloom.kernel.prefilter.bpf import ProgramInfo
from netloom.kernel.prefilter.compiler import Compiled
from netloom.kernel.prefilter.maps import NUMBERS, OWN_SET
from netloom.kernel.prefilter.permission import not_permitted
from netloom.kernel.prefilter.pins import Pins, closed_on_error

_PREFIX = "program_"
_INSTRUCTION = struct.Struct("=BBhi")
_LOAD_64, _MAP_DESCRIPTOR = 0x18, 1
_LAST_LINES = 12


class ProgramRefusal(Exception):
    """The kernel does not take the program: why as a sentence, and what its verifier said."""

    def __init__(self, sentence: str, verifier: str) -> None:
        super().__init__(sentence)
        self.verifier = verifier


class Programs:
    """All programs of the prefilter's that are pinned: descriptors by identity. current: those that are wanted, by set.
    sets: of each that is open, whatever its version. closed: identities of those that are pinned and that this process
    may not open: their pins' names tell. (The seccomp profile of containers lets nobody call bpf(2) without the
    capability BPF, though the kernel asks for none there.) Used by one thread at a time."""

    def __init__(self, pins: Pins) -> None:
        self.open: dict[int, int] = {}
        self.current: dict[int, int] = {}
        self.sets: dict[int, int] = {}
        self.closed: set[int] = set()
        self._infos: dict[int, ProgramInfo] = {}
        self._pins = pins

    @property
    def info(self) -> ProgramInfo:
        """Of the first that is wanted. Another thread may ask, while they are being closed."""
        _number, identity = min(self.current.items(), default=(0, 0))
        return self._infos.get(identity) or ProgramInfo(0, "", "")

    def find(self) -> None:
        """Open all that are pinned. Raises OSError."""
        self.closed.clear()
        for name in self._pins.names(_PREFIX):
            try:
                descriptor = self._pins.open(name)
            except PermissionError:
                self.closed.add(_numbers_of(name)[0])
                continue
            if descriptor is None:
                continue
            with closed_on_error(descriptor):
                info = bpf.describe_program(descriptor)
            if info.identity in self.open:
                os.close(descriptor)
            else:
                self._keep(descriptor, info, _numbers_of(name)[1])

    def need(self, compiled: Compiled, maps: Mapping[str, int], number: int) -> bool:
        """Have the program loaded that fits this kernel, with these maps (descriptors by name), for the set of this
        number; whether it had to be. Raises ProgramRefusal, OSError."""
        whole = (bytes.fromhex(compiled.multi_buffer), bpf.HAS_FRAGS), (bytes.fromhex(compiled.single_buffer), 0)
        variants = [(_of_set(instructions, number), flags) for instructions, flags in whole]
        used = {name: bpf.describe_map(maps[name]).identity for name in NUMBERS}
        for instructions, _flags in variants:
            name = name_of(instructions)
            for identity, info in self._infos.items():
                if info.name == name and info.maps >= set(used.values()):
                    self.current[number] = identity
                    self._pin(identity)
                    return False
        self._load(variants, maps, number)
        return True

    def want(self, numbers: Collection[int]) -> None:
        """Those of other sets are wanted no more."""
        self.current = {number: identity for number, identity in self.current.items() if number in numbers}

    def leave(self, needed: set[int]) -> None:
        """Unpin and close those that neither are wanted nor run anywhere (`needed`). Raises OSError."""
        wanted = needed.union(self.current.values())
        for identity in [each for each in self.open if each not in wanted]:
            self._pins.remove(self._pin_of(identity))
            os.close(self.open.pop(identity))
            del self._infos[identity], self.sets[identity]

    def close(self) -> None:
        """Close what is open. The kernel keeps what is pinned."""
        for descriptor in self.open.values():
            os.close(descriptor)
        self.open.clear()
        self._infos.clear()
        self.sets.clear()
        self.current.clear()
        self.closed.clear()

    def repin(self) -> None:
        """Pin again what somebody unpinned. Raises OSError."""
        for identity in self.open:
            self._pin(identity)

    def _load(self, variants: Sequence[tuple[bytes, int]], maps: Mapping[str, int], number: int) -> None:
        """The first variant that the kernel takes. Raises ProgramRefusal, with what it said of the first
        about which it said anything: a kernel that does not know several buffers refuses the flag without a word."""
        refused: list[bpf.Rejected] = []
        for instructions, flags in variants:
            try:
                descriptor = bpf.load_program(name_of(instructions), _linked(instructions, maps), flags=flags)
            except bpf.Rejected as error:
                refused.append(error)
                continue
            with closed_on_error(descriptor):
                info = bpf.describe_program(descriptor)
                self._pins.pin(_pin_name(info.identity, number), descriptor)
            self._keep(descriptor, info, number)
            self.current[number] = info.identity
            return
        raise _refusal(refused)

    def _keep(self, descriptor: int, info: ProgramInfo, number: int) -> None:
        self.open[info.identity] = descriptor
        self.sets[info.identity] = number
        self._infos[info.identity] = info

    def _pin_of(self, identity: int) -> str:
        return _pin_name(identity, self.sets[identity])

    def _pin(self, identity: int) -> None:
        name = self._pin_of(identity)
        if not self._pins.has(name):
            self._pins.pin(name, self.open[identity])


def _pin_name(identity: int, number: int) -> str:
    """`program_IDENTITY`, and behind it the number of its set, but for the first."""
    return f"{_PREFIX}{identity}" + (f"_{number}" if number else "")


def _numbers_of(pin: str) -> tuple[int, int]:
    """The program's identity, and the number of its set."""
    identity, _, number = pin.removeprefix(_PREFIX).partition("_")
    return int(identity), int(number or 0)


def name_of(instructions: bytes) -> str:
    """Of a program, for the kernel: at most 15 characters."""
    return f"{PROGRAM_PREFIX}{sha256(instructions).hexdigest()[:7]}"


def _of_set(instructions: bytes, number: int) -> bytes:
    """With the number of its set in the place of that which stands for it."""
    made = bytearray(instructions)
    for at in range(0, len(made), _INSTRUCTION.size):
        code, registers, offset, value = _INSTRUCTION.unpack_from(made, at)
        if code == _LOAD_64 and not registers >> 4 and value == OWN_SET:
            _INSTRUCTION.pack_into(made, at, code, registers, offset, number)
    return bytes(made)


def _linked(instructions: bytes, maps: Mapping[str, int]) -> bytes:
    """With descriptors in the place of the numbers that stand for the maps."""
    descriptors = {number: maps[name] for name, number in NUMBERS.items()}
    linked = bytearray(instructions)
    for at in range(0, len(linked), _INSTRUCTION.size):
        code, registers, offset, value = _INSTRUCTION.unpack_from(linked, at)
        if code == _LOAD_64 and registers >> 4 == _MAP_DESCRIPTOR:
            _INSTRUCTION.pack_into(linked, at, code, registers, offset, descriptors[value])
    return bytes(linked)


def _refusal(refused: list[bpf.Rejected]) -> ProgramRefusal:
    told = next((error for error in refused if error.log), refused[-1])
    lines = told.log.splitlines()
    # Without PERFMON the verifier lets no program compare the end of a frame with a pointer into it.
    if (told.errno == errno.EPERM and not lines) or any("prohibited" in line for line in lines):
        return ProgramRefusal(not_permitted("cannot load the prefilter"), "\n".join(lines[-_LAST_LINES:]))
    reason = next((line for line in reversed(lines) if line and not line.startswith(_STATISTICS)), "it did not say why")
    sentence = f"the kernel's verifier refused the prefilter ({os.strerror(told.errno or 0)}): {reason}"
    return ProgramRefusal(sentence, "\n".join(lines[-_LAST_LINES:]))


_STATISTICS = ("processed ", "verification time", "stack depth", "max_states")

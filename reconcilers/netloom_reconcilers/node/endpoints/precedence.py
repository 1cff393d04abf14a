"""Which network configuration a container runtime takes: of its directory the first, in the order of the names.

A file before ours is either somebody's wish, a plugin that calls others (Multus), or what another CNI left or keeps
there: then pods are wired by that one, and nothing but this would tell.
"""

import os
from pathlib import Path
from typing import NamedTuple

import msgspec

ENDINGS = (".conf", ".conflist", ".json")
"""Of the files that runtimes look at."""
_CALL_OTHERS = ("multus",)
"""How types begin of plugins that call those of other files."""


class PrecedingConfig(NamedTuple):
    """A file that runtimes take instead of ours. types: of its plugins; none where they cannot be read. calls_others:
    whether ours may be among what it calls."""

    path: Path
    types: tuple[str, ...]
    calls_others: bool


class _Plugin(msgspec.Struct):
    type: str = ""


class _NetworkFile(msgspec.Struct):
    """One plugin, or a list of them."""

    type: str = ""
    plugins: tuple[_Plugin, ...] = ()


def first(folder: Path, ours: Path, plugin: str) -> PrecedingConfig | None:
    """What comes before our file in the directory; None where nothing does. plugin: the type that ours has."""
    try:
        names = sorted(each.name for each in os.scandir(folder) if each.name.endswith(ENDINGS))
    except OSError:
        return None
    if not names or names[0] >= ours.name:
        return None
    path = folder / names[0]
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    types = _types(content)
    calls = any(each.startswith(_CALL_OTHERS) for each in types) or f'"{plugin}"'.encode() in content
    return PrecedingConfig(path, types, calls)


def types_of(path: Path) -> tuple[str, ...]:
    """The plugins that a configuration names; none where it cannot be read."""
    try:
        return _types(path.read_bytes())
    except OSError:
        return ()


def _types(content: bytes) -> tuple[str, ...]:
    try:
        found = msgspec.json.decode(content, type=_NetworkFile)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ()
    return tuple(filter(None, (found.type, *(each.type for each in found.plugins))))

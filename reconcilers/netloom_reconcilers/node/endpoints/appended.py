"""Plugins that somebody put behind ours, into our own configuration. Pure.

So the CNI plugins of service meshes are installed (Istio, Linkerd, Kuma): their installer takes the file that runtimes
take, puts an entry at the end of its list, and watches that it stays there. Taken out again, it would be put in again,
on and on, and pods that come in between would go around the mesh, its encryption and its policies, without a word.
"""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

Entry = dict[str, Any]
"""Of one plugin, as in the file."""


class _Config(msgspec.Struct):
    plugins: list[Entry] = msgspec.field(default_factory=list)


def appended(content: bytes, plugin: str, chain: Collection[str], ours: Mapping[str, Any]) -> tuple[Entry, ...] | None:
    """Entries of others in a configuration of ours; None if it is none.

    plugin: the type that ours has; chain: those that we have run behind it now; ours: what we tell plugins. What looks
    as we would have written it is no one else's: it may be of an earlier chain.
    """
    try:
        plugins = msgspec.json.decode(content, type=_Config).plugins
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if not plugins or plugins[0].get("type") != plugin:
        return None
    named = [each for each in plugins if isinstance(each.get("type"), str) and each["type"] not in (plugin, *chain)]
    return tuple(each for each in named if each != {"type": each["type"], **ours.get(each["type"], {})})


def is_alike(content: bytes, other: bytes) -> bool:
    """Whether two configurations say the same, however they are laid out."""
    try:
        return bool(msgspec.json.decode(content) == msgspec.json.decode(other))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False

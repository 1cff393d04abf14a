"""YAML, read by libyaml: PyYAML's own reader takes six times as long, eight seconds for a megabyte."""

from typing import Any

import yaml

MOST_DEPTH = 200
"""Levels of what is nested. libyaml's composer calls itself for each, and where its stack ends, at some 10,000, the
process does; what reads the values ends with a RecursionError long before."""
_OPENING = ("[", "{", "- ", "? ", ":")


def documents(content: str | bytes, loader: type[yaml.CSafeLoader] = yaml.CSafeLoader) -> list[Any]:
    """Those that are not empty, too. Raises yaml.YAMLError, and ValueError where a date is none."""
    opening = (each if isinstance(content, str) else each.encode() for each in _OPENING)
    if sum(map(content.count, opening)) > MOST_DEPTH:  # type: ignore[arg-type]
        _check_depth(content)
    return list(yaml.load_all(content, loader))


def _check_depth(content: str | bytes) -> None:
    depth = 0
    for event in yaml.parse(content, yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MOST_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MOST_DEPTH:,} levels deep")

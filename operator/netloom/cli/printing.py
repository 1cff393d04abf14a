"""Manifests as YAML that people keep in a repository: in our order, and without anchors."""

from typing import Any

import yaml


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def as_yaml(manifests: list[dict[str, Any]]) -> str:
    """All of them, one document each."""
    return yaml.dump_all(manifests, Dumper=_Plain, sort_keys=False, width=120)

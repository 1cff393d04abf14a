"""Features: what a role can do is a list of them, and an option says which of the list it does.

A feature is a class in a module of its own, and one line in its role's list (`FEATURES` of `netloom.roles.agent` and
`netloom.roles.operator`). What it is made of differs by role: `features.node`, `features.cluster`.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from netloom.api.meta import Object, Resource
from netloom.api.prefilter import NetloomPrefilter
from netloom.api.v1alpha1 import NetloomIPPool
from netloom.runtime.errors import ConfigError
from netloom.runtime.store import Store

OPTION = "--features"

T = TypeVar("T", bound=Object)


class Named(Protocol):
    """A feature, as far as it is chosen by name."""

    name: ClassVar[str]


F = TypeVar("F", bound=Named)


class Caches(Protocol):
    """Where a feature asks for the stores that it reads; somebody else fills them."""

    def store(
        self,
        resource: Resource[T],
        changed: Callable[[T, T], bool] | None = None,
        *,
        namespace: str = "",
        label_selector: str = "",
        optional: bool = False,
    ) -> Store[T]:
        """The one store of a kind. `changed` says which changes (old, new) matter to who asks; None: all of them.

        namespace, label_selector: what of the kind; for all who ask, as the first of them says. optional: the role
        does its work without it, so that it is not there makes nobody unready.
        """

    def fault(self, resource: Resource[Any]) -> str:
        """Why the store of this kind may not be what the API server holds now; "" if it is."""


def spec_changed(old: NetloomIPPool | NetloomPrefilter, new: NetloomIPPool | NetloomPrefilter) -> bool:
    """What an object asks for, or that it ends. Its status is for people: it makes no difference."""
    return old.spec != new.spec or old.metadata.deletion_timestamp != new.metadata.deletion_timestamp


def chosen(features: Sequence[type[F]], wanted: str) -> tuple[type[F], ...]:
    """Those of the list that are on, in its order: `*` stands for all, `name` for one, `-name` takes one away; names
    that are only taken away are taken from all. Raises ConfigError, which lists the names."""
    items = [item.strip() for item in wanted.split(",") if item.strip()]
    names = {item.removeprefix("-") for item in items} - {"*"}
    known = [feature.name for feature in features]
    if unknown := sorted(names.difference(known)):
        raise ConfigError(f"{OPTION}: there is no feature {unknown[0]!r}; there are: {', '.join(known)}")
    if not items:
        raise ConfigError(f"{OPTION} names no feature; there are: {', '.join(known)}, and * for all of them")
    every = "*" in items or all(item.startswith("-") for item in items)
    return tuple(each for each in features if f"-{each.name}" not in items and (every or each.name in items))

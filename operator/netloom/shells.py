"""Modules of a large package without the rest of it.

The `__init__` of some packages imports everything that is in them. Here such a package is entered into `sys.modules`
as an empty shell with the real search path, while those of its modules that are needed are imported. Afterwards the
shell and all that was imported below it are taken out again, so that an `import` of the package elsewhere in the
process gets the real, whole package and never a half-made one.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any


def shell(name: str, path: list[str] | None = None) -> types.ModuleType:
    """An empty module, or an empty package whose submodules are found under `path`."""
    module = types.ModuleType(name)
    spec = importlib.machinery.ModuleSpec(name, None, is_package=path is not None)
    module.__spec__ = spec
    if path is not None:
        spec.submodule_search_locations = path
        module.__path__ = path
    return module


@contextmanager
def shells(package: str, *below: str, stand_ins: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[None]:
    """While it lasts, the package and those `below` it (`client`) are shells, and modules of it (`client.models`)
    have nothing in them but these attributes. Raises ModuleNotFoundError."""
    found = importlib.util.find_spec(package)
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    root = list(found.submodule_search_locations)
    made = {package: shell(package, root)}
    for name in below:
        made[f"{package}.{name}"] = shell(f"{package}.{name}", [f"{path}/{name}" for path in root])
    for name, attributes in (stand_ins or {}).items():
        made[f"{package}.{name}"] = module = shell(f"{package}.{name}")
        vars(module).update(attributes)
    for name, module in made.items():
        parent, _, last = name.rpartition(".")
        if parent in made:
            setattr(made[parent], last, module)
    before = _taken_out(package)
    sys.modules.update(made)
    try:
        yield
    finally:
        _taken_out(package)
        sys.modules.update(before)


@contextmanager
def imported_later(modules: Mapping[str, Iterable[str]]) -> Iterator[None]:
    """While it lasts, something stands in the place of these modules that are not imported yet; it imports the module
    once an attribute of it is asked for. The names (`Trace*`: all such) may be taken out of it for nothing: what stands
    for one imports the module when it is called, or asked for an attribute; who inherits from it inherits nothing."""
    made = {name: _later(name, tuple(names)) for name, names in modules.items() if name not in sys.modules}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module in made.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


class _StandIn(types.ModuleType):
    """What stands for a module that is not imported yet."""


class _Later:
    """What stands for an attribute of a module that is not imported yet."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:
        return getattr(_imported(self._module), self._name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._real()(*arguments, **options)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # what `typing` asks everything in an annotation
            raise AttributeError(f"{self._module}.{self._name} is not imported yet, and has no {attribute!r}")
        return getattr(self._real(), attribute)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()


def _later(name: str, taken: tuple[str, ...]) -> types.ModuleType:
    def asked(attribute: str) -> Any:
        if attribute.startswith("__"):  # what the import system asks every module
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        if any(fnmatchcase(attribute, each) for each in taken):
            return _Later(name, attribute)
        return getattr(_imported(name), attribute)

    module = _StandIn(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__getattr__ = asked  # type: ignore[method-assign]
    return module


def _imported(name: str) -> types.ModuleType:
    if isinstance(sys.modules.get(name), _StandIn):
        del sys.modules[name]
    return importlib.import_module(name)


def _taken_out(package: str) -> dict[str, types.ModuleType]:
    names = [name for name in sys.modules if name == package or name.startswith(f"{package}.")]
    return {name: sys.modules.pop(name) for name in names}

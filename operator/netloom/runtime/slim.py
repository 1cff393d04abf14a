"""The parts of kubernetes-asyncio that Netloom uses, without its 700 model classes.

Both package `__init__`s of kubernetes-asyncio import every model: 1,260 modules, 0.3 s, and 63 MiB that an agent on
every node of a cluster would carry for nothing. Here the two packages are entered into `sys.modules` as empty shells
with the real search path, and `client.models` as an empty module, while configuration, authentication and ApiClient
are imported: 5 MiB. Afterwards the shells are taken out again, so that an `import kubernetes_asyncio` elsewhere in
the process gets the real, whole package and never a half-made one.

urllib3, of which its configuration uses one function for one way to log in, is imported when it is asked for that; so
are dateutil (2 MiB), by which ApiClient would read the times in models, and its pool of threads (0.5 MiB).
"""

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_PACKAGE = "kubernetes_asyncio"
_CLIENT = f"{_PACKAGE}.client"


def _shell(name: str, path: list[str] | None = None) -> types.ModuleType:
    """An empty module, or an empty package whose submodules are found under `path`."""
    module = types.ModuleType(name)
    spec = importlib.machinery.ModuleSpec(name, None, is_package=path is not None)
    module.__spec__ = spec
    if path is not None:
        spec.submodule_search_locations = path
        module.__path__ = path
    return module


@contextmanager
def _without_models() -> Iterator[types.ModuleType]:
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)
    root = list(found.submodule_search_locations)
    package = _shell(_PACKAGE, root)
    client = _shell(_CLIENT, [f"{path}/client" for path in root])
    models = _shell(f"{_CLIENT}.models")
    package.client = client  # type: ignore[attr-defined]
    client.models = models  # type: ignore[attr-defined]
    before = {name: module for name, module in sys.modules.items() if _ours(name)}
    for name in before:
        del sys.modules[name]
    sys.modules.update({_PACKAGE: package, _CLIENT: client, models.__name__: models})
    stand_ins = [_later("urllib3"), _later("dateutil.parser", "parse"), _later("multiprocessing.pool", "ThreadPool")]
    try:
        yield client
    finally:
        for name in [name for name in sys.modules if _ours(name)]:
            del sys.modules[name]
        sys.modules.update(before)
        for stand_in in stand_ins:
            if stand_in and sys.modules.get(stand_in.__name__) is stand_in:
                del sys.modules[stand_in.__name__]


def _later(name: str, *functions: str) -> types.ModuleType | None:
    """Something in a module's place that imports the module once an attribute of it is asked for, or once one of the
    functions is called: those may be taken out of it before."""
    if name in sys.modules:
        return None

    def real(attribute: str) -> Any:
        if attribute.startswith("__"):  # what the import system asks every module
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        return getattr(importlib.import_module(name), attribute)

    def called_later(function: str) -> Callable[..., Any]:
        return lambda *arguments, **options: real(function)(*arguments, **options)

    module = sys.modules[name] = _shell(name)
    module.__getattr__ = real  # type: ignore[method-assign]
    for function in functions:
        setattr(module, function, called_later(function))
    return module


def _ours(name: str) -> bool:
    return name == _PACKAGE or name.startswith(f"{_PACKAGE}.")


with _without_models() as _client:
    Configuration: Any = importlib.import_module(f"{_CLIENT}.configuration").Configuration
    ApiClient: Any = importlib.import_module(f"{_CLIENT}.api_client").ApiClient
    RESTClientObject: Any = importlib.import_module(f"{_CLIENT}.rest").RESTClientObject
    # kube_config takes these two from the package, whose __init__ has not run.
    _client.Configuration = Configuration  # type: ignore[attr-defined]
    _client.ApiClient = ApiClient  # type: ignore[attr-defined]
    _kube_config: Any = importlib.import_module(f"{_PACKAGE}.config.kube_config")
    KubeConfigMerger: Any = _kube_config.KubeConfigMerger
    KubeConfigLoader: Any = _kube_config.KubeConfigLoader
    ConfigNode: Any = _kube_config.ConfigNode
    ExecProvider: Any = _kube_config.ExecProvider

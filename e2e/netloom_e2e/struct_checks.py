"""A plugin of mypy that refuses functions of `dataclasses` on structs of msgspec.

These pass as dataclasses by their types (both are made by a dataclass transform), and raise a TypeError when they run.
"""

from collections.abc import Callable

from mypy.plugin import FunctionContext, Plugin
from mypy.types import CallableType, Instance, TypeType, TypeVarType, UnionType, get_proper_type
from mypy.types import Type as Known

_FUNCTIONS = frozenset(f"dataclasses.{name}" for name in ("asdict", "astuple", "fields", "is_dataclass", "replace"))


class StructChecks(Plugin):
    """See the module."""

    def get_function_hook(self, fullname: str) -> Callable[[FunctionContext], Known] | None:
        """The check of one of the functions."""
        return _refuse_struct if fullname in _FUNCTIONS else None


def _refuse_struct(context: FunctionContext) -> Known:
    given = context.arg_types[0] if context.arg_types else []
    if any(map(_may_be_struct, given)):
        context.api.fail("A struct of msgspec is no dataclass: take the function of msgspec.structs", context.context)
    return context.default_return_type


def _may_be_struct(of: Known) -> bool:
    known = get_proper_type(of)
    if isinstance(known, UnionType):
        return any(map(_may_be_struct, known.items))
    if isinstance(known, TypeType):
        return _may_be_struct(known.item)
    if isinstance(known, CallableType):
        return _may_be_struct(known.ret_type)
    if isinstance(known, TypeVarType):
        return _may_be_struct(known.upper_bound)
    return isinstance(known, Instance) and any(base.fullname == "msgspec.Struct" for base in known.type.mro)


def plugin(_version: str) -> type[Plugin]:
    """What mypy asks for."""
    return StructChecks

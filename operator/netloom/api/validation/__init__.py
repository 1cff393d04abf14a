"""What is wrong with objects, beyond what their types say: one judgement for the operator, the webhook and files.

The rules of `crds/` are said here again, in the same words, for objects that never met an API server, or met it before
a rule existed. All functions are pure; a test holds their words against the API server's.
"""

from collections.abc import Callable
from typing import Any

from netloom.api.meta import Object
from netloom.api.prefilter import NetloomPrefilter
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NetloomIPPool, NetloomNetwork, NetloomNode
from netloom.api.validation.network import validate_network
from netloom.api.validation.node import validate_node
from netloom.api.validation.pool import validate_pool, validate_pool_update
from netloom.api.validation.prefilter import validate_prefilter

__all__ = [
    "validate",
    "validate_network",
    "validate_node",
    "validate_pool",
    "validate_pool_update",
    "validate_prefilter",
]


_RULES: dict[Any, Callable[[Any], list[Problem]]] = {
    NetloomNetwork: validate_network,
    NetloomNode: validate_node,
    NetloomIPPool: validate_pool,
    NetloomPrefilter: validate_prefilter,
}


def validate(obj: Object) -> list[Problem]:
    """Everything that is wrong with an object by itself; of a kind that is not ours, nothing is."""
    rules = _RULES.get(type(obj))
    return rules(obj) if rules else []

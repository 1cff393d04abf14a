"""What is wrong with objects, beyond what their types say: one judgement for the operator, the webhook and files.

The rules of `crds/` are said here again, in the same words, for objects that never met an API server, or met it before
a rule existed. The rest is what those rules cannot say, as they see one object at a time: cluster CIDRs that hold
nodes' addresses, pools that overlap. All functions are pure; a test holds their words against the API server's.
"""

from netloom.api.meta import Object
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NetloomIPPool, NetloomNetwork, NetloomNode, NetloomPrefilter
from netloom.api.validation.network import validate_network, validate_network_update
from netloom.api.validation.node import validate_node, validate_node_update
from netloom.api.validation.pool import validate_pool, validate_pool_update, validate_pools
from netloom.api.validation.prefilter import validate_prefilter

__all__ = [
    "validate",
    "validate_network",
    "validate_network_update",
    "validate_node",
    "validate_node_update",
    "validate_pool",
    "validate_pool_update",
    "validate_pools",
    "validate_prefilter",
]


def validate(obj: Object) -> list[Problem]:
    """Everything that is wrong with an object by itself; of a kind that is not ours, nothing is."""
    match obj:
        case NetloomNetwork():
            return validate_network(obj)
        case NetloomNode():
            return validate_node(obj)
        case NetloomIPPool():
            return validate_pool(obj)
        case NetloomPrefilter():
            return validate_prefilter(obj)
    return []

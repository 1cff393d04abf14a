"""NetloomPrefilters: what they would drop."""

from netloom.api.cidrs import parse_cidrs
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NetloomPrefilter


def validate_prefilter(prefilter: NetloomPrefilter) -> list[Problem]:
    """Everything that is wrong with a prefilter by itself."""
    name = f"NetloomPrefilter {prefilter.metadata.name}"
    networks, problems = parse_cidrs(
        prefilter.spec.deny_cidrs, object=name, field="spec.denyCIDRs", example="192.0.2.0/24"
    )
    for field, network in networks:
        if network.length == 0:
            message = "this drops every packet, the API server's as well, and nothing could undo it."
            way_out = "Name what is to be dropped."
            problems.append(Problem(name, field, str(network), "DropsEverything", message, way_out))
    return problems

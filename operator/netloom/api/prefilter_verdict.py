"""What is wrong with a cluster's NetloomPrefilters, for the verdict of `netloom.api.verdict`; and what is to be known.

A node whose prefilter fails says so itself (condition `PrefilterReady`). Here is what the objects say as a whole: where
one does not run yet, and what of it is not active. One that selects no node is no fault, as its nodes may be yet to
come, but whoever wrote its labels wrong has to see it: that is a note, and so is generic mode where native was wished
for and is not to be had.
"""

from collections.abc import Iterable, Iterator

from netloom.api.cluster_facts import ObjectProblem
from netloom.api.meta import READY
from netloom.api.prefilter import NetloomPrefilter
from netloom.api.v1alpha1 import NetloomNode
from netloom.api.words import SHOWN

KIND = "NetloomPrefilter"
NO_NODES = "NoNodes"
"""Reason of condition Ready."""


def problems(prefilters: Iterable[NetloomPrefilter]) -> Iterator[ObjectProblem]:
    """In the order of their names. That there is no operator who would judge them is said elsewhere."""
    for each in sorted(prefilters, key=lambda each: each.metadata.name):
        name, conditions = each.metadata.name, {one.type: one for one in each.status.conditions}
        ready = conditions.get(READY)
        if ready is None or ready.observed_generation != each.metadata.generation:
            why = "no operator has said how it fares" + (" since it was changed" if ready is not None else "")
            way = "If that lasts, look whether `netloom operator` runs, with its feature prefilters."
            yield ObjectProblem(KIND, name, "NotYetJudged", f"{KIND} {name}: {why}. {way}")
            continue
        for one in conditions.values():
            if one.status != "True" and one.reason != NO_NODES:
                told = f"{one.type}={one.status}"
                yield ObjectProblem(KIND, name, one.reason, f"{KIND} {name}: {told} {one.reason}: {one.message}", told)


def notes(prefilters: Iterable[NetloomPrefilter], nodes: Iterable[NetloomNode]) -> Iterator[str]:
    """What is no fault, as sentences: one for each prefilter without nodes, one for all nodes in generic mode."""
    for each in sorted(prefilters, key=lambda each: each.metadata.name):
        for one in each.status.conditions:
            if one.reason == NO_NODES:
                yield f"{KIND} {each.metadata.name}: {one.message}"
    found = sorted((node.metadata.name, *generic) for node in nodes if (generic := _first_generic(node)))
    if found:
        names = ", ".join(name for name, _, _ in found[:SHOWN])
        more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
        first, device, why = found[0]
        because = f": {why}" if why else ""
        yield (
            f"prefilters run in generic mode, which costs more of the processor for each packet, on {names}{more}. For "
            f"one, on {first}, {device}{because}. Who wants native mode or an error sets spec.mode to native."
        )


def _first_generic(node: NetloomNode) -> tuple[str, str] | None:
    devices = node.status.prefilter.devices if node.status.prefilter is not None else ()
    return next(((each.name, each.error.rstrip(".")) for each in devices if each.mode == "generic"), None)

"""What a node says of its prefilters: in its NetloomNode, in a condition, on /status. Pure."""

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import msgspec

from netloom.api.prefilter import FilteredDevice, FilterFailure, NodeFilter, NodePrefilter
from netloom.api.words import some_sentences
from netloom.kernel.prefilter.keeper import PrefilterReport
from netloom.kernel.prefilter.prefiltering import Dropped
from netloom.prefilter.lists import ParsedList
from netloom.prefilter.node_rules import Share
from netloom.prefilter.records import text_of
from netloom_reconcilers.conditions import Readiness

MOST_PROBLEMS, LONGEST, MOST = 8, 1024, 256
"""Of the CRD; MOST_PROBLEMS: failures, too; MOST: devices, and prefilters."""
T = TypeVar("T", FilteredDevice, NodeFilter)
_NAMED = 3
_MOST_COUNTED = 2**53 - 1


class Told(msgspec.Struct, frozen=True):
    """Of one prefilter that selects this node. lists: by what names each. error: why it is not in force here. devices:
    those that it is meant for."""

    name: str
    generation: int = 0
    lists: Mapping[str, ParsedList] = {}
    problems: tuple[str, ...] = ()
    error: str = ""
    devices: tuple[str, ...] = ()


def shares_of(groups: Sequence[Mapping[str, Share]]) -> Mapping[str, Share]:
    """By name, of prefilters that decide together on some devices, and in other company on others: as where most of one
    is withheld."""
    found: dict[str, Share] = {}
    for shares in groups:
        for name, share in shares.items():
            if name not in found or len(share.withheld) > len(found[name].withheld):
                found[name] = share
    return found


def status_of(
    filters: Sequence[Told],
    shares: Mapping[str, Share],
    report: PrefilterReport,
    dropped: Mapping[str, Dropped],
    main: Collection[str] = (),
) -> NodePrefilter:
    """For the node's object. main: devices that are meant where none is named."""
    devices = tuple(
        FilteredDevice(each.name, each.mode, (each.error or each.note)[:LONGEST], each.name in main)
        for each in report.devices
    )
    told = tuple(_filter(each, shares.get(each.name), report, dropped) for each in filters)
    return NodePrefilter(_bounded(devices), _bounded(told))


def _bounded(some: tuple[T, ...]) -> tuple[T, ...]:
    """As many as an object takes: those with errors before others, in their order."""
    if len(some) <= MOST:
        return some
    kept = {id(each) for each in sorted(some, key=lambda each: not each.error)[:MOST]}
    return tuple(each for each in some if id(each) in kept)


def _filter(told: Told, share: Share | None, report: PrefilterReport, dropped: Mapping[str, Dropped]) -> NodeFilter:
    counted = dropped.get(told.name, Dropped())
    problems = problems_of(told, share)
    more = len(problems) - MOST_PROBLEMS
    shown = problems if more <= 0 else [*problems[: MOST_PROBLEMS - 1], f"And {more + 1} more."]
    mine = [each for each in report.devices if each.name in told.devices]
    runs = not told.error and (any(each.mode for each in mine) or not mine)
    entries = share.entries if share is not None and runs else {}
    failures = failures_of(told, report)
    return NodeFilter(
        name=told.name,
        generation=told.generation,
        ipv4_entries=entries.get(4, 0),
        ipv6_entries=entries.get(6, 0),
        withheld=len(share.withheld) if share is not None else 0,
        bad_lines=sum(each.bad_lines for each in told.lists.values()),
        packets=min(counted.packets, _MOST_COUNTED),
        bytes=min(counted.bytes, _MOST_COUNTED),
        error=" ".join(each.message for each in failures)[:LONGEST],
        failures=_some_failures(failures),
        problems=tuple(each[:LONGEST] for each in shown),
    )


def failures_of(told: Told, report: PrefilterReport) -> tuple[FilterFailure, ...]:
    """Why what a prefilter wants is not in the kernel on each of its devices, as sentences; none if it is."""
    if told.error:
        return (FilterFailure(told.error),)
    found = [("", report.error)] if report.error else []
    mine = [each for each in report.devices if each.name in told.devices]
    found += [(each.name, f"{each.name}: {each.error}") for each in mine if each.error not in ("", report.error)]
    known = {report.error, *(each.error for each in mine)}
    others = {each.name for each in report.devices} - set(told.devices)
    for each in report.failures:
        device = each.key if each.kind == "xdp" else ""
        if each.error not in known and device not in others:
            found.append((device, f"{each}"))
    return tuple(
        FilterFailure(said if said.endswith(".") else f"{said}.", (device,) if device else ())
        for device, said in dict.fromkeys(found)
    )


def _some_failures(found: tuple[FilterFailure, ...]) -> tuple[FilterFailure, ...]:
    """As many as an object takes; none of the devices is left out."""
    if len(found) <= MOST_PROBLEMS:
        return tuple(msgspec.structs.replace(each, message=each.message[:LONGEST]) for each in found)
    rest = found[MOST_PROBLEMS - 1 :]
    devices = {device: None for each in rest for device in each.devices} if all(each.devices for each in rest) else {}
    more = FilterFailure(
        f"And {len(rest)} more: status.prefilter.devices of the node says which.", tuple(devices)[:MOST]
    )
    return (*_some_failures(found[: MOST_PROBLEMS - 1]), more)


def problems_of(told: Told, share: Share | None) -> list[str]:
    """What is wrong with a prefilter, and does not keep it from running, as sentences."""
    found = list(told.problems)
    for key, each in told.lists.items():
        if each.bad_lines:
            more = f" And {each.bad_lines - len(each.bad)} more." if each.bad_lines > len(each.bad) else ""
            lines = "line is" if each.bad_lines == 1 else "lines are"
            found.append(
                f"{key}: {each.bad_lines} {lines} left out: {'; '.join(map(str, each.bad))}.{more} Mend the list."
            )
    if share is not None and share.withheld:
        named = "; ".join(f"{text_of(each.record)}: {each.why}" for each in share.withheld[:_NAMED])
        more = f"; and {len(share.withheld) - _NAMED} more" if len(share.withheld) > _NAMED else ""
        found.append(
            f"entries would cut this node off, and are not active: {named}{more}. Take them out, give exceptions in "
            "spec.allowCIDRs, or set spec.mayCutOffNodes to true."
        )
    return [*found, *(share.contradictions if share is not None else ())]


def readiness_of(status: NodePrefilter) -> Readiness:
    """For the condition. No counts: it is written when it changes."""
    if failed := [each for each in status.filters if each.error]:
        by_error: dict[str, list[str]] = {}
        for each in failed:
            by_error.setdefault(each.error, []).append(each.name)
        said = [f"NetloomPrefilter {', '.join(names)}: {error}" for error, names in by_error.items()]
        return Readiness(False, "PrefilterFailed", " ".join(some_sentences(said)))
    if doubtful := [each for each in status.filters if each.problems]:
        said = [f"NetloomPrefilter {each.name}: {each.problems[0]}" for each in doubtful]
        reason = "Withheld" if any(each.withheld for each in doubtful) else "NotWhole"
        return Readiness(True, reason, " ".join(some_sentences(said)), warns=True)
    return Readiness(True, "Active", "What prefilters want of this node is in the kernel.")


def uncounted(new: NodePrefilter, old: NodePrefilter | None) -> NodePrefilter:
    """With the counts that were told last, so that they alone make no difference."""
    counts = {each.name: (each.packets, each.bytes) for each in old.filters} if old is not None else {}
    filters = []
    for each in new.filters:
        packets, size = counts.get(each.name, (0, 0))
        filters.append(msgspec.structs.replace(each, packets=packets, bytes=size))
    return msgspec.structs.replace(new, filters=tuple(filters))

"""What `netloom prefilter` prints."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from netloom.api.core import NODES, Node
from netloom.api.errors import UserError
from netloom.api.meta import READY, Condition, condition_of
from netloom.api.participation import takes_part
from netloom.api.prefilter import ListReference, NetloomPrefilter, NodeFilter
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORK_NAME, NETWORKS, PREFILTERS, NetloomNode
from netloom.api.words import some
from netloom.cidr import Address, CidrError, addresses_in, parse_address, version_of
from netloom.cli.options import Cluster
from netloom.cli.prefilter_places import Extent, FilterPlace, meant, places
from netloom.cli.reading import reading
from netloom.cli.status_text import aligned, safe
from netloom.prefilter.lists import ParsedList, parse_list
from netloom.prefilter.lookup import holding
from netloom.prefilter.node_rules import Filter, NodeRules
from netloom.prefilter.records import Records, text_of
from netloom.prefilter.withheld import Lifeline, lifelines_of
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError, NotFound
from netloom_reconcilers.node.known.peers import pods_of
from netloom_reconcilers.node.prefilter.config_maps import CONFIG_MAPS, read

_NAMED = 8
_BY_WHAT_IT_HELD = "agents that have read it drop by what it held, as long as they run"


class Shown(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One prefilter. generic: nodes on which it runs in generic mode on some device. dropped: packets on all nodes, as
    these last said."""

    name: str
    mode: str
    selected: int
    active: int
    failed: int
    generic: int
    ipv4_entries: int
    ipv6_entries: int
    withheld: int
    dropped: int
    ready: str
    reason: str
    message: str
    problems: tuple[str, ...]


class AddressVerdict(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What becomes of packets on some devices of some nodes. prefilters: that decide there. entry: that decides, ""
    where none holds the address; lists: in which it is; withheld: longer or equal entries that nodes would not have
    active, each with the reason. failing: nodes where it is not so, each with the reason."""

    nodes: tuple[str, ...]
    devices: tuple[str, ...] = ()
    extent: Extent = Extent.EVERY
    prefilters: tuple[str, ...] = ()
    dropped: bool
    entry: str = ""
    prefilter: str = ""
    lists: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    failing: tuple[str, ...] = ()


class AddressAnswer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What becomes of packets from an address. unread: lists that could not be read, as sentences."""

    address: str
    verdicts: tuple[AddressVerdict, ...]
    unread: tuple[str, ...] = ()


async def prefilters(cluster: Cluster) -> tuple[Shown, ...]:
    """All of the cluster. Raises UserError."""
    async with reading(cluster, "prefilter") as api:
        objects, nodes = (await api.list(PREFILTERS)).objects, (await api.list(NETLOOM_NODES)).objects
    return tuple(shown(each, nodes) for each in objects)


def shown(obj: NetloomPrefilter, nodes: Iterable[NetloomNode]) -> Shown:
    """As its status and those of the nodes say."""
    status = obj.status
    ready = condition_of(status.conditions, READY)
    if ready is not None and ready.observed_generation != obj.metadata.generation:
        said = "no operator has looked at it since it was changed"
        ready = Condition(READY, "Unknown", "NotYetJudged", said, ready.last_transition_time)
    reports = [(node, each) for node in nodes for each in _filters(node) if each.name == obj.metadata.name]
    return Shown(
        name=obj.metadata.name,
        mode=obj.spec.mode,
        selected=status.nodes.selected if status.nodes else 0,
        active=status.nodes.active if status.nodes else 0,
        failed=status.nodes.failed if status.nodes else 0,
        generic=sum(_is_generic(obj, node) for node, each in reports if not each.error),
        ipv4_entries=status.ipv4_entries,
        ipv6_entries=status.ipv6_entries,
        withheld=status.withheld,
        dropped=sum(each.packets for _, each in reports),
        ready=ready.status if ready else "Unknown",
        reason=ready.reason if ready else "",
        message=ready.message if ready else "no operator has looked at it yet",
        problems=status.problems,
    )


def _filters(node: NetloomNode) -> tuple[NodeFilter, ...]:
    return node.status.prefilter.filters if node.status.prefilter is not None else ()


def _is_generic(obj: NetloomPrefilter, node: NetloomNode) -> bool:
    said = node.status.prefilter
    return said is not None and any(each.mode == "generic" for each in meant(obj, said))


def table(found: Sequence[Shown]) -> Iterator[str]:
    """As lines."""
    if not found:
        yield "there is no NetloomPrefilter"
        return
    rows: list[tuple[str, ...]] = [
        ("PREFILTER", "MODE", "SELECTED", "ACTIVE", "FAILED", "GENERIC", "IPV4", "IPV6", "WITHHELD", "DROPPED", "READY")
    ]
    for each in found:
        counts = (
            each.selected,
            each.active,
            each.failed,
            each.generic,
            each.ipv4_entries,
            each.ipv6_entries,
            each.withheld,
        )
        said = f"{each.ready} {each.reason}".strip()
        rows.append((each.name, each.mode, *map(str, counts), str(each.dropped), said))
    yield from aligned(rows)
    for each in found:
        if each.ready != "True":
            yield f"{each.name}: {safe(each.message)}"
        yield from (f"{each.name}: {safe(problem)}" for problem in each.problems)


async def look_up(
    cluster: Cluster, text: str, on: Collection[str] = (), devices: Collection[str] = ()
) -> AddressAnswer:
    """What becomes of packets from the address. on, devices: names of nodes and names or patterns of devices that are
    of interest alone; none: all are. Raises UserError."""
    try:
        address = parse_address(text)
    except CidrError as error:
        raise UserError(f"{error}. Give one such as 192.0.2.7.") from error
    async with reading(cluster, "prefilter") as api:
        objects = (await api.list(PREFILTERS)).objects
        nodes, netloom_nodes = (await api.list(NODES)).objects, (await api.list(NETLOOM_NODES)).objects
        networks = (await api.list(NETWORKS)).objects
        lists, unread = await _lists(api, objects, await _home(api))
    network = next((each for each in networks if each.metadata.name == NETWORK_NAME), None)
    takers = [each for each in nodes if takes_part(each, network) and (not on or each.metadata.name in on)]
    if absent := sorted(set(on) - {each.metadata.name for each in takers}):
        raise UserError(f"no node of Netloom's is named {' or '.join(absent)}: `kubectl get nln` lists them")
    found = tuple(verdicts(address, objects, takers, netloom_nodes, lists, devices))
    return AddressAnswer(address=text, verdicts=found, unread=tuple(unread))


async def _home(api: Api) -> str:
    """The namespace of Netloom: where its agents have their Leases. Lists that name none are there."""
    from netloom.api.cluster_facts import AGENT_LABEL
    from netloom.api.coordination import LEASES

    found = (await api.list(LEASES, label_selector=f"{AGENT_LABEL}=true")).objects
    return found[0].metadata.namespace if found else "kube-system"


Lists = Mapping[ListReference, Mapping[str, ParsedList]]


async def _lists(api: Api, objects: Iterable[NetloomPrefilter], home: str) -> tuple[Lists, list[str]]:
    found: dict[ListReference, Mapping[str, ParsedList]] = {}
    unread: list[str] = []
    for reference in dict.fromkeys(each for one in objects for each in one.spec.references):
        namespace = reference.namespace or home
        try:
            entries: Mapping[str, Any] = read(await api.get(CONFIG_MAPS, reference.name, namespace), {}).entries
        except NotFound:
            unread.append(f"there is no ConfigMap {namespace}/{reference.name}; {_BY_WHAT_IT_HELD}")
            continue
        except ApiError as error:
            unread.append(f"ConfigMap {namespace}/{reference.name} cannot be read: {error}")
            continue
        keys = reference.keys or tuple(entries)
        lost = [key for key in keys if not isinstance(entries.get(key), ParsedList)]
        if lost or not keys:
            what = f"key {', '.join(lost)} of " if lost else ""
            unread.append(f"{what}ConfigMap {namespace}/{reference.name} has no list; {_BY_WHAT_IT_HELD}")
        found[reference] = {f"{namespace}/{reference.name}:{key}": entries[key] for key in keys if key not in lost}
    return found, unread


def verdicts(
    address: Address,
    objects: Sequence[NetloomPrefilter],
    nodes: Iterable[Node],
    netloom_nodes: Sequence[NetloomNode],
    lists: Lists,
    asked: Collection[str],
) -> Iterator[AddressVerdict]:
    """By the prefilters that decide, and the devices on which they do. asked: of which devices alone. Pure."""
    groups: dict[tuple[tuple[str, ...], Extent, tuple[str, ...]], list[FilterPlace]] = {}
    for place in places(objects, nodes, netloom_nodes, asked):
        groups.setdefault((place.names, place.extent, place.devices), []).append(place)
    by_name = {each.metadata.name: each for each in objects}
    lifelines = lifelines_of(
        peers=[(a, n.metadata.name) for n in netloom_nodes for a in addresses_in(each.ip for each in n.spec.addresses)],
        pods=[(cidr, node.metadata.name) for node in netloom_nodes for cidr in pods_of(node)[0]],
    )
    known: dict[tuple[str, ...], AddressVerdict] = {}
    for (names, extent, devices), members in sorted(groups.items(), key=lambda group: group[0]):
        if names not in known:
            known[names] = _verdict(address, [_filter(by_name[name], lists, address) for name in names], lifelines)
        said = sorted(f"{place.node}: {each}" for place in members for each in place.amiss)
        yield msgspec.structs.replace(
            known[names],
            nodes=tuple(sorted(place.node for place in members)),
            devices=devices,
            extent=extent,
            prefilters=names,
            failing=tuple(said),
        )


def _filter(prefilter: NetloomPrefilter, lists: Lists, address: Address) -> Filter:
    """With the entries that hold the address alone: of these few, nothing else decides."""
    spec = prefilter.spec
    found = {
        (False, "spec.denyCIDRs"): parse_list("\n".join(spec.deny_cidrs)),
        (True, "spec.allowCIDRs"): parse_list("\n".join(spec.allow_cidrs)),
    }
    for allow, references in ((False, spec.deny_from_config_maps), (True, spec.allow_from_config_maps)):
        for reference in references:
            found |= {(allow, key): each for key, each in lists.get(reference, {}).items()}
    version = version_of(address)
    empty = parse_list("")
    kept = {}
    for key, each in found.items():
        records = Records.of([one for _, one in holding(each.family(version), address)], each.family(version).size)
        pair = (records, empty.v6) if version == 4 else (empty.v4, records)
        kept[key] = ParsedList(*pair)
    return Filter(prefilter.metadata.name, kept, spec.may_cut_off_nodes)


def _verdict(address: Address, filters: Sequence[Filter], lifelines: Sequence[Lifeline]) -> AddressVerdict:
    version = version_of(address)
    rules = NodeRules()
    rules.update(filters, lifelines)
    held = [each for share in rules.shares.values() for each in share.withheld]
    withheld = tuple(
        f"{text_of(each.record)} of NetloomPrefilter {rules.rules.names[each.slot]}: {each.why}" for each in held
    )
    decisive = rules.decisive(version, address)
    if decisive is None:
        return AddressVerdict(nodes=(), dropped=False, withheld=withheld)
    record, name, allow = decisive
    lists = tuple(
        key
        for each in filters
        if each.name == name
        for (allowing, key), parsed in each.lists.items()
        if allowing == allow and record in parsed.family(version)
    )
    entry = text_of(record)
    return AddressVerdict(nodes=(), dropped=not allow, entry=entry, prefilter=name, lists=lists, withheld=withheld)


def told(found: AddressAnswer) -> Iterator[str]:
    """As lines."""
    if not found.verdicts:
        yield "there is no such node or device"
    for each in found.verdicts:
        kind = "" if each.dropped else "the exception "
        why = "no entry holds it" if each.prefilters else "no NetloomPrefilter is meant for that"
        if each.entry:
            why = f"by {kind}{each.entry} of NetloomPrefilter {each.prefilter} ({', '.join(each.lists)})"
        yield safe(f"{found.address}: {'dropped' if each.dropped else 'passes'} on {_where(each)}: {why}")
        yield from (safe(f"  not active: {held}") for held in each.withheld)
        yield from (safe(f"  not everywhere: on {failing}") for failing in each.failing[:_NAMED])
    yield from (safe(f"not looked at: {each}") for each in found.unread)


def _where(found: AddressVerdict) -> str:
    nodes = f"{len(found.nodes)} node{'s' if found.nodes[1:] else ''} ({some(found.nodes, _NAMED)})"
    if found.extent == Extent.UNTOLD:
        return f"{nodes}, which {'have' if found.nodes[1:] else 'has'} not said on which devices"
    return f"{some(found.devices, _NAMED) if found.devices else 'every device'} of {nodes}"

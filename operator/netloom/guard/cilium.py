"""What is refused of writes to Cilium's configuration while CiliumNodes hold addresses.

The mode in force is the recorded one; without a record, what the stored configuration says counts. Lists are compared
as Cilium reads them: elements between blanks and commas, as networks, in any order.
"""

import re
from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from netloom.api.cilium import DEFAULT_MODE, CiliumPoolFamily, settings, spellings
from netloom.api.core import ConfigMap
from netloom.api.problem import Problem
from netloom.api.words import NODES_HOLD, in_use
from netloom.cidr import VERSIONS, Cidr, Version
from netloom.cidr.interval_set import FrozenIntervalSet
from netloom.guard import wording
from netloom.guard.cluster_state import CILIUM_IN_USE, CILIUM_MODE, ClusterState
from netloom.guard.decode import Change
from netloom.guard.holdings import cidrs_of
from netloom.guard.network import nodes_inside
from netloom.guard.verdict import Ruling, told

Data = Mapping[str, str]
"""`data` of a ConfigMap, by the keys that Cilium reads (`api.cilium.settings`)."""

IPAM = "ipam"
MIGRATION = "enable-cluster-pool-to-multi-pool-migration"
DEFAULT_POOL = "ipam-default-ip-pool"
AUTO_CREATE = "auto-create-cilium-pod-ip-pools"
CIDR_KEYS: dict[Version, str] = {4: "cluster-pool-ipv4-cidr", 6: "cluster-pool-ipv6-cidr"}
MASK_KEYS: dict[Version, str] = {4: "cluster-pool-ipv4-mask-size", 6: "cluster-pool-ipv6-mask-size"}
DEFAULT_MASKS: dict[Version, str] = {4: "24", 6: "112"}
"""Mask sizes of a cilium-config without the key."""

GUARDED_KEYS = (IPAM, *CIDR_KEYS.values(), *MASK_KEYS.values())
"""Whose change is looked at; all other keys are Cilium's own business."""

_READ_KEYS = (*GUARDED_KEYS, MIGRATION)

TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
"""What Go's strconv.ParseBool takes for true."""

MIGRATION_MODES = ("cluster-pool", "multi-pool")
"""From and to, of the one live migration that Cilium has."""
_BREAKS = re.compile(r"[\s,]+")
_POOL_BREAKS = re.compile(r"[\s,]+(?=[^\s,;:=]+=)")
"""What stands before the name of the next pool."""


def mode_of(data: Data) -> str:
    """The IPAM mode that a configuration asks for."""
    return data.get(IPAM, "").strip() or DEFAULT_MODE


def modes_of(data: Mapping[str, str]) -> tuple[str, ...]:
    """The IPAM modes that a configuration asks for, by the keys as they are written: several where spellings of the key
    contradict each other."""
    return tuple(dict.fromkeys(mode_of({IPAM: data[each]}) for each in spellings(data, IPAM))) or (DEFAULT_MODE,)


def contradictions(data: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The keys that are there in spellings with different values, with these: any of them may count."""
    found: dict[str, dict[str, str]] = {key: {} for key in _READ_KEYS}
    for each, value in data.items():
        if (values := found.get(each.lower())) is not None:
            values[each] = value
    return {key: values for key, values in found.items() if len({each.strip() for each in values.values()}) > 1}


def migrates(data: Mapping[str, str]) -> bool:
    """Whether a configuration asks for the one live migration that Cilium has, out of mode cluster-pool, by the keys as
    they are written."""
    return len(modes_of(data)) == 1 and _migrates(settings(data))


def _migrates(data: Data) -> bool:
    return mode_of(data) == "multi-pool" and data.get(MIGRATION, "").strip() in TRUE


def elements(text: str) -> tuple[str, ...]:
    """The elements of a list in Cilium's configuration."""
    return tuple(element for element in _BREAKS.split(text) if element)


def decide_cilium_config(change: Change[ConfigMap], live: ClusterState) -> Ruling:
    """The verdict on one write of Cilium's configuration."""
    was, wanted = change.old.data if change.old else None, change.new.data if change.new else None
    old, new = None if was is None else settings(was), None if wanted is None else settings(wanted)
    spelled = wanted if wanted is not None and new is not wanted else {}
    if spelled and (unclear := _unclear(was or {}, spelled)):
        return Ruling(
            refusals=tuple(wording.CILIUM_SPELLINGS.problem(change.name, f"data.{key}", "") for key in unclear)
        )
    verdict = _decide(change, old, new, live)
    if binary := _binary(change, live):
        verdict = replace(verdict, refusals=(*binary, *verdict.refusals))
    if not spelled or not verdict.refusals:
        return verdict
    written = {f"data.{key.lower()}": f"data.{key}" for key in sorted(spelled)}
    named = (replace(each, field=written.get(each.field, each.field)) for each in verdict.refusals)
    return replace(verdict, refusals=tuple(named))


def _unclear(was: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """The keys whose spellings contradict each other, and did not so before."""
    known = contradictions(was)
    return [key for key, values in contradictions(wanted).items() if known.get(key) != values]


def _binary(change: Change[ConfigMap], live: ClusterState) -> tuple[Problem, ...]:
    """Guarded keys that are new or changed among the binary data of a configuration that is in use."""
    if change.new is None or not change.new.binary_data or live.unseen("ConfigMap"):
        return ()
    known = change.old.binary_data if change.old else {}
    new = [key for key, value in change.new.binary_data.items() if known.get(key) != value]
    mode = live.recorded.get(CILIUM_MODE, "")
    if not mode and live.cilium_held.count and change.old is not None:
        mode = mode_of(settings(change.old.data))
    said = {"in_use": who_holds(live), "mode": mode}
    return told(
        wording.CILIUM_BINARY.problem(change.name, f"binaryData.{key}", "", **said)
        for key in sorted(new)
        if mode and key.lower() in GUARDED_KEYS
    )


def _decide(change: Change[ConfigMap], old: Data | None, new: Data | None, live: ClusterState) -> Ruling:
    if old is not None and new is not None and not any(old.get(key) != new.get(key) for key in GUARDED_KEYS):
        return Ruling()
    warnings = tuple(_warnings(change.name, old or {}, new, live)) if new is not None else ()
    if old is not None and new is not None and _harmless(change, old, new, live):
        return Ruling(warnings=warnings)
    recorded = live.recorded.get(CILIUM_MODE, "")
    if live.unseen("ConfigMap") or not (recorded or live.cilium_held.count):
        return Ruling(warnings=warnings, unseen=live.missing("CiliumNode", "ConfigMap"))
    mode = recorded or (mode_of(old) if old is not None else "")
    refusals = tuple(_refusals(change, mode, old, new, live)) if mode else ()
    # Against a recorded mode the stored object is enough to compare with. One that is made anew is compared with
    # what nodes hold.
    unsure = not refusals and old is None
    unseen = live.missing("CiliumNode", "ConfigMap") if unsure else ()
    return Ruling(refusals=refusals, warnings=warnings, unseen=unseen)


def _refusals(
    change: Change[ConfigMap], mode: str, old: Data | None, new: Data | None, live: ClusterState
) -> list[Problem]:
    name, said = change.name, {"in_use": who_holds(live), "mode": mode}
    if new is None:
        return [wording.CILIUM_DELETED.problem(name, "metadata.name", change.key, **said)]
    wanted = mode_of(new)
    if _migrates(new) and mode == "cluster-pool" and (old is None or mode_of(old) in MIGRATION_MODES):
        return []
    problems: list[Problem] = []
    if old is not None and old.get(IPAM, "").strip() and not new.get(IPAM, "").strip():
        problems.append(wording.CILIUM_UNSET.problem(name, f"data.{IPAM}", "", **said))
    elif wanted != mode and (old is None or wanted != mode_of(old)):
        refusal = wording.CILIUM_MODE
        if (mode, wanted) == MIGRATION_MODES:
            refusal += wording.CILIUM_MIGRATION
        problems.append(refusal.problem(name, f"data.{IPAM}", new.get(IPAM, ""), wanted=wanted, **said))
    # Of a mode that is refused, the lists of the other one are none of the problem: Helm takes them away with it.
    if mode == "cluster-pool" and (not problems or wanted == mode):
        for family in VERSIONS:
            problems += _uncovered(name, family, new, live) if old is None else _pool(name, family, old, new, live)
    return problems


def _harmless(change: Change[ConfigMap], old: Data, new: Data, live: ClusterState) -> bool:
    if mode_of(old) != mode_of(new):
        return False
    return not any(_refusals(change, mode, old, new, live) for mode in {mode_of(old), "cluster-pool"})


def who_holds(live: ClusterState) -> str:
    """Who holds addresses, as a clause: as it is seen, or as it was recorded."""
    held = live.cilium_held
    if held.count and not live.unseen("CiliumNode"):
        return in_use(held.count, held.names)
    return live.recorded.get(CILIUM_IN_USE, "") or NODES_HOLD


def _pool(name: str, family: Version, old: Data, new: Data, live: ClusterState) -> list[Problem]:
    mask_key = MASK_KEYS[family]
    before = cidrs_of(elements(old.get(CIDR_KEYS[family], "")), family)
    problems = [*told(_taken_out(name, family, before, new, live))]
    size, wanted = _mask(old, family), _mask(new, family)
    removed = mask_key in old and mask_key not in new
    if size.isdecimal() and (size != wanted or removed) and (before or live.cilium_held.of_family(family)):
        what = "the mask size cannot change" if mask_key in new else "the key cannot be removed"
        message = (
            f"{what} while it is in use: {who_holds(live)}, cut as blocks of /{size}, and Cilium would take the blocks "
            "that nodes hold for others, and give addresses twice."
        )
        way_out = f'Keep {mask_key}: "{size}", or remove every node and its CiliumNode first.'
        problems.append(Problem(name, f"data.{mask_key}", new.get(mask_key, ""), "CIDRInUse", message, way_out))
    return problems


def _taken_out(name: str, family: Version, before: list[Cidr], new: Data, live: ClusterState) -> Iterator[Problem]:
    """Elements of a family's list that go or change."""
    key = CIDR_KEYS[family]
    after = new.get(key, "")
    kept = frozenset(cidrs_of(elements(after), family))
    together = FrozenIntervalSet(kept)
    for cidr in dict.fromkeys(cidr for cidr in before if cidr not in kept):
        holders = live.cilium_held.overlapping(cidr)
        why = holders.blocks() if holders.count else f"{who_holds(live)} of mode cluster-pool"
        how = "put into a larger one" if together.covers(cidr) else "removed or changed"
        message = (
            f"{cidr} cannot be {how} while it is in use: {why}, and Cilium, which allows no change of an element, "
            "would not know their addresses any more and give them to others."
        )
        way_out = f"Keep {cidr} in {key}; to get more space, add another CIDR behind it."
        yield Problem(name, f"data.{key}", _shortened(after), "CIDRInUse", message, way_out)


def _uncovered(name: str, family: Version, new: Data, live: ClusterState) -> list[Problem]:
    """A configuration that is made anew without CIDRs that nodes hold: a removal in two steps."""
    key = CIDR_KEYS[family]
    text = new.get(key, "")
    holders = live.cilium_held.outside_family(FrozenIntervalSet(cidrs_of(elements(text), family)), family)
    if not holders.count:
        return []
    message = (
        f"it does not cover what is in use: {holders.blocks('outside it')}, and Cilium would not "
        "know their addresses any more and give them to others."
    )
    way_out = "Give the CIDRs that the configuration had, and others behind them if you like."
    return [Problem(name, f"data.{key}", _shortened(text), "CIDRInUse", message, way_out)]


def _mask(data: Data, family: Version) -> str:
    text = data.get(MASK_KEYS[family], DEFAULT_MASKS[family]).strip()
    return text.lstrip("0") or text


def _warnings(name: str, old: Data, new: Data, live: ClusterState) -> list[Problem]:
    """What is legal and unwise, and was not so before."""
    problems: list[Problem] = []
    was, wanted = mode_of(old), mode_of(new)
    if wanted == "multi-pool" and (auto := new.get(AUTO_CREATE, "").strip()):
        known = was == wanted and auto == old.get(AUTO_CREATE, "").strip()
        message = "Cilium creates these pools when it starts and never changes them afterwards, whatever is put here."
        field, way_out = f"data.{AUTO_CREATE}", "Write CiliumPodIPPools yourself."
        if not known:
            problems.append(Problem(name, field, _shortened(auto), "AutoCreatedPools", message, way_out, "warning"))
    if wanted == "cluster-pool":
        problems += [each for family in VERSIONS for each in _holds_nodes(name, family, old, new, live)]
    if was == DEFAULT_MODE and _migrates(new) and not _migrates(old):
        problems += _migration_warnings(name, old, new, live)
    return problems


def _holds_nodes(name: str, family: Version, old: Data, new: Data, live: ClusterState) -> list[Problem]:
    key = CIDR_KEYS[family]
    if not live.node_addresses.count or old.get(key) == new.get(key):
        return []
    known = frozenset(cidrs_of(elements(old.get(key, "")), family))
    for cidr in cidrs_of(elements(new.get(key, "")), family):
        field, reason = f"data.{key}", "ClusterCIDROverlapsNodes"
        if cidr not in known and (found := nodes_inside(name, field, cidr, live, reason, "warning")):
            return found
    return []


def _migration_warnings(name: str, old: Data, new: Data, live: ClusterState) -> list[Problem]:
    """The limits of Cilium's migration: the default pool has to hold what the nodes hold, in blocks of that size."""
    pool_name = new.get(DEFAULT_POOL, "").strip() or "default"
    families = _pool_families(pool_name, new, live)

    def warning(message: str, way_out: str) -> Problem:
        return Problem(name, f"data.{IPAM}", "multi-pool", "MigrationPool", message, way_out, "warning")

    if families is None:
        message = f"the migration moves nodes into the pool {pool_name}, and there is none."
        return [warning(message, f"Create the CiliumPodIPPool {pool_name}, or name it in {AUTO_CREATE}.")]
    problems: list[Problem] = []
    for family, (cidrs, mask) in families.items():
        holders = live.cilium_held.outside_family(FrozenIntervalSet(cidrs_of(cidrs, family)), family)
        if holders.count:
            message = f"the pool {pool_name} does not cover what nodes have: {holders.blocks('outside it')}."
            problems.append(warning(message, f"Give it all of {CIDR_KEYS[family]}."))
        size = _mask(old or new, family)
        if cidrs and live.cilium_held.of_family(family) and mask != size:
            message = f"the pool {pool_name} has blocks of /{mask}, and nodes hold blocks of /{size}."
            problems.append(warning(message, f"Give it the mask size {size}."))
    return problems


def _pool_families(pool_name: str, data: Data, live: ClusterState) -> dict[Version, tuple[tuple[str, ...], str]] | None:
    """CIDRs and mask size of a pool by family: as it exists, else as it is to be created; None if neither."""
    pool = live.cilium_pools.get(pool_name)
    if pool is None:
        return auto_created(data.get(AUTO_CREATE, "")).get(pool_name)
    families: dict[Version, CiliumPoolFamily | None] = {4: pool.spec.ipv4, 6: pool.spec.ipv6}
    return {family: (each.cidrs, str(each.mask_size)) if each else ((), "") for family, each in families.items()}


def auto_created(text: str) -> dict[str, dict[Version, tuple[tuple[str, ...], str]]]:
    """The pools that a configuration lets Cilium create: `name=ipv4-cidrs:10.0.0.0/8;ipv4-mask-size:24`, commas
    (Helm) or blanks between them, and commas between a pool's CIDRs. What cannot be read is left out."""
    pools: dict[str, dict[Version, tuple[tuple[str, ...], str]]] = {}
    for part in _POOL_BREAKS.split(text.strip()):
        pool_name, _, rest = part.partition("=")
        options = dict(option.partition(":")[::2] for option in rest.split(";"))
        pools[pool_name] = {
            family: (elements(options.get(f"ipv{family}-cidrs", "")), options.get(f"ipv{family}-mask-size", ""))
            for family in VERSIONS
        }
    return pools


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."

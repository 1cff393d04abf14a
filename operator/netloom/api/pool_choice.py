"""Which NetloomIPPool a pod gets its addresses of, in IPAM mode multi-pool. Pure: for agents, and for whoever asks why.

For each family, the first that says something:

1. an annotation of the pod,
2. the same annotation of its namespace,
3. selectors of pools: of several pools that choose the pod, the first by name that gives; those that drain are passed
   over, so a pool can be replaced by one that chooses the same pods,
4. the network's default pool, unless a match is required.

A pod needs the families of the default pool. Where there is no such pool, it gets those of the pools it names. Cilium's
annotations count as ours, which come first. A pool that cannot give is a Problem, never a reason to take another: pods
are put into pools for what others let these addresses do.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from netloom.api.core import Namespace, Pod
from netloom.api.meta import ObjectMeta
from netloom.api.participation import chosen
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETWORK_NAME, MultiPool, NetloomIPPool, PoolFamily
from netloom.cidr import VERSIONS, Version

ANNOTATIONS: dict[Version, tuple[str, ...]] = {
    4: ("netloom.dev/ipv4-pool", "netloom.dev/ip-pool", "ipam.cilium.io/ipv4-pool", "ipam.cilium.io/ip-pool"),
    6: ("netloom.dev/ipv6-pool", "netloom.dev/ip-pool", "ipam.cilium.io/ipv6-pool", "ipam.cilium.io/ip-pool"),
}
"""Of a pod or a namespace, by family: the first of these that is there and not empty names the pool."""

REQUIRE_MATCH = ("netloom.dev/require-pool-match", "ipam.cilium.io/require-pool-match")
"""Of a pod or a namespace: "true" is what spec.ipam.multiPool.requirePoolMatch is for all."""

READ_ANNOTATIONS = frozenset((*ANNOTATIONS[4], *ANNOTATIONS[6], *REQUIRE_MATCH))
"""All that are read here."""

Rule = Literal["asked", "pod", "namespace", "selector", "default"]

Pools = Mapping[str, NetloomIPPool]


class ChosenPool(NamedTuple):
    """The pool for one family, and which rule led there: `annotation` of the pod or the namespace, if it was one."""

    version: Version
    pool: str
    rule: Rule
    annotation: str = ""


@dataclass(frozen=True, slots=True)
class PoolChoice:
    """One pool for each family that the owner gets an address of."""

    families: tuple[ChosenPool, ...]

    @property
    def pools(self) -> dict[str, frozenset[Version]]:
        """The families by pool, mostly all by one."""
        found: dict[str, frozenset[Version]] = {}
        for each in self.families:
            found[each.pool] = found.get(each.pool, frozenset()) | {each.version}
        return found


def families_of(pool: NetloomIPPool) -> tuple[Version, ...]:
    """Those in which it has anything to give."""
    return tuple(version for version in VERSIONS if family_of(pool, version) is not None)


def family_of(pool: NetloomIPPool, version: Version) -> PoolFamily | None:
    """What it has of a family."""
    return pool.spec.ipv4 if version == 4 else pool.spec.ipv6


def gives(pool: NetloomIPPool) -> bool:
    """Whether anything new is given of it."""
    return not pool.spec.draining and not pool.metadata.deletion_timestamp


def names_all(meta: ObjectMeta) -> bool:
    """Whether these annotations alone name a pool for every family, so that nothing else has to be read."""
    return all(_annotation(meta, version) for version in VERSIONS)


def choose(pod: Pod, namespace: Namespace | None, pools: Pools, rules: MultiPool) -> PoolChoice | Problem:
    """Of a pod in a namespace; None: its annotations name all (`names_all`), or nothing is known of its namespace."""
    about = f"Pod {pod.name}"
    return _whole(
        pools, rules, (_of_pod(version, about, pod, namespace, pools, rules) for version in _asked(pools, rules))
    )


def named(owner: str, pool: str, pools: Pools, rules: MultiPool) -> PoolChoice | Problem:
    """Of an owner that is no pod and asks for a pool itself; "": the default pool."""
    name, rule = (pool, "asked") if pool else (rules.default_pool, "default")
    return _whole(
        pools,
        rules,
        (_usable(ChosenPool(version, name, rule), owner, "pool", pools) for version in _asked(pools, rules)),  # type: ignore[arg-type]
    )


def _asked(pools: Pools, rules: MultiPool) -> tuple[Version, ...]:
    default = pools.get(rules.default_pool)
    return VERSIONS if default is None else families_of(default)


def _whole(pools: Pools, rules: MultiPool, found: Iterable[ChosenPool | Problem]) -> PoolChoice | Problem:
    """All families or a Problem. What families there are to be, without a default pool only the named ones tell."""
    each = list(found)
    problems = [one for one in each if isinstance(one, Problem)]
    chosen_ = tuple(one for one in each if isinstance(one, ChosenPool))
    if rules.default_pool not in pools and chosen_:
        problems = [one for one in problems if one.reason not in (_NO_FAMILY, _NO_MATCH) and one.field != _DEFAULT]
    return problems[0] if problems else PoolChoice(chosen_)


def _of_pod(
    version: Version, about: str, pod: Pod, namespace: Namespace | None, pools: Pools, rules: MultiPool
) -> ChosenPool | Problem:
    if key := _annotation(pod.metadata, version):
        picked = ChosenPool(version, pod.metadata.annotations[key], "pod", key)
        return _usable(picked, about, f"metadata.annotations[{key}]", pools)
    if namespace is not None and (key := _annotation(namespace.metadata, version)):
        picked = ChosenPool(version, namespace.metadata.annotations[key], "namespace", key)
        where = f"metadata.annotations[{key}] of Namespace {namespace.metadata.name}"
        return _usable(picked, about, where, pools)
    choosing = [pool for pool in _choosing(pod, namespace, pools) if family_of(pool, version) is not None]
    if choosing:
        first = next(filter(gives, choosing), None)
        name = (first or choosing[0]).metadata.name
        return _usable(ChosenPool(version, name, "selector"), about, "metadata.labels", pools)
    required = "spec.ipam.multiPool.requirePoolMatch" if rules.require_pool_match else _requires_match(pod, namespace)
    if required:
        return _no_match(about, version, required)
    return _usable(ChosenPool(version, rules.default_pool, "default"), about, _DEFAULT, pools)


def _choosing(pod: Pod, namespace: Namespace | None, pools: Pools) -> Iterator[NetloomIPPool]:
    """The pools whose selectors choose the pod, by name. (The two labels are those by which Cilium's do it, too.)"""
    meta = pod.metadata
    identity = {"io.kubernetes.pod.namespace": meta.namespace, "io.kubernetes.pod.name": meta.name}
    labels, around = meta.labels | identity, namespace.metadata.labels if namespace is not None else {}
    for name in sorted(pools):
        pods, namespaces = pools[name].spec.pod_selector, pools[name].spec.namespace_selector
        if pods is None and namespaces is None:
            continue
        if (pods is None or chosen(labels, pods)) and (namespaces is None or chosen(around, namespaces)):
            yield pools[name]


def _annotation(meta: ObjectMeta, version: Version) -> str:
    return next((key for key in ANNOTATIONS[version] if meta.annotations.get(key)), "")


def _requires_match(pod: Pod, namespace: Namespace | None) -> str:
    metas = [pod.metadata] + ([namespace.metadata] if namespace is not None else [])
    return next((key for meta in metas for key in REQUIRE_MATCH if meta.annotations.get(key) == "true"), "")


_NO_FAMILY, _NO_MATCH = "PoolWithoutFamily", "PoolMatchRequired"
_DEFAULT = f"spec.ipam.multiPool.defaultPool of NetloomNetwork {NETWORK_NAME}"


def _usable(picked: ChosenPool, about: str, where: str, pools: Pools) -> ChosenPool | Problem:
    """The choice, if that pool gives addresses of the family."""
    name, version = picked.pool, picked.version
    pool = pools.get(name)
    if pool is None:
        there = ", ".join(sorted(pools)) or "none"
        message = f"there is no NetloomIPPool {name} (there are: {there}), so nothing can be given of it."
        return Problem(about, where, name, "PoolMissing", message, f"Create it, or {_instead(picked)}")
    if family_of(pool, version) is None:
        has = " and ".join(f"IPv{each}" for each in families_of(pool))
        message = f"NetloomIPPool {name} has {has} alone, and an IPv{version} address is needed as well."
        way_out = f"Give the pool spec.ipv{version}, name another for this family by {ANNOTATIONS[version][0]}, "
        return Problem(about, where, name, _NO_FAMILY, message, f"{way_out}or {_instead(picked)}")
    if not gives(pool):
        state = "is being deleted" if pool.metadata.deletion_timestamp else "is draining (spec.draining)"
        message = f"NetloomIPPool {name} {state}: nothing new is given of it."
        way_out = "Make it again" if pool.metadata.deletion_timestamp else "Set spec.draining of the pool to false"
        return Problem(about, where, name, "PoolDraining", message, f"{way_out}, or {_instead(picked)}")
    return picked


def _instead(picked: ChosenPool) -> str:
    match picked.rule:
        case "asked":
            return "name another one."
        case "pod":
            return "create the pod anew with another pool in its annotation."
        case "namespace":
            return "change the annotation of the namespace: the pod is tried again."
        case "selector":
            return f"give the pod another pool by its annotation {ANNOTATIONS[picked.version][1]}."
        case "default":
            return f"let spec.ipam.multiPool.defaultPool of NetloomNetwork {NETWORK_NAME} name another."


def _no_match(about: str, version: Version, required: str) -> Problem:
    nothing = "neither an annotation nor a selector of a NetloomIPPool gives the pod a pool"
    message = f"{required} is set, and {nothing} for IPv{version}."
    way_out = f"Annotate the pod or its namespace with {ANNOTATIONS[version][1]}, or let a pool's selectors choose it."
    return Problem(about, "metadata", "", _NO_MATCH, message, way_out)

"""Which pool a pod gets its addresses of, and in which words it gets none."""

from typing import Any

import msgspec
import pytest

from netloom.api.core import Namespace, Pod
from netloom.api.pool_choice import ChosenPool, PoolChoice, choose, named, names_all
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import MultiPool, NetloomIPPool

V4 = {"ipv4": {"cidrs": ["10.1.0.0/16"], "maskSize": 28}}
V6 = {"ipv6": {"cidrs": ["fd00:1::/64"], "maskSize": 120}}
BOTH = V4 | V6
OWN, CILIUM = "netloom.dev/ip-pool", "ipam.cilium.io/ip-pool"


def pools(**specs: dict[str, Any]) -> dict[str, NetloomIPPool]:
    return {
        name: msgspec.convert({"metadata": {"name": name}, "spec": spec}, NetloomIPPool) for name, spec in specs.items()
    }


def pod(labels: dict[str, str] | None = None, **annotations: str) -> Pod:
    meta = {"namespace": "shop", "name": "web-1", "labels": labels or {}, "annotations": annotations}
    return msgspec.convert({"metadata": meta}, Pod)


def namespace(labels: dict[str, str] | None = None, **annotations: str) -> Namespace:
    return msgspec.convert(
        {"metadata": {"name": "shop", "labels": labels or {}, "annotations": annotations}}, Namespace
    )


THREE = pools(default=V4, blue=V4, green=V4)
RULES = MultiPool()
WEB = {"matchLabels": {"app": "web"}}
PROD = {"matchLabels": {"stage": "prod"}}


@pytest.mark.parametrize(
    ("of_pod", "of_namespace", "found"),
    [
        ({}, {}, ChosenPool(4, "default", "default")),
        ({OWN: "blue"}, {}, ChosenPool(4, "blue", "pod", OWN)),
        ({CILIUM: "blue"}, {}, ChosenPool(4, "blue", "pod", CILIUM)),
        ({OWN: "blue", CILIUM: "green"}, {}, ChosenPool(4, "blue", "pod", OWN)),
        ({"netloom.dev/ipv4-pool": "green", OWN: "blue"}, {}, ChosenPool(4, "green", "pod", "netloom.dev/ipv4-pool")),
        (
            {"ipam.cilium.io/ipv4-pool": "green", CILIUM: "blue"},
            {},
            ChosenPool(4, "green", "pod", "ipam.cilium.io/ipv4-pool"),
        ),
        ({"netloom.dev/ipv6-pool": "green"}, {}, ChosenPool(4, "default", "default")),
        ({OWN: ""}, {OWN: "blue"}, ChosenPool(4, "blue", "namespace", OWN)),
        ({OWN: "green"}, {OWN: "blue"}, ChosenPool(4, "green", "pod", OWN)),
        ({CILIUM: "green"}, {OWN: "blue"}, ChosenPool(4, "green", "pod", CILIUM)),
    ],
)
def test_an_annotation_of_the_pod_counts_before_its_namespaces(
    of_pod: dict[str, str], of_namespace: dict[str, str], found: ChosenPool
) -> None:
    assert choose(pod(**of_pod), namespace(**of_namespace), THREE, RULES) == PoolChoice((found,))


@pytest.mark.parametrize(
    ("specs", "found"),
    [
        ({"blue": V4 | {"podSelector": WEB}}, "blue"),
        ({"blue": V4 | {"podSelector": {"matchLabels": {"app": "db"}}}}, "default"),
        ({"blue": V4 | {"podSelector": {}}}, "blue"),
        ({"blue": V4}, "default"),
        ({"blue": V4 | {"namespaceSelector": PROD}}, "blue"),
        ({"blue": V4 | {"namespaceSelector": WEB}}, "default"),
        ({"blue": V4 | {"namespaceSelector": PROD, "podSelector": WEB}}, "blue"),
        ({"blue": V4 | {"namespaceSelector": PROD, "podSelector": PROD}}, "default"),
        ({"green": V4 | {"podSelector": WEB}, "blue": V4 | {"podSelector": WEB}}, "blue"),
        ({"blue": V4 | {"podSelector": WEB, "draining": True}, "green": V4 | {"podSelector": WEB}}, "green"),
        ({"blue": V4 | {"podSelector": {"matchLabels": {"io.kubernetes.pod.namespace": "shop"}}}}, "blue"),
    ],
)
def test_of_several_pools_that_choose_the_pod_the_first_by_name_is_its(specs: dict[str, Any], found: str) -> None:
    chosen = choose(pod({"app": "web"}), namespace({"stage": "prod"}), pools(default=V4, **specs), RULES)
    rule = "default" if found == "default" else "selector"
    assert chosen == PoolChoice((ChosenPool(4, found, rule),))  # type: ignore[arg-type]
    by_annotation = choose(pod({"app": "web"}, **{OWN: "default"}), None, pools(default=V4, **specs), RULES)
    assert by_annotation == PoolChoice((ChosenPool(4, "default", "pod", OWN),)), "an annotation counts before selectors"


def test_each_family_may_come_of_a_pool_of_its_own() -> None:
    known = pools(default=BOTH, blue=V4, green=V6)
    annotations = {OWN: "blue", "netloom.dev/ipv6-pool": "green"}
    found = choose(pod(**annotations), None, known, RULES)
    assert found == PoolChoice(
        (ChosenPool(4, "blue", "pod", OWN), ChosenPool(6, "green", "pod", "netloom.dev/ipv6-pool"))
    )
    assert isinstance(found, PoolChoice)
    assert found.pools == {"blue": {4}, "green": {6}}
    selected = pools(default=BOTH, blue=V4 | {"podSelector": {}}, green=V6 | {"podSelector": {}})
    assert choose(pod(), namespace(), selected, RULES) == PoolChoice(
        (ChosenPool(4, "blue", "selector"), ChosenPool(6, "green", "selector"))
    )


def test_a_pod_gets_the_families_of_the_default_pool_or_else_those_of_its_own() -> None:
    known = pools(default=V4, blue=BOTH)
    assert choose(pod(**{OWN: "blue"}), None, known, RULES) == PoolChoice((ChosenPool(4, "blue", "pod", OWN),))
    del known["default"]
    both = PoolChoice((ChosenPool(4, "blue", "pod", OWN), ChosenPool(6, "blue", "pod", OWN)))
    assert choose(pod(**{OWN: "blue"}), None, known, RULES) == both
    assert choose(pod(**{OWN: "six"}), None, pools(six=V6), RULES) == PoolChoice((ChosenPool(6, "six", "pod", OWN),))


@pytest.mark.parametrize(
    ("annotations", "known", "rules", "problem"),
    [
        (
            {OWN: "red"},
            THREE,
            RULES,
            "Pod shop/web-1: metadata.annotations[netloom.dev/ip-pool] 'red': there is no NetloomIPPool red (there "
            "are: blue, default, green), so nothing can be given of it. Create it, or create the pod anew with "
            "another pool in its annotation.",
        ),
        (
            {CILIUM: "blue"},
            pools(default=BOTH, blue=V4),
            RULES,
            "Pod shop/web-1: metadata.annotations[ipam.cilium.io/ip-pool] 'blue': NetloomIPPool blue has IPv4 alone, "
            "and an IPv6 address is needed as well. Give the pool spec.ipv6, name another for this family by "
            "netloom.dev/ipv6-pool, or create the pod anew with another pool in its annotation.",
        ),
        (
            {OWN: "blue"},
            pools(default=V4, blue=V4 | {"draining": True}),
            RULES,
            "Pod shop/web-1: metadata.annotations[netloom.dev/ip-pool] 'blue': NetloomIPPool blue is draining "
            "(spec.draining): nothing new is given of it. Set spec.draining of the pool to false, or create the pod "
            "anew with another pool in its annotation.",
        ),
        (
            {},
            pools(default=V4, blue=V4 | {"draining": True, "podSelector": {}}),
            RULES,
            "Pod shop/web-1: metadata.labels 'blue': NetloomIPPool blue is draining (spec.draining): nothing new is "
            "given of it. Set spec.draining of the pool to false, or give the pod another pool by its annotation "
            "netloom.dev/ip-pool.",
        ),
        (
            {},
            pools(blue=V4),
            RULES,
            "Pod shop/web-1: spec.ipam.multiPool.defaultPool of NetloomNetwork default 'default': there is no "
            "NetloomIPPool default (there are: blue), so nothing can be given of it. Create it, or let "
            "spec.ipam.multiPool.defaultPool of NetloomNetwork default name another.",
        ),
        (
            {},
            THREE,
            MultiPool(require_pool_match=True),
            "Pod shop/web-1: metadata: spec.ipam.multiPool.requirePoolMatch is set, and neither an annotation nor a "
            "selector of a NetloomIPPool gives the pod a pool for IPv4. Annotate the pod or its namespace with "
            "netloom.dev/ip-pool, or let a pool's selectors choose it.",
        ),
        (
            {"ipam.cilium.io/require-pool-match": "true"},
            THREE,
            RULES,
            "Pod shop/web-1: metadata: ipam.cilium.io/require-pool-match is set, and neither an annotation nor a "
            "selector of a NetloomIPPool gives the pod a pool for IPv4. Annotate the pod or its namespace with "
            "netloom.dev/ip-pool, or let a pool's selectors choose it.",
        ),
    ],
)
def test_a_pool_that_cannot_give_is_said_and_no_other_taken(
    annotations: dict[str, str], known: dict[str, NetloomIPPool], rules: MultiPool, problem: str
) -> None:
    found = choose(pod(**annotations), namespace(), known, rules)
    assert isinstance(found, Problem)
    assert str(found) == problem


def test_a_pool_that_is_being_deleted_gives_nothing() -> None:
    going = msgspec.convert(
        {"metadata": {"name": "default", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": V4}, NetloomIPPool
    )
    found = choose(pod(), namespace(), {"default": going}, RULES)
    assert isinstance(found, Problem)
    assert (found.reason, found.way_out.startswith("Make it again")) == ("PoolDraining", True)


def test_an_owner_that_is_no_pod_may_name_a_pool() -> None:
    assert named("router", "blue", THREE, RULES) == PoolChoice((ChosenPool(4, "blue", "asked"),))
    assert named("router", "", THREE, MultiPool(require_pool_match=True)) == PoolChoice(
        (ChosenPool(4, "default", "default"),)
    )
    found = named("router", "red", THREE, RULES)
    assert isinstance(found, Problem)
    assert str(found).startswith("router: pool 'red': there is no NetloomIPPool red")


def test_the_namespace_is_read_only_for_pods_that_do_not_name_all_pools_themselves() -> None:
    assert names_all(pod(**{OWN: "blue"}).metadata)
    assert names_all(pod(**{"netloom.dev/ipv4-pool": "a", "ipam.cilium.io/ipv6-pool": "b"}).metadata)
    assert not names_all(pod(**{"netloom.dev/ipv4-pool": "a"}).metadata)
    assert not names_all(pod().metadata)


def test_without_a_default_pool_a_family_that_nothing_names_is_left_out() -> None:
    one = PoolChoice((ChosenPool(4, "blue", "pod", "netloom.dev/ipv4-pool"),))
    assert choose(pod(**{"netloom.dev/ipv4-pool": "blue"}), namespace(), pools(blue=V4), RULES) == one
    selected = pools(blue=V4 | {"podSelector": {}})
    assert choose(pod(), namespace(), selected, RULES) == PoolChoice((ChosenPool(4, "blue", "selector"),))
    both = {"netloom.dev/ipv4-pool": "blue", "netloom.dev/ipv6-pool": "default"}
    assert isinstance(choose(pod(**both), namespace(), pools(blue=V4), RULES), Problem), "it is named"
    assert isinstance(choose(pod(), namespace(), pools(blue=V4), RULES), Problem)

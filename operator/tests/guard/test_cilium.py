"""cilium-config and CiliumPodIPPools, as kubectl, Helm and GitOps tools write them."""

import pytest

from netloom.api.cilium import CILIUM_POOLS
from netloom.api.core import CONFIG_MAPS
from netloom.guard.cluster_state import ClusterState
from tests.guard import requests as ask
from tests.guard.requests import config, ip_pool, refused, warned

THREE = "3 nodes hold addresses (worker-001, worker-002, worker-003)"
NAME = "ConfigMap kube-system/cilium-config: "
POOL = {"ipam": "cluster-pool", "cluster_pool_ipv4_cidr": "10.0.0.0/16", "cluster_pool_ipv4_mask_size": "24"}
FLAG = {"enable_cluster_pool_to_multi_pool_migration": "true"}


@pytest.fixture(params=["recorded", "not recorded"])
def live(request: pytest.FixtureRequest) -> ClusterState:
    """Three nodes of mode cluster-pool; whether it is recorded makes no difference to an update."""
    live = ask.with_cilium_nodes(ask.fresh(), 3)
    return ask.with_record(live, ciliumMode="cluster-pool") if request.param == "recorded" else live


def locked(wanted: str) -> str:
    return (
        f"{NAME}data.ipam '{wanted}': the IPAM mode of a live cluster cannot change: {THREE} of mode cluster-pool, and "
        f"in mode {wanted} their pods would lose the network. Keep ipam: cluster-pool (Helm: --set "
        "ipam.mode=cluster-pool), or remove every node and its CiliumNode first, or build a new cluster in mode "
        f"{wanted} and move the workloads there."
    )


def test_another_mode_is_refused_while_nodes_hold_addresses(live: ClusterState) -> None:
    assert refused(
        live, CONFIG_MAPS, config(**POOL), config(ipam="kubernetes", **{k: v for k, v in POOL.items() if k != "ipam"})
    ) == [locked("kubernetes")]
    assert refused(live, CONFIG_MAPS, config(ipam="cluster-pool"), config(ipam="eni")) == [locked("eni")]
    assert refused(live, CONFIG_MAPS, config(), config(ipam="eni")) == [locked("eni")]


def test_a_key_counts_however_it_is_spelled(live: ClusterState) -> None:
    """Cilium's library reads all keys in lower case."""
    old = config(**POOL)
    rest = {key: value for key, value in POOL.items() if key != "ipam"}
    for spelled in ("IPAM", "Ipam", "iPAM"):
        assert refused(live, CONFIG_MAPS, old, config(**rest, **{spelled: "kubernetes"})) == [
            locked("kubernetes").replace("data.ipam ", f"data.{spelled} ")
        ]
        assert refused(live, CONFIG_MAPS, old, config(**rest, **{spelled: "cluster-pool"})) == []
        assert refused(live, CONFIG_MAPS, config(**{spelled: "cluster-pool"}), config(ipam="eni")) == [locked("eni")]
    others = {"ipam": "cluster-pool", "cluster_pool_ipv4_mask_size": "24"}
    (text,) = refused(live, CONFIG_MAPS, old, config(**others, CLUSTER_POOL_IPV4_CIDR="10.9.0.0/16"))
    assert text.startswith(f"{NAME}data.CLUSTER-POOL-IPV4-CIDR '10.9.0.0/16': 10.0.0.0/16 cannot be removed")
    (text,) = refused(live, CONFIG_MAPS, old, config(**rest, IPAM=""))
    assert text.startswith(f"{NAME}data.IPAM: the key cannot be removed while it is in use")


@pytest.mark.parametrize("nodes", [0, 3])
def test_spellings_that_contradict_each_other_are_refused(nodes: int) -> None:
    """Also while nobody holds an address: which mode the first would be of, nobody could say."""
    live = ask.with_cilium_nodes(ask.fresh(), nodes)
    contradiction = (
        "the key is there in several spellings with different values, and Cilium, which reads all keys in lower case, "
        "would go by any one of them. Write it once, in lower case."
    )
    old = config(**POOL)
    for key, value in (
        ("ipam", "kubernetes"), ("cluster_pool_ipv4_cidr", "10.9.0.0/16"), ("cluster_pool_ipv4_mask_size", "25")
    ):  # fmt: skip
        for before in (None, old):
            new = config(**POOL, **{key.upper(): value})
            assert refused(live, CONFIG_MAPS, before, new) == [f"{NAME}data.{key.replace('_', '-')}: {contradiction}"]
            assert refused(live, CONFIG_MAPS, new, new) == []
            assert refused(live, CONFIG_MAPS, new, old) == [], "it can always be made better"
            assert refused(live, CONFIG_MAPS, new, config(**POOL, **{key.upper(): "more"})) != []
        assert refused(live, CONFIG_MAPS, old, config(**POOL, **{key.upper(): POOL[key]})) == []
    flags = FLAG | {"ENABLE_CLUSTER_POOL_TO_MULTI_POOL_MIGRATION": "false"}
    (text,) = refused(live, CONFIG_MAPS, old, config(ipam="multi-pool", **flags))
    assert text == f"{NAME}data.enable-cluster-pool-to-multi-pool-migration: {contradiction}"


def test_the_migration_needs_its_flag(live: ClusterState) -> None:
    without = locked("multi-pool") + (
        " The one live migration that Cilium has, from cluster-pool to multi-pool, needs "
        'enable-cluster-pool-to-multi-pool-migration: "true" in the same change (from Cilium 1.20 on).'
    )
    old = config(ipam="cluster-pool")
    assert refused(live, CONFIG_MAPS, old, config(ipam="multi-pool")) == [without]
    for no in ("false", "yes", "TrUe", "0", ""):
        new = config(ipam="multi-pool", enable_cluster_pool_to_multi_pool_migration=no)
        assert refused(live, CONFIG_MAPS, old, new) == [without]
    for yes in ("1", "t", "T", "TRUE", "true", "True"):
        new = config(ipam="multi-pool", enable_cluster_pool_to_multi_pool_migration=yes)
        assert refused(live, CONFIG_MAPS, config(**POOL), new) == []
    assert refused(live, CONFIG_MAPS, old, config(ipam="eni", **FLAG)) == [locked("eni")]


def test_there_is_no_way_back_from_the_migration() -> None:
    live = ask.with_record(ask.with_cilium_nodes(ask.fresh(), 1), ciliumMode="multi-pool")
    old = config(ipam="multi-pool", **FLAG)
    (text,) = refused(live, CONFIG_MAPS, old, config(**POOL, **FLAG))
    assert text.startswith(
        f"{NAME}data.ipam 'cluster-pool': the IPAM mode of a live cluster cannot change: 1 node holds"
    )
    assert "flag" not in text
    assert (
        refused(live, CONFIG_MAPS, old, config(ipam="multi-pool", **FLAG, cluster_pool_ipv4_cidr="10.9.0.0/16")) == []
    )


def test_the_migration_says_what_it_needs() -> None:
    live = ask.with_cilium_nodes(ask.fresh(), 3)
    field = f"{NAME}data.ipam 'multi-pool': "
    new = config(ipam="multi-pool", **FLAG)
    assert warned(live, CONFIG_MAPS, config(**POOL), new) == [
        f"{field}the migration moves nodes into the pool default, and there is none. Create the CiliumPodIPPool "
        "default, or name it in auto-create-cilium-pod-ip-pools."
    ]
    ask.with_cilium_pool(live, ip_pool("default", "10.0.2.0/24", mask=27))
    assert warned(live, CONFIG_MAPS, config(**POOL), new) == [
        f"{field}the pool default does not cover what nodes have: 2 nodes hold blocks outside it (worker-001, "
        "worker-003). Give it all of cluster-pool-ipv4-cidr.",
        f"{field}the pool default has blocks of /27, and nodes hold blocks of /24. Give it the mask size 24.",
    ]
    pools = "other=ipv4-cidrs:10.9.0.0/16;ipv4-mask-size:24 blue=ipv4-cidrs:10.0.0.0/17,10.0.128.0/17;ipv4-mask-size:24"
    auto = {"auto_create_cilium_pod_ip_pools": pools}
    assert warned(
        live, CONFIG_MAPS, config(**POOL), config(ipam="multi-pool", ipam_default_ip_pool="blue", **FLAG, **auto)
    ) == [
        f"{NAME}data.auto-create-cilium-pod-ip-pools '{pools}': Cilium creates these "
        "pools when it starts and never changes them afterwards, whatever is put here. Write CiliumPodIPPools yourself."
    ]


def test_the_key_is_not_removed(live: ClusterState) -> None:
    unset = (
        f"{NAME}data.ipam: the key cannot be removed while it is in use: {THREE} of mode cluster-pool, and Cilium "
        "would "
        "fall back to a default of its own when it restarts. Keep ipam: cluster-pool (Helm: --set "
        "ipam.mode=cluster-pool)."
    )
    for new in (config(), config(ipam=""), config(ipam=" ")):
        assert refused(live, CONFIG_MAPS, config(ipam="cluster-pool"), new) == [unset]
    assert refused(live, CONFIG_MAPS, config(), config(ipam="cluster-pool")) == []


def test_the_configuration_is_not_deleted(live: ClusterState) -> None:
    assert refused(live, CONFIG_MAPS, config(**POOL)) == [
        f"{NAME}metadata.name 'cilium-config': Cilium's configuration cannot be deleted while it is in use: {THREE} of "
        "mode cluster-pool, and whatever starts without it, or is installed anew in another mode, takes the network "
        "from their pods. Remove every node and its CiliumNode first."
    ]


def test_one_made_anew_keeps_mode_and_cidrs() -> None:
    live = ask.with_record(ask.with_cilium_nodes(ask.fresh(), 3), ciliumMode="cluster-pool")
    assert refused(live, CONFIG_MAPS, None, config(ipam="kubernetes")) == [locked("kubernetes")]
    assert refused(live, CONFIG_MAPS, None, config(ipam="cluster-pool")) == [
        f"{NAME}data.cluster-pool-ipv4-cidr: it does not cover what is in use: 3 nodes hold blocks outside it "
        "(worker-001, worker-002, worker-003), and Cilium would not know their addresses any more and give them to "
        "others. Give the CIDRs that the configuration had, and others behind them if you like.",
    ]
    assert refused(live, CONFIG_MAPS, None, config(**POOL)) == []
    assert refused(live, CONFIG_MAPS, None, config(ipam="multi-pool", **FLAG)) == []


def test_elements_stay_as_they_are(live: ClusterState) -> None:
    old = config(ipam="cluster-pool", cluster_pool_ipv4_cidr="10.0.2.0/24 10.0.0.0/23,10.9.0.0/16")
    field = f"{NAME}data.cluster-pool-ipv4-cidr "
    rest = (
        "and Cilium, which allows no change of an element, would not know their addresses any more and give them "
        "to others."
    )
    keep = "in cluster-pool-ipv4-cidr; to get more space, add another CIDR behind it."
    assert refused(live, CONFIG_MAPS, old, config(ipam="cluster-pool", cluster_pool_ipv4_cidr="10.0.0.0/22")) == [
        f"{field}'10.0.0.0/22': 10.0.2.0/24 cannot be put into a larger one while it is in use: 1 node holds blocks of "
        "it "
        f"(worker-002), {rest} Keep 10.0.2.0/24 {keep}",
        f"{field}'10.0.0.0/22': 10.0.0.0/23 cannot be put into a larger one while it is in use: 1 node holds blocks of "
        "it "
        f"(worker-001), {rest} Keep 10.0.0.0/23 {keep}",
        f"{field}'10.0.0.0/22': 10.9.0.0/16 cannot be removed or changed while it is in use: {THREE} of mode "
        f"cluster-pool, {rest} Keep 10.9.0.0/16 {keep}",
    ]
    assert len(refused(live, CONFIG_MAPS, old, config(ipam="cluster-pool"))) == 3


@pytest.mark.parametrize(
    "after", ["10.9.0.0/16, 10.0.2.0/24\n10.0.0.0/23", " 10.0.0.0/23 10.0.2.0/24 10.9.7.7/16 10.200.0.0/16 "]
)
def test_order_and_separators_do_not_matter_and_growth_passes(live: ClusterState, after: str) -> None:
    old = config(ipam="cluster-pool", cluster_pool_ipv4_cidr="10.0.2.0/24 10.0.0.0/23,10.9.0.0/16 nonsense")
    assert refused(live, CONFIG_MAPS, old, config(ipam="cluster-pool", cluster_pool_ipv4_cidr=after)) == []


def test_the_mask_size_stays(live: ClusterState) -> None:
    field = f"{NAME}data.cluster-pool-ipv4-mask-size"
    rest = (
        f"while it is in use: {THREE}, cut as blocks of /24, and Cilium would take the blocks that nodes hold for "
        'others, and give addresses twice. Keep cluster-pool-ipv4-mask-size: "24", or remove every node and its '
        "CiliumNode first."
    )
    without = {key: value for key, value in POOL.items() if "mask" not in key}
    assert refused(live, CONFIG_MAPS, config(**POOL), config(**without, cluster_pool_ipv4_mask_size="25")) == [
        f"{field} '25': the mask size cannot change {rest}"
    ]
    assert refused(live, CONFIG_MAPS, config(**POOL), config(**without)) == [
        f"{field}: the key cannot be removed {rest}"
    ]
    assert refused(live, CONFIG_MAPS, config(**without), config(**without, cluster_pool_ipv4_mask_size="26")) == [
        f"{field} '26': the mask size cannot change {rest}"
    ]
    assert refused(live, CONFIG_MAPS, config(**without), config(**POOL)) == []
    # A family that is not in use is free.
    assert refused(live, CONFIG_MAPS, config(**POOL, cluster_pool_ipv6_mask_size="120"), config(**POOL)) == []


def test_keys_of_cluster_pool_are_free_in_other_modes() -> None:
    live = ask.with_record(ask.with_cilium_nodes(ask.fresh(), 1), ciliumMode="kubernetes")
    old = {**POOL, "ipam": "kubernetes"}
    assert refused(live, CONFIG_MAPS, config(**old), config(ipam="kubernetes")) == []


def test_all_is_free_while_nobody_holds_addresses() -> None:
    live = ask.fresh()
    ask.with_cilium_node(live, "worker-1", {"podCIDRs": []})
    for new in (None, config(ipam="kubernetes"), config()):
        assert refused(live, CONFIG_MAPS, config(**POOL), new) == []
    assert refused(live, CONFIG_MAPS, None, config(ipam="eni")) == []


@pytest.mark.parametrize(
    "held",
    [
        {"podCIDRs": ["10.0.0.0/24"]},
        {"pools": {"allocated": [{"pool": "default", "cidrs": ["10.0.0.0/24"]}]}},
        {"pool": {"10.0.0.1": {"resource": "eni-1"}}},
        {"ipv6-pool": {"fd00::1": {}}},
        {"podCIDRs": ["nonsense"]},
    ],
)
def test_whatever_a_node_holds_counts(held: ask.Json) -> None:
    live = ask.fresh()
    ask.with_cilium_node(live, "worker-1", held)
    (text,) = refused(live, CONFIG_MAPS, config(ipam="eni"), config(ipam="kubernetes"))
    assert "1 node holds addresses (worker-1) of mode eni" in text


def test_the_record_tells_the_way_back() -> None:
    live = ask.with_record(ask.with_cilium_nodes(ask.fresh(), 3), ciliumMode="cluster-pool")
    past = config(ipam="kubernetes")
    assert refused(live, CONFIG_MAPS, past, config(ipam="kubernetes", debug="true")) == []
    assert refused(live, CONFIG_MAPS, past, config(ipam="kubernetes", cluster_pool_ipv4_cidr="10.0.0.0/8")) == []
    assert refused(live, CONFIG_MAPS, past, config(**POOL)) == []
    assert refused(live, CONFIG_MAPS, past, config(ipam="eni")) == [locked("eni")]


def test_what_it_depends_on_has_to_be_seen() -> None:
    live = ask.fresh()
    live.unseen = lambda kind: "its list was not read yet" if kind in ("CiliumNode", "ConfigMap") else ""
    both = ("CiliumNode: its list was not read yet", "ConfigMap: its list was not read yet")
    assert ask.verdict(live, CONFIG_MAPS, config(**POOL)).unseen == both
    assert ask.verdict(live, CONFIG_MAPS, config(**POOL), config(ipam="eni")).unseen == both
    assert ask.verdict(live, CONFIG_MAPS, None, config(**POOL)).unseen == both
    grown = config(**{**POOL, "cluster_pool_ipv4_cidr": "10.0.0.0/16 10.9.0.0/16"})
    assert refused(live, CONFIG_MAPS, config(**POOL), grown) == []
    live.unseen = lambda kind: "its list was not read yet" if kind == "CiliumNode" else ""
    ask.with_record(live, ciliumMode="cluster-pool", ciliumInUse="2 nodes hold addresses (x, y)")
    assert "2 nodes hold addresses (x, y) of mode cluster-pool" in refused(live, CONFIG_MAPS, config(**POOL))[0]
    assert ask.verdict(live, CONFIG_MAPS, None, config(**POOL)).unseen == both[:1]


def test_a_wide_cidr_that_holds_nodes_is_warned_of() -> None:
    live = ask.fresh()
    ask.with_addresses(live, "worker-1", "10.128.0.7")
    text = (
        f"{NAME}data.cluster-pool-ipv4-cidr '10.0.0.0/8': it holds addresses of nodes (10.128.0.7 of node worker-1), "
        "so "
        "a pod could be given the address of a node. Use CIDRs outside the nodes' network."
    )
    wide = config(ipam="cluster-pool", cluster_pool_ipv4_cidr="10.0.0.0/8")
    assert warned(live, CONFIG_MAPS, None, wide) == [text]
    assert warned(live, CONFIG_MAPS, config(**POOL), wide) == [text]
    assert (
        warned(live, CONFIG_MAPS, wide, config(ipam="cluster-pool", cluster_pool_ipv4_cidr="10.0.0.0/8 172.20.0.0/16"))
        == []
    )


def test_a_pool_in_use_keeps_its_blocks() -> None:
    live = ask.fresh()
    for number in range(4):
        held = {"pools": {"allocated": [{"pool": "blue", "cidrs": [f"10.10.{number}.0/27"]}]}}
        ask.with_cilium_node(live, f"worker-{number}", held)
    old = ip_pool("blue", "10.10.0.0/16")
    name, lost = (
        "CiliumPodIPPool blue: ",
        "and their pods would have addresses that belong to nobody, which another pool may give to others.",
    )
    assert refused(live, CILIUM_POOLS, old) == [
        f"{name}metadata.name 'blue': the pool cannot be deleted while it is in use: 4 nodes hold blocks of it "
        "(worker-0, "
        f"worker-1, worker-2 and 1 more), {lost} Move the pods that use it to another pool, or remove those nodes, "
        "until "
        "no node holds a block of it."
    ]
    assert refused(live, CILIUM_POOLS, old, ip_pool("blue", "10.10.0.0/23")) == [
        f"{name}spec.ipv4.cidrs '10.10.0.0/16': 10.10.0.0/16 cannot be removed or made smaller while it is in use: "
        f"2 nodes hold blocks of it (worker-2, worker-3), {lost} Keep it; to get more space, add another CIDR to "
        "the list. It can go when no node holds a block of it."
    ]
    assert len(refused(live, CILIUM_POOLS, old, {**old, "spec": {}})) == 1
    assert "cut as /27" in refused(live, CILIUM_POOLS, old, ip_pool("blue", "10.10.0.0/16", mask=28))[0]
    for new in (ip_pool("blue", "10.10.0.0/16", "10.11.0.0/16"), ip_pool("blue", "10.10.0.0/22")):
        assert refused(live, CILIUM_POOLS, old, new) == []
    assert refused(live, CILIUM_POOLS, None, old) == []
    assert refused(live, CILIUM_POOLS, ip_pool("green", "10.12.0.0/16")) == []
    live.unseen = lambda kind: "its list was not read yet"
    assert ask.verdict(live, CILIUM_POOLS, ip_pool("green", "10.12.0.0/16")).unseen
    assert ask.verdict(live, CILIUM_POOLS, ip_pool("green", "10.12.0.0/16"), ip_pool("green", "10.12.0.0/17")).unseen
    assert ask.verdict(live, CILIUM_POOLS, ip_pool("green", "10.12.0.0/16"), ip_pool("green", "10.12.0.0/15")).allowed

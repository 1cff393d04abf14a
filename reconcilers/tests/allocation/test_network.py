"""The NetloomNetwork: exhaustion, the mode lock, and what makes no sense."""

from typing import Any

import pytest
from prometheus_client import generate_latest

from netloom.runtime.errors import ApiError, Forbidden, Invalid, Unavailable
from netloom.runtime.metrics import REGISTRY
from tests.allocation.server import ModelServer, Request
from tests.allocation.world import World, no_overlap


def metric(name: str, **labels: str) -> float | None:
    """The value of a metric, None where it has none."""
    return REGISTRY.get_sample_value(name, labels)


def ready(world: World) -> tuple[str, str, str]:
    return world.condition("netloomnetworks", "default")


# What the API server does not take


class Refusing(ModelServer):
    """While `refused` names kinds, nobody creates or replaces one of these."""

    refused: tuple[str, ...] = ()
    error: ApiError = Forbidden(403, "Forbidden", "ValidatingAdmissionPolicy 'owners' denied request")

    def execute(self, request: Request) -> Any:
        if request.plural in self.refused and request.verb in ("create", "replace"):
            raise self.error
        return super().execute(request)


@pytest.mark.parametrize(
    ("plural", "who"), [("netloomledgers", "no node gets pod CIDRs"), ("netloomnodes", "2 nodes (b, c)")]
)
@pytest.mark.parametrize("error", [Refusing.error, Unavailable(500, "InternalError", "failed calling webhook")])
def test_what_an_admission_policy_or_a_broken_webhook_keeps_from_nodes_is_told(
    plural: str, who: str, error: ApiError
) -> None:
    world = World(server=Refusing)
    world.apply_network(ipv4PodCIDRList=["10.0.0.0/16"])
    operator = world.start()
    world.join("a")
    world.calm(20)
    assert ready(world)[:2] == ("True", "Accepted")
    world.server.refused, world.server.error = (plural,), error
    world.join("b")
    world.join("c")
    world.calm(2)
    assert ready(world)[:2] == ("True", "Accepted"), "a moment is nothing: an API server that starts errs, too"
    world.calm(30)
    status, reason, message = ready(world)
    assert (status, reason) == ("False", "WriteRefused")
    assert message.startswith(f"{who}: the API server refuses what the operator writes for that: ")
    assert error.message in message
    assert "Let the admission policy, webhook or quota" in message
    assert operator.said.reasons("NetloomNetwork/default")[-1] == "WriteRefused"
    assert metric("netloom_network_problems", reason="WriteRefused") == 1
    writes = len(world.server.executed)
    world.calm(300)
    assert [each for each in world.server.executed[writes:] if each.plural == "netloomnetworks"] == []

    world.server.refused = ()
    world.calm(70)
    assert set(world.cidrs()) == {"a", "b", "c"}
    assert ready(world)[:2] == ("True", "Accepted")
    assert metric("netloom_network_problems", reason="WriteRefused") is None
    no_overlap(world)
    world.close()


def test_who_waited_for_a_write_that_was_refused_and_left_is_told_of_no_more() -> None:
    world = World(server=Refusing)
    world.apply_network(ipv4PodCIDRList=["10.0.0.0/16"])
    world.start()
    for plural in ("netloomledgers", "netloomnodes"):
        world.server.refused = (plural,)
        world.join("b")
        world.calm(30)
        assert ready(world)[1] == "WriteRefused"
        world.leave("b")
        world.server.refused = ()
        world.calm(130)
        assert ready(world)[:2] == ("True", "Accepted")
    world.close()


# Exhaustion


def test_exhaustion_shows_as_condition_event_and_metric_and_ends_with_another_cidr(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/24"], ipv4MaskSize=24)
    operator = empty.start()
    for name in "abc":
        empty.join(name)
    empty.calm(20)
    assert empty.texts() == {"a": "10.0.0.0/24", "b": "", "c": ""}
    status, reason, message = ready(empty)
    assert (status, reason) == ("False", "ClusterPoolExhausted")
    assert message == (
        "2 nodes (b, c) without a pod CIDR: all 1 IPv4 blocks (/24) of 10.0.0.0/24 are in use. "
        "Append a CIDR to spec.ipam.clusterPool.ipv4PodCIDRList, or remove nodes."
    )
    assert empty.condition("netloomnodes", "b")[:2] == ("False", "ClusterPoolExhausted")
    assert operator.said.reasons("NetloomNetwork/default")[-1] == "ClusterPoolExhausted"
    assert operator.said.reasons("NetloomNode/c") == ["ClusterPoolExhausted"]
    assert metric("netloom_nodes_waiting", reason="ClusterPoolExhausted") == 2
    assert metric("netloom_network_problems", reason="ClusterPoolExhausted") == 1
    assert metric("netloom_ipam_blocks", cidr="10.0.0.0/24", mask="24", state="free") == 0

    since = len(empty.server.executed)
    empty.calm(600)
    assert empty.server.executed[since:] == []  # waiting is not spinning

    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/24", "10.7.0.0/23"], ipv4MaskSize=24)
    empty.calm(20)
    assert empty.texts() == {"a": "10.0.0.0/24", "b": "10.7.0.0/24", "c": "10.7.1.0/24"}
    assert ready(empty)[:2] == ("True", "Accepted")
    assert empty.condition("netloomnodes", "b")[:2] == ("True", "Allocated")
    assert metric("netloom_nodes_waiting", reason="ClusterPoolExhausted") is None
    assert metric("netloom_network_problems", reason="ClusterPoolExhausted") is None
    assert metric("netloom_ipam_blocks", cidr="10.7.0.0/23", mask="24", state="allocated") == 2


def test_a_block_that_comes_back_goes_to_one_who_waits(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/24"], ipv4MaskSize=24)
    empty.start()
    for name in "abc":
        empty.join(name)
    empty.calm(20)
    empty.leave("a")
    empty.calm(20)
    assert sorted(empty.texts().values()) == ["", "10.0.0.0/24"]
    assert set(empty.texts()) == {"b", "c"}


def test_a_cidr_made_larger_gives_what_is_beside_the_old_one(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.0.4.0/25"], ipv4MaskSize=26)
    empty.start()
    for name in "abc":
        empty.join(name)
    empty.calm(20)
    assert empty.texts() == {"a": "10.0.4.0/26", "b": "10.0.4.64/26", "c": ""}

    with pytest.raises(Invalid, match="cannot be removed or made smaller"):
        empty.apply_network(ipv4PodCIDRList=["10.0.4.0/26"], ipv4MaskSize=26)
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/16"], ipv4MaskSize=26)
    for number in range(20):
        empty.join(f"n{number:02}")
    empty.calm(20)
    held = empty.texts()
    assert {name: held[name] for name in "abc"} == {"a": "10.0.4.0/26", "b": "10.0.4.64/26", "c": "10.0.0.0/26"}
    assert held["n14"] == "10.0.3.192/26"
    assert held["n15"] == "10.0.4.128/26", "the blocks of a and b are passed over"
    assert metric("netloom_ipam_blocks", cidr="10.0.0.0/16", mask="26", state="allocated") == 23

    # Out of the range of the first ledger, too, and with a successor that knows only what is written.
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/15"], ipv4MaskSize=26)
    empty.kill(empty.operators[0])
    empty.start()
    empty.leave("a")
    empty.join("d")
    empty.calm(200)
    assert empty.texts() == {**{name: held[name] for name in held if name != "a"}, "d": "10.0.5.192/26"}


# Who holds addresses


def words_of(world: World) -> str:
    words: str = world.network["status"]["ipam"].get("inUse", "")
    return words


def telling(world: World, since: int = 0) -> list[str | None]:
    """What was written for people of who holds addresses."""
    bodies = [
        each.body for each in world.server.executed[since:] if str(each) == "patch netloomnetworks/default/status"
    ]
    told = [body["status"].get("ipam", {}) for body in bodies]
    return [ipam["inUse"] for ipam in told if "inUse" in ipam and "mode" not in ipam]


def test_the_network_says_who_holds_addresses_in_few_writes(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/16"], ipv4MaskSize=24)
    operator = empty.start()
    empty.join("worker-1")
    empty.calm(10)
    assert words_of(empty) == "1 node holds addresses (worker-1)"
    assert telling(empty) == ["1 node holds addresses (worker-1)"]

    # A hundred join within a second: told when it is over, and after the last of them has its CIDR.
    since = len(empty.server.executed)
    for number in range(2, 102):
        empty.join(f"worker-{number}")
        empty.calm(0.01)
    empty.calm(20)
    assert words_of(empty) == "101 nodes hold addresses (worker-1, worker-10, worker-100 and 98 more)"
    assert telling(empty, since) == [words_of(empty)]
    done = [str(each) for each in empty.server.executed[since:]]
    assert done.index("patch netloomnetworks/default/status") > done.index("create netloomnodes/worker-101")

    # A successor finds it written.
    since = len(empty.server.executed)
    empty.kill(operator)
    empty.start()
    empty.calm(20)
    assert telling(empty, since) == []

    since = len(empty.server.executed)
    for number in range(1, 102):
        empty.leave(f"worker-{number}")
    empty.calm(300)
    assert empty.mode_in_force == ""
    assert "inUse" not in empty.network["status"]["ipam"], "cleared with the lock, in the same write"
    assert len(telling(empty, since)) <= 2
    assert None not in telling(empty, since)


def test_who_holds_addresses_waits_for_nodes_and_no_condition_waits_for_it(world: World) -> None:
    """A NetloomNode that the API server is slow to create is still being given its CIDR."""
    operator = world.start()
    for name in "abc":
        world.join(name)
    slow = world.until(operator, "create netloomnodes/c")
    world.delay(slow)
    world.work(operator, 9)
    assert set(world.cidrs()) == {"a", "b"}
    assert ready(world)[:2] == ("True", "Accepted")
    assert telling(world) == []
    world.handle(slow)
    hangs = world.until(operator, "patch netloomnetworks/default/status", patience=30)
    assert hangs.request.body["status"]["ipam"] == {"inUse": "3 nodes hold addresses (a, b, c)"}

    # It hangs, and the fifth node of four blocks comes.
    world.delay(hangs)
    for name in "de":
        world.join(name)
    world.work(operator, 9)
    assert ready(world)[:2] == ("False", "ClusterPoolExhausted")
    world.work(operator, 20)
    assert words_of(world) == "4 nodes hold addresses (a, b, c and 1 more)"
    world.handle(hangs)
    assert words_of(world) == "4 nodes hold addresses (a, b, c and 1 more)"


def test_who_holds_addresses_is_told_though_nodes_come_without_a_pause(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/16"], ipv4MaskSize=24)
    empty.start()
    for number in range(200):
        empty.join(f"worker-{number}")
        empty.calm(0.4)
    assert 1 <= len(telling(empty)) <= 4


def test_who_holds_addresses_is_not_written_beside_a_lock_that_opened_meanwhile(world: World) -> None:
    world.join("a")
    world.join("b")
    first = world.start()
    world.calm(20)
    world.leave("b")
    late = world.until(first, "patch netloomnetworks/default/status", patience=30)
    assert late.request.body["status"]["ipam"] == {"inUse": "1 node holds addresses (a)"}
    world.delay(late)
    world.kill(first)
    world.leave("a")
    world.start()
    world.calm(300)
    assert world.mode_in_force == ""
    world.calm(10)
    assert "inUse" not in world.network["status"]["ipam"]


# The mode lock


def test_the_mode_is_locked_from_the_first_address_to_the_last(world: World) -> None:
    world.start()
    world.calm(10)
    assert world.mode_in_force == ""
    world.join("a")
    world.calm(10)
    assert world.mode_in_force == "cluster-pool"
    assert world.network["metadata"]["finalizers"] == ["netloom.dev/in-use"]
    with pytest.raises(Invalid, match="the IPAM mode of a live cluster cannot change"):
        world.apply_network(mode="kubernetes")
    world.leave("a")
    world.calm(10)
    assert world.mode_in_force == ""
    assert world.network["metadata"]["finalizers"] == []
    world.apply_network(mode="kubernetes")
    world.join("b", "10.244.0.0/24")
    world.calm(10)
    assert world.texts() == {"b": "10.244.0.0/24"}
    assert world.mode_in_force == "kubernetes"


def test_a_network_deleted_while_in_use_stays_until_the_last_node_is_gone(world: World) -> None:
    world.join("a")
    world.start()
    world.calm(10)
    world.delete("netloomnetworks", "default")
    world.join("b")
    world.calm(10)
    assert set(world.cidrs()) == {"a", "b"}
    for name in "ab":
        world.leave(name)
    world.calm(10)
    assert "default" not in world.server.all("netloomnetworks")
    assert world.cidrs() == {}


def recreate_by_force(world: World, **network: object) -> None:
    """`kubectl replace --force` with the finalizer taken off: the lock is gone although nodes hold addresses."""
    world.server._remove("netloomnetworks", world.network)
    world.apply_network(**network)


def test_a_lost_lock_is_rebuilt_before_anything_is_given(world: World) -> None:
    world.join("a")
    world.start()
    world.calm(10)
    epoch = world.network["status"]["ipam"]["epoch"]
    recreate_by_force(world, ipv4PodCIDRList=["10.0.0.0/22"], ipv4MaskSize=24)
    assert world.mode_in_force == ""
    world.calm(10)
    assert world.network["status"]["ipam"]["mode"] == "cluster-pool"
    assert world.network["status"]["ipam"]["ledgers"] == ["v4-10.0.0.0-16"]
    assert world.network["status"]["ipam"]["epoch"] > epoch
    world.join("b")
    world.calm(10)
    assert world.texts() == {"a": "10.0.0.0/24", "b": "10.0.1.0/24"}


@pytest.mark.parametrize("running", [True, False])
def test_the_mode_in_force_is_obeyed_when_the_lock_was_got_around(world: World, running: bool) -> None:
    world.join("a")
    operator = world.start()
    world.calm(10)
    if not running:
        world.kill(operator)
    recreate_by_force(world, mode="kubernetes", ipv4PodCIDRList=["10.0.0.0/22"], ipv4MaskSize=24)
    if not running:
        operator = world.start()
    world.join("b", "10.244.0.0/24")
    world.calm(20)
    assert world.mode_in_force == "cluster-pool"
    assert world.texts() == {"a": "10.0.0.0/24", "b": "10.0.1.0/24"}
    status, reason, message = ready(world)
    assert (status, reason) == ("False", "ModeLocked")
    assert "mode kubernetes is not followed. Set spec.ipam.mode to cluster-pool" in message
    assert "ModeLocked" in operator.said.reasons("NetloomNetwork/default")
    assert metric("netloom_network_problems", reason="ModeLocked") == 1


def clear_lock(world: World) -> None:
    """What an administrator can do, where no webhook stops him."""
    world.server.execute(Request("patch", "netloomnetworks", "default", {"status": {"ipam": None}}, "status", "merge"))


@pytest.mark.parametrize("takes_over", [False, True])
def test_the_mode_in_force_is_obeyed_when_the_lock_was_cleared_by_hand(world: World, takes_over: bool) -> None:
    world.join("a")
    operator = world.start()
    world.calm(20)
    if takes_over:
        world.kill(operator)
    clear_lock(world)
    world.apply_network(mode="kubernetes", ipv4PodCIDRList=["10.0.0.0/22"], ipv4MaskSize=24)
    world.join("b", "10.244.0.0/24")
    if takes_over:
        operator = world.start()
    world.calm(20)
    assert world.mode_in_force == "cluster-pool"
    assert world.network["status"]["ipam"]["ledgers"] == ["v4-10.0.0.0-16"]
    assert words_of(world) == "2 nodes hold addresses (a, b)"
    assert world.texts() == {"a": "10.0.0.0/24", "b": "10.0.1.0/24"}
    assert ready(world)[:2] == ("False", "ModeLocked")
    assert "ModeLocked" in operator.said.reasons("NetloomNetwork/default")
    assert metric("netloom_network_problems", reason="ModeLocked") == 1


def list_ledgers(world: World, *names: str) -> None:
    """What an administrator can do, in `status.ipam.ledgers`."""
    change = {"status": {"ipam": {"ledgers": names}}}
    world.server.execute(Request("patch", "netloomnetworks", "default", change, "status", "merge"))


@pytest.mark.parametrize("name", ["made-up", "v4-10.0.0.0-24", "v4-10.0.0.1-16", "Not a name", ""])
def test_a_listed_name_that_is_no_ledgers_keeps_nothing(empty: World, name: str) -> None:
    """Nothing can be given of it. It went on being listed, and so the lock was never cleared, and no CIDR removed."""
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/24", "10.1.0.0/24"], ipv4MaskSize=24)
    empty.join("a")
    empty.start()
    empty.calm(10)
    list_ledgers(empty, "v4-10.0.0.0-16", name)
    empty.join("b")
    empty.calm(10)
    ipam = empty.network["status"]["ipam"]
    assert ipam["ledgers"] == ["v4-10.0.0.0-16", "v4-10.1.0.0-16"]
    assert ipam["ledgerRanges"] == ["10.0.0.0/16", "10.1.0.0/16"]
    list_ledgers(empty, *ipam["ledgers"], name)
    for node in "ab":
        empty.leave(node)
    empty.calm(10)
    assert empty.mode_in_force == ""
    assert empty.network["status"]["ipam"]["ledgers"] == []


def test_a_listed_ledger_that_does_not_exist_is_closed_as_all_others(world: World) -> None:
    world.join("a")
    world.start()
    world.calm(10)
    list_ledgers(world, "v4-10.0.0.0-16", "v4-10.9.0.0-16")
    world.leave("a")
    world.calm(10)
    assert world.mode_in_force == ""
    assert world.server.all("netloomledgers")["v4-10.9.0.0-16"]["spec"].get("mode", "") == ""


def test_a_node_made_anew_while_the_lock_was_lost_keeps_its_cidr(world: World) -> None:
    """In mode kubernetes, a Node that comes back with another CIDR gets that one; here it is not the mode in force."""
    world.join("a")
    operator = world.start()
    world.calm(20)
    world.kill(operator)
    clear_lock(world)
    world.apply_network(mode="kubernetes", ipv4PodCIDRList=["10.0.0.0/22"], ipv4MaskSize=24)
    world.leave("a")
    world.join("a", "10.244.0.0/24")
    world.start()
    world.calm(20)
    assert world.texts() == {"a": "10.0.0.0/24"}
    assert world.mode_in_force == "cluster-pool"


def test_addresses_of_two_modes_stop_allocation_and_say_so(empty: World) -> None:
    empty.make("a", "10.0.0.0/24", mode="cluster-pool")
    empty.make("b", "10.0.1.0/24", mode="kubernetes")
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/22"], ipv4MaskSize=24)
    for name in "abc":
        empty.join(name)
    empty.start()
    empty.calm(20)
    assert empty.mode_in_force == ""
    assert empty.texts()["c"] == ""
    assert "ModeAmbiguous" in ready(empty)[1]
    assert "NetloomNode a" in ready(empty)[2]


# What makes no sense


def test_a_crash_is_told_at_a_network_that_somebody_edited_meanwhile(world: World) -> None:
    operator = world.start()
    world.calm(10)
    world.edit("netloomnetworks", "default", mtu=1400)
    last_words = operator.loop.create_task(operator.allocation.tell_crash("allocation crashed: out of luck."))
    world.work(operator, 2, blind="netloomnetworks")
    assert last_words.done()
    told = [event.object.get("status", {}).get("conditions", ()) for event in world.server.events]
    assert "OperatorCrashed" in {each["reason"] for conditions in told for each in conditions}


def test_no_network_is_no_reason_to_crash(empty: World) -> None:
    empty.join("a")
    empty.start()
    empty.calm(200)
    assert empty.cidrs() == {}
    assert metric("netloom_nodes_waiting", reason="NoNetwork") == 1
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/22"], ipv4MaskSize=24)
    empty.calm(10)
    assert empty.texts() == {"a": "10.0.0.0/24"}


def test_blocks_with_the_address_of_a_node_are_given_to_nobody(world: World) -> None:
    world.join("a", address="10.0.1.20")
    operator = world.start()
    for name in "bcd":
        world.join(name)
    world.calm(20)
    assert world.texts() == {"a": "10.0.0.0/24", "b": "10.0.2.0/24", "c": "10.0.3.0/24", "d": ""}
    assert "10.0.1.20 of node a" in ready(world)[2]
    assert (
        "all 4 IPv4 blocks (/24) of 10.0.0.0/22 are in use, or reserved for Services, nodes and their networks (1)"
        in ready(world)[2]
    )
    assert operator.said.reasons("NetloomNode/d") == ["ClusterPoolExhausted"]
    assert metric("netloom_network_problems", reason="ClusterCIDROverlapsNodes") == 1
    node = world.server.all("nodes")["a"]
    moved = [{"type": "InternalIP", "address": "192.168.0.1"}]
    world.server._update("nodes", node, {**node, "metadata": dict(node["metadata"]), "status": {"addresses": moved}})
    world.calm(20)
    assert world.texts()["d"] == "10.0.1.0/24"
    assert ready(world)[:2] == ("True", "Accepted")


def test_cluster_cidrs_that_overlap_are_reported_and_the_first_is_used(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/23", "10.0.1.0/24", "10.0.9.0/24"], ipv4MaskSize=24)
    operator = empty.start()
    for name in "abcd":
        empty.join(name)
    empty.calm(20)
    assert empty.texts() == {"a": "10.0.0.0/24", "b": "10.0.1.0/24", "c": "10.0.9.0/24", "d": ""}
    status, reason, message = ready(empty)
    assert (status, reason) == ("False", "CIDROverlap")
    assert "10.0.0.0/23 overlaps 10.0.1.0/24" in message
    assert operator.said.reasons("NetloomNetwork/default")[0] == "CIDROverlap"
    assert metric("netloom_network_problems", reason="CIDROverlap") == 1


@pytest.mark.parametrize("mode", ["eni", "azure"])
def test_a_mode_that_is_not_there_yet_says_so(empty: World, mode: str) -> None:
    empty.apply_network(mode=mode)
    for name in "ab":
        empty.join(name)
    operator = empty.start()
    empty.calm(20)
    assert empty.cidrs() == {}
    assert empty.mode_in_force == ""
    status, _, message = ready(empty)
    assert status == "False"
    assert f"IPAM mode {mode} is not implemented in this version of Netloom, and no node is given addresses." in message
    assert len(operator.said.reasons("NetloomNetwork/default")) == 1
    assert metric("netloom_network_problems", reason="IPAMModeNotImplemented") == 1
    assert metric("netloom_nodes_waiting", reason="IPAMModeNotImplemented") == 2


def test_a_network_without_a_usable_cidr_gives_nothing_and_says_so(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/8"], ipv4MaskSize=24, ipv6PodCIDRList=["nonsense"])
    empty.join("a")
    empty.start()
    empty.calm(20)
    assert empty.texts().get("a", "") == ""
    assert ready(empty)[:2] == ("False", "InvalidCIDR")
    assert "nonsense" in ready(empty)[2]


# Ledgers that were damaged


def damage(world: World, **spec: object) -> None:
    ledger = world.server.all("netloomledgers")["v4-10.0.0.0-16"]
    world.server._update(
        "netloomledgers", ledger, {**ledger, "metadata": dict(ledger["metadata"]), "spec": {**ledger["spec"], **spec}}
    )


def test_an_unreadable_ledger_is_named_and_nothing_is_given_out_of_it(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/22", "10.1.0.0/24"], ipv4MaskSize=24)
    empty.join("a")
    first = empty.start()
    empty.calm(10)
    empty.kill(first)
    good = empty.server.all("netloomledgers")["v4-10.0.0.0-16"]["spec"]["entries"]
    damage(empty, entries="rubbish")
    operator = empty.start()
    empty.join("b")
    empty.calm(20)
    assert empty.texts() == {"a": "10.0.0.0/24", "b": "10.1.0.0/24"}
    status, reason, message = ready(empty)
    assert (status, reason) == ("False", "LedgerUnreadable")
    assert message.startswith("NetloomLedger v4-10.0.0.0-16: spec.entries: spec.entries begins with 'rubbish'")
    assert "LedgerUnreadable" in operator.said.reasons("NetloomNetwork/default")
    assert metric("netloom_network_problems", reason="LedgerUnreadable") == 1
    empty.join("c")
    damage(empty, entries=good)
    empty.calm(100)
    assert empty.texts()["c"] == "10.0.1.0/24"
    assert ready(empty)[:2] == ("True", "Accepted")


@pytest.mark.parametrize("running", [True, False])
def test_a_lost_ledger_is_rebuilt_from_the_nodes(world: World, running: bool) -> None:
    for name in "abc":
        world.join(name)
    operator = world.start()
    world.calm(10)
    before = world.texts()
    if not running:
        world.kill(operator)
    world.delete("netloomledgers", "v4-10.0.0.0-16")
    if not running:
        world.start()
    world.join("d")
    world.calm(20)
    assert world.texts() == {**before, "d": "10.0.3.0/24"}
    entries = world.server.all("netloomledgers")["v4-10.0.0.0-16"]["spec"]["entries"]
    assert [line.split()[:2] for line in entries.splitlines()[1:]] == [
        [cidr, name] for name, cidr in world.texts().items()
    ]


def test_all_metrics_can_be_scraped(world: World) -> None:
    world.join("a")
    world.start()
    world.calm(10)
    text = generate_latest(REGISTRY).decode()
    assert 'netloom_ledger_commits_total{result="ok"}' in text
    assert 'netloom_allocation_writes_total{kind="NetloomNode",verb="create"}' in text
    assert 'netloom_ipam_blocks{cidr="10.0.0.0/22",mask="24",state="allocated"} 1.0' in text

"""Mode crd: somebody outside writes single addresses into NetloomNodes, and no ledger knows of them."""

from collections.abc import Callable

import pytest

from netloom.api.holdings import holds
from netloom.runtime.errors import Invalid
from netloom.runtime.metrics import REGISTRY
from netloom_reconcilers.cluster import nodes
from netloom_reconcilers.cluster.allocation import lock, outside_addresses
from netloom_reconcilers.node import single_addresses
from tests.allocation.server import Request
from tests.allocation.world import Agent, Operator, World


def metric(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels or None)


def ready(world: World) -> tuple[str, str, str]:
    return world.condition("netloomnetworks", "default", "Ready")


def allocated(world: World, name: str) -> tuple[str, str, str]:
    return world.condition("netloomnodes", name, "Allocated")


def ipam(world: World, name: str) -> dict[str, object]:
    """spec.ipam of a NetloomNode."""
    found: dict[str, object] = world.server.all("netloomnodes")[name]["spec"].get("ipam", {})
    return found


def used(world: World, name: str) -> dict[str, object]:
    """status.ipam of a NetloomNode."""
    found: dict[str, object] = world.server.all("netloomnodes")[name].get("status", {}).get("ipam", {})
    return found


@pytest.fixture
def outside(empty: World) -> World:
    """A network in mode crd, with a node a and an operator at work."""
    empty.apply_network(mode="crd")
    empty.edit("netloomnetworks", "default", routing={"mode": "native", "ipv4NativeRoutingCIDR": "10.0.0.0/8"})
    empty.join("a")
    empty.start()
    empty.calm(1)
    return empty


# The operator


def test_a_node_gets_an_object_and_the_mode_with_its_first_address(outside: World) -> None:
    assert ipam(outside, "a") == {}
    assert outside.mode_in_force == ""
    outside.fill("a", "10.7.0.5")
    outside.calm(1)
    assert ipam(outside, "a") == {"mode": "crd", "pool": {"10.7.0.5": {}}}
    assert outside.mode_in_force == "crd"
    assert outside.network["metadata"]["finalizers"] == ["netloom.dev/in-use"]
    assert outside.server.all("netloomledgers") == {}


def test_one_write_opens_the_lock_for_all(outside: World) -> None:
    for name in "bcd":
        outside.join(name)
    outside.calm(1)
    before = len(outside.server.executed)
    for number, name in enumerate("abcd"):
        outside.fill(name, f"10.7.0.{number}")
    outside.calm(1)
    opened = [each for each in outside.server.executed[before:] if "epoch" in str(each.body)]
    assert len(opened) == 1


def test_the_mode_is_locked_while_nodes_hold_addresses_and_says_by_whom(outside: World) -> None:
    outside.fill("a", "10.7.0.5")
    outside.calm(30)
    assert outside.network["status"]["ipam"]["inUse"] == "1 node holds addresses (a)"
    with pytest.raises(Invalid, match="the IPAM mode of a live cluster cannot change"):
        outside.apply_network(mode="cluster-pool", ipv4PodCIDRList=["10.0.0.0/22"], ipv4MaskSize=24)
    outside.withdraw("a", "10.7.0.5")
    outside.calm(30)
    assert outside.mode_in_force == ""
    assert outside.network["metadata"]["finalizers"] == []
    assert "inUse" not in outside.network["status"]["ipam"]
    assert "clearing" not in outside.network["status"]["ipam"]
    outside.apply_network(mode="cluster-pool", ipv4PodCIDRList=["10.0.0.0/22"], ipv4MaskSize=24)
    outside.calm(30)
    assert ipam(outside, "a") == {"mode": "cluster-pool", "pool": {}, "podCIDRs": ["10.0.0.0/24"]}
    assert outside.mode_in_force == "cluster-pool"


def test_a_node_without_addresses_is_told_after_a_while_and_by_the_network(outside: World) -> None:
    outside.join("b")
    outside.calm(20)
    assert ready(outside)[:2] == ("True", "Accepted")
    outside.calm(20)
    status, reason, message = allocated(outside, "a")
    assert (status, reason) == ("False", "NoAddresses")
    assert message.startswith("spec.ipam.pool: no address is there, so no pod can start on this node. Have ")
    status, reason, message = ready(outside)
    assert (status, reason) == ("False", "NoAddresses")
    assert message.startswith("2 nodes (a, b): spec.ipam.pool: no address is there, ")
    assert metric("netloom_nodes_waiting", reason="NoAddresses") == 2
    outside.fill("a", "10.7.0.5")
    outside.calm(20)
    assert allocated(outside, "a") == ("True", "Allocated", "it holds addresses, and nothing is wrong with them")
    status, reason, message = ready(outside)
    assert (status, reason) == ("True", "NoAddresses"), "whoever gives addresses works"
    assert "1 node (b): spec.ipam.pool: no address is there" in message


def test_the_younger_of_two_with_one_address_says_so_and_neither_is_changed(outside: World) -> None:
    outside.join("b")
    outside.calm(1)
    outside.server.written = lambda: None
    outside.fill("a", "10.7.0.5", "10.7.0.6", "10.7.0.7")
    outside.fill("b", "10.7.0.6", "10.7.0.7", "10.7.0.8")
    outside.calm(10)
    assert allocated(outside, "a")[0] == ""
    status, reason, message = allocated(outside, "b")
    assert (status, reason) == ("False", "AddressConflict")
    assert message.startswith(
        "spec.ipam.pool[10.7.0.6]: node a, which is older, holds it as well (and 1 more such). Neither is changed."
    )
    assert "1 node (b): spec.ipam.pool[10.7.0.6]" in ready(outside)[2]
    assert "AddressConflict" in outside.running[0].said.reasons("NetloomNode/b")
    assert metric("netloom_nodes_waiting", reason="AddressConflict") == 1
    assert list(ipam(outside, "b")["pool"]) == ["10.7.0.6", "10.7.0.7", "10.7.0.8"]  # type: ignore[call-overload]
    outside.withdraw("a", "10.7.0.6", "10.7.0.7")
    outside.calm(10)
    assert allocated(outside, "b")[:2] == ("True", "Allocated"), "told as soon as the other one gave it up"


@pytest.mark.parametrize(
    ("address", "reason", "says"),
    [
        ("10.7.0", "InvalidAddress", "spec.ipam.pool[10.7.0]: not an IP address; no pod is given it."),
        (
            "10.96.0.9",
            "AddressOfService",
            "spec.ipam.pool[10.96.0.9]: it lies in 10.96.0.0/16 (ServiceCIDR kubernetes)",
        ),
        ("192.168.1.1", "AddressOfNode", "spec.ipam.pool[192.168.1.1]: it is an address of node b"),
    ],
)
def test_entries_that_no_pod_can_have_are_told(outside: World, address: str, reason: str, says: str) -> None:
    outside.join("b")
    outside.calm(1)
    outside.fill("a", "10.7.0.5", address)
    outside.give_services("10.96.0.0/16")
    outside.calm(10)
    assert allocated(outside, "a")[:2] == ("False", reason)
    assert allocated(outside, "a")[2].startswith(says)
    assert reason in outside.running[0].said.reasons("NetloomNode/a")
    outside.withdraw("a", address)
    outside.calm(10)
    assert allocated(outside, "a")[:2] == ("True", "Allocated")


def test_a_lost_lock_is_rebuilt_from_addresses_held_and_used(outside: World) -> None:
    outside.join("b")
    outside.calm(1)
    outside.fill("a", "10.7.0.5")
    outside.calm(5)
    epoch = outside.network["status"]["ipam"]["epoch"]
    outside.server._remove("netloomnetworks", outside.network)
    outside.apply_network(mode="cluster-pool", ipv4PodCIDRList=["10.0.0.0/22"], ipv4MaskSize=24)
    outside.calm(10)
    assert outside.mode_in_force == "crd"
    assert outside.network["status"]["ipam"]["epoch"] > 0 < epoch
    assert "podCIDRs" not in ipam(outside, "b")
    assert ready(outside)[:2] == ("False", "ModeLocked")


# With agents


@pytest.fixture
def agent(outside: World) -> Agent:
    """Of node a, which holds an address."""
    found = outside.start_agent("a")
    outside.fill("a", "10.7.0.5")
    outside.calm(1)
    return found


def test_an_agent_gives_addresses_and_tells_which_are_used(outside: World, agent: Agent) -> None:
    assert used(outside, "a") == {"mode": "crd"}
    assert agent.begin("default/web")
    assert not agent.begin("default/more")
    outside.calm(2)
    assert used(outside, "a") == {"mode": "crd", "used": {"10.7.0.5": {"owner": "default/web", "resource": ""}}}
    before = len(outside.server.executed)
    outside.calm(60)
    assert outside.server.executed[before:] == []


def test_an_agent_whose_object_was_deleted_begins_anew(outside: World, agent: Agent) -> None:
    """The word went with it: until it stands at the new one, the lock may be clear, and nothing more is given."""
    outside.fill("a", "10.7.0.6")
    outside.calm(2)
    assert agent.begin("default/web")
    outside.calm(2)
    outside.delete("netloomnodes", "a")
    agent.see()
    agent.run()
    assert agent.singles.supply == {}
    outside.calm(1)
    outside.fill("a", "10.7.0.5", "10.7.0.6")
    outside.see_all()
    assert agent.singles.supply == {}, "the word is on its way"
    outside.calm(15)
    assert used(outside, "a") == {"mode": "crd", "used": {"10.7.0.5": {"owner": "default/web", "resource": ""}}}
    assert len(agent.singles.supply) == 2
    assert outside.mode_in_force == "crd"


def test_pods_that_come_and_go_are_few_writes(outside: World, agent: Agent) -> None:
    """Each is sent to every agent of the cluster."""
    outside.fill("a", *(f"10.7.1.{number}" for number in range(30)))
    outside.calm(2)
    before = len(outside.server.executed)
    for number in range(60):
        assert agent.begin(f"default/pod-{number}")
        if number >= 3:
            agent.end(f"default/pod-{number - 3}")
        outside.calm(1)
    writes = [
        each for each in outside.server.executed[before:] if each.plural == "netloomnodes" and each.verb == "patch"
    ]
    assert len(writes) <= 7, "one in ten seconds"
    outside.calm(15)
    assert len(used(outside, "a")["used"]) == 3  # type: ignore[arg-type]


def test_what_is_withdrawn_while_in_use_stays_in_use_and_is_told(outside: World, agent: Agent) -> None:
    assert agent.begin("default/web")
    outside.calm(2)
    outside.withdraw("a", "10.7.0.5")
    outside.calm(30)
    assert used(outside, "a") == {"mode": "crd", "used": {"10.7.0.5": {"owner": "default/web", "resource": ""}}}
    assert outside.mode_in_force == "crd"
    assert outside.network["status"]["ipam"]["inUse"] == "1 node holds addresses (a)"
    assert agent.singles.errors() == [
        "NetloomNode a: spec.ipam.pool: 10.7.0.5 (of default/web) withdrawn while in use: pods keep what they have "
        "until they end. Write them again, or delete these pods; until then no other node may have them."
    ]
    assert agent.said.reasons("NetloomNode/a") == ["AddressWithdrawn"]
    agent.end("default/web")
    outside.calm(30)
    assert used(outside, "a") == {}
    assert agent.singles.errors() == []
    assert outside.mode_in_force == ""


def test_an_agent_that_starts_again_begins_again_without_a_write(outside: World, agent: Agent) -> None:
    agent.begin("default/web")
    outside.calm(15)
    outside.kill(agent)
    before = len(outside.server.executed)
    again = outside.start_agent("a")
    outside.calm(15)
    assert list(again.singles.supply) == [bytes([10, 7, 0, 5])]
    assert [str(each) for each in outside.server.executed[before:]] == ["list netloomnetworks/"]


# Stories of the lock: `locked` is checked after each write to the server, and when a pod begins


def locked(world: World) -> None:
    """No pod has an address of mode crd while another mode, or none, is in force."""
    for name, pods in world.pods.items():
        assert not pods or world.mode_in_force == "crd", f"lock: {name} uses {pods}, in force: {world.mode_in_force!r}"


def an_agent_begins_while_the_mode_is_cleared(world: World, agent: Agent, operator: Operator) -> None:
    """The address is withdrawn and the operator has looked for the last time, when it comes back and the agent, which
    never knew, gives it."""
    world.withdraw("a", "10.7.0.5")
    world.work(agent, 1, blind="netloomnetworks")
    clear = world.until(operator, "patch netloomnetworks/default/status")
    world.handle(clear)
    world.handle(world.until(operator, "list netloomnodes"))
    cleared = world.until(operator, "patch netloomnetworks/default/status")
    world.fill("a", "10.7.0.5")
    world.work(agent, 3, blind="netloomnetworks")
    agent.begin("default/web")
    world.handle(cleared)
    world.calm(20)


def an_address_is_used_that_was_just_withdrawn(world: World, agent: Agent, operator: Operator) -> None:
    """It looked free to whoever withdrew it, and the agent gives it before it hears of that, and before it tells."""
    world.withdraw("a", "10.7.0.5")
    assert agent.begin("default/web")
    world.work(operator, 20)
    world.calm(20)


def a_cache_does_not_know_that_an_agent_began(world: World, agent: Agent, operator: Operator) -> None:
    """The address was withdrawn, and written again when the agent had begun: an operator heard of the first alone."""
    world.withdraw("a", "10.7.0.5")
    world.calm(20)
    assert world.mode_in_force == ""
    world.fill("a", "10.7.0.5")
    world.work(operator, 1)
    agent.see()
    world.withdraw("a", "10.7.0.5")
    operator.see()
    question = world.until(agent, "list netloomnetworks", blind="netloomnodes")
    world.fill("a", "10.7.0.5")
    agent.see()
    world.handle(question)
    assert agent.begin("default/web")
    world.work(operator, 20, blind="netloomnodes")
    operator.relist()
    world.calm(20)


def clearing_is_not_heeded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(single_addresses, "in_force", lambda network, mode: network.status.ipam.mode == mode)


def only_what_is_held_counts(patch: pytest.MonkeyPatch) -> None:
    for module in (lock, nodes, outside_addresses):
        patch.setattr(module, "is_in_use", lambda node: holds(node.spec.ipam))


def caches_are_believed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lock, "is_in_use", lambda node: False)


Story = Callable[[World, Agent, Operator], None]
STORIES: list[tuple[Story, Callable[[pytest.MonkeyPatch], None]]] = [
    (an_agent_begins_while_the_mode_is_cleared, clearing_is_not_heeded),
    (an_address_is_used_that_was_just_withdrawn, only_what_is_held_counts),
    (a_cache_does_not_know_that_an_agent_began, caches_are_believed),
]
"""Each with what takes away the rule that it is there for."""


@pytest.mark.parametrize("story", [story for story, _ in STORIES])
def test_no_address_is_used_unlocked(outside: World, agent: Agent, story: Story) -> None:
    outside.server.written = lambda: locked(outside)
    story(outside, agent, outside.running[0])


@pytest.mark.parametrize(("story", "broken"), STORIES)
def test_without_its_rule_the_story_goes_wrong(
    outside: World,
    agent: Agent,
    monkeypatch: pytest.MonkeyPatch,
    story: Story,
    broken: Callable[[pytest.MonkeyPatch], None],
) -> None:
    outside.server.written = lambda: locked(outside)
    broken(monkeypatch)
    with pytest.raises(AssertionError, match="lock: a uses"):
        story(outside, agent, outside.running[0])


def test_a_lock_that_was_being_cleared_by_one_who_died_goes_on_or_is_kept(outside: World, agent: Agent) -> None:
    outside.withdraw("a", "10.7.0.5")
    outside.work(agent, 3)
    first = outside.running[0]
    outside.handle(outside.until(first, "patch netloomnetworks/default/status"))
    assert outside.network["status"]["ipam"]["clearing"]
    outside.kill(first)
    outside.fill("a", "10.7.0.5")
    outside.calm(5)
    assert list(agent.singles.supply) == []
    outside.start()
    outside.calm(5)
    assert outside.mode_in_force == "crd"
    assert "clearing" not in outside.network["status"]["ipam"]
    assert len(agent.singles.supply) == 1
    outside.withdraw("a", "10.7.0.5")
    outside.calm(20)
    assert outside.mode_in_force == ""
    assert outside.server.execute(Request("get", "netloomnetworks", "default"))["metadata"]["finalizers"] == []


def test_addresses_left_from_before_the_mode_was_changed_are_told(outside: World) -> None:
    """They were written when nothing was in force, and the network was changed before the operator saw them."""
    for operator in outside.running:
        outside.kill(operator)
    outside.fill("a", "10.7.0.5")
    outside.apply_network(mode="cluster-pool", ipv4PodCIDRList=["10.0.0.0/22"], ipv4MaskSize=24)
    outside.start()
    outside.calm(10)
    assert allocated(outside, "a")[1] == "NotOfThisMode"
    assert "podCIDRs" not in ipam(outside, "a"), "the API server would not take them beside single addresses"
    outside.withdraw("a", "10.7.0.5")
    outside.calm(10)
    assert ipam(outside, "a") == {"mode": "cluster-pool", "pool": {}, "podCIDRs": ["10.0.0.0/24"]}


def test_a_node_that_is_left_out_stays_while_its_pods_use_addresses_withdrawn_or_not(
    outside: World, agent: Agent
) -> None:
    assert agent.begin("default/web")
    outside.calm(5)
    outside.run_pod("web", "a", "10.7.0.5")
    outside.withdraw("a", "10.7.0.5")
    outside.label("a", **{"netloom.dev_ignore": "true"})
    outside.calm(10)
    assert "a" in outside.server.all("netloomnodes")
    assert "a pod lives in 10.7.0.5/32 (default/web)" in ready(outside)[2]
    outside.delete("pods", "web")
    outside.calm(60)
    assert "a" not in outside.server.all("netloomnodes")
    assert outside.mode_in_force == ""

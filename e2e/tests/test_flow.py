"""The flow tool counts right: nothing where nothing is lost, and what is lost where and when it was."""

import os
import signal
from collections.abc import Iterator

import pytest

from netloom_e2e.flow import Flows
from netloom_e2e.lab import Lab, Pod, wait_for

FOUR = ("n1", "n2", "n3", "n4")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Four nodes on one segment, which know each other's pods from static routes; no agent."""
    with Lab(f"nlf{os.getpid() % 10000}", mtu=9000, dual_stack=True) as made:
        for index, name in enumerate(FOUR, 1):
            node = made.add_node(name)
            node.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
            node.add_pod("a", f"10.42.{index}.5", f"fd00:42:0:{index}::5", mtu=9000)
        for node in made.nodes.values():
            for index, other in enumerate(made.nodes.values(), 1):
                if other != node:
                    node.ip("route", "add", f"10.42.{index}.0/24", "via", other.address)
                    node.ip("route", "add", f"fd00:42:0:{index}::/64", "via", other.address6)
        yield made


@pytest.fixture
def pods(lab: Lab) -> dict[str, Pod]:
    return {name: node.pods["a"] for name, node in lab.nodes.items()}


@pytest.mark.parametrize(("size", "versions"), [(100, (4,)), (9000, (4, 6))])
def test_nothing_is_lost_on_a_quiet_network(pods: dict[str, Pod], size: int, versions: tuple[int, ...]) -> None:
    with Flows(pods, size=size, versions=versions) as flows:
        wait_for("two seconds of traffic", lambda: flows.now > 2)
        report = flows.stop()
    print(report)
    assert report.lossless, str(report)
    assert len(report.flows) == 12 * len(versions)
    assert all(flow.sent >= 2000 for flow in report.flows), str(report)


def test_a_loss_is_told_by_flow_and_time(lab: Lab, pods: dict[str, Pod]) -> None:
    n1 = lab.nodes["n1"]
    with Flows(pods) as flows:
        wait_for("traffic", lambda: flows.now > 0.5)
        gone_after = flows.now
        n1.ip("route", "del", "10.42.3.0/24")
        gone = flows.now
        wait_for("50 ms", lambda: flows.now - gone > 0.05, every=0.001)
        back = flows.now
        n1.ip("route", "add", "10.42.3.0/24", "via", lab.nodes["n3"].address)
        back_before = flows.now
        wait_for("traffic", lambda: flows.now > back_before + 0.2)
        report = flows.stop()
    print(report)
    assert not report.lossless
    assert not report.trouble
    assert {f"{f.source}->{f.target}" for f in report.flows if f.lost} == {"n1->n3"}, str(report)
    (gap,) = report.of("n1", "n3").gaps
    assert gap.count == report.lost
    # Packets right before and after the gap may be those of a tick that was late; its time stamp is then older.
    slack = report.lateness + 0.002
    assert gone_after - slack <= gap.after <= gone, f"{gap}, route gone at {gone_after:.3f}-{gone:.3f}"
    assert back <= gap.before + slack <= back_before + 2 * slack, f"{gap}, back at {back:.3f}-{back_before:.3f}"
    assert f"n1->n3 lost {gap.count} packets between " in str(report)


def test_a_packet_that_does_not_fit_is_told_with_the_error(lab: Lab, pods: dict[str, Pod]) -> None:
    lab.nodes["n1"].set_pod_mtu("a", 1500)
    try:
        with Flows(pods, size=1501) as flows:
            wait_for("traffic", lambda: flows.now > 0.3)
            report = flows.stop()
    finally:
        lab.nodes["n1"].set_pod_mtu("a", 9000)
    flow = report.of("n1", "n2")
    assert (flow.received, dict(flow.refused)) == (0, {"EMSGSIZE": flow.sent})
    assert f"n1->n2 could not send {flow.sent} packets: EMSGSIZE" in str(report)
    assert report.of("n2", "n3").lost == 0


def test_a_stalled_end_loses_nothing_and_catches_up(pods: dict[str, Pod]) -> None:
    with Flows(pods) as flows:
        wait_for("traffic", lambda: flows.now > 0.3)
        os.kill(flows.pids["n2"], signal.SIGSTOP)
        stalled = flows.now
        wait_for("half a second", lambda: flows.now - stalled > 0.5)
        os.kill(flows.pids["n2"], signal.SIGCONT)
        wait_for("traffic", lambda: flows.now > stalled + 1)
        report = flows.stop()
    assert report.lossless, str(report)
    assert report.lateness > 0.4
    assert min(flow.sent for flow in report.flows) > 1000


def test_what_an_end_drops_itself_is_not_called_a_loss_of_the_network_alone(pods: dict[str, Pod]) -> None:
    with Flows(pods, buffer=20_000) as flows:
        wait_for("traffic", lambda: flows.now > 0.3)
        os.kill(flows.pids["n2"], signal.SIGSTOP)
        stalled = flows.now
        wait_for("half a second", lambda: flows.now - stalled > 0.5)
        os.kill(flows.pids["n2"], signal.SIGCONT)
        report = flows.stop()
    lost = sum(flow.lost for flow in report.flows if flow.target == "n2")
    assert f"n2 dropped {lost} packets: its receive buffer ran over" in report.trouble, str(report)
    assert not report.lossless

"""Whatever happens to pods and their devices in whatever order: who lives is wired as on the first day, who left has
left nothing. On the real kernel; what should be there is worked out here, and compared with what `ip` prints."""

import asyncio
import contextlib

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from msgspec.structs import replace

from netloom.cidr import format_address
from netloom.kernel.endpoints.endpoint import Endpoints
from netloom.kernel.endpoints.keeper import EndpointsKeeper
from netloom.kernel.mac import format_mac
from tests.kernel.meshes import becomes, eventually
from tests.kernel.netns import Lab, Namespace
from tests.kernel.test_endpoint_repair import EDITS
from tests.kernel.wired_pods import Pod, forwarding_node, pod, shown, switches

PODS = 3


def wanted(pods: list[Pod]) -> str:
    """Of the node, with these pods."""
    return "\n".join(sorted(line for each in pods for line in _lines(each)))


def _lines(one: Pod) -> list[str]:
    end, device = one.endpoint, one.endpoint.device
    mac = format_mac(end.pod_mac)
    lines = [f"link {device} up mtu {end.mtu or 1500} address {format_mac(end.host_mac)} addrgenmode none"]
    for address in map(format_address, end.addresses):
        scope, more = (" scope link", "") if ":" not in address else ("", " pref medium")
        lines.append(f"neighbour {address} lladdr {mac} dev {device}")
        lines.append(f"route {address} proto 158{scope} metric 65536{more} dev {device}")
    return lines + [f"{device} {line}" for line in SWITCHES]


SWITCHES = (
    "ipv4 forwarding 1",
    "ipv4 rp_filter 1",
    "ipv4 accept_redirects 0",
    "ipv4 send_redirects 0",
    "ipv6 accept_ra 0",
    "ipv6 disable_ipv6 0",
)


class World:
    """A node, and the namespaces of pods."""

    def __init__(self, lab: Lab) -> None:
        self.node = forwarding_node(lab)
        self.node.ip("link add br0 type bridge")  # for one of the edits
        self.pods = [pod(lab, number) for number in range(PODS)]

    def found(self) -> str:
        devices = [line.split()[1] for line in shown(self.node).splitlines() if line.startswith("link")]
        told = [f"{device} {line}" for device in devices for line in switches(self.node, device).splitlines()]
        return "\n".join(sorted([*shown(self.node).splitlines(), *told]))


class EndpointMachine(RuleBasedStateMachine):
    """See the module. `living`: by the number of the pod."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.node: Namespace = world.node
        self.living: dict[int, Pod] = {}
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(self.node.entered())
        self.runner = self.stack.enter_context(asyncio.Runner())

    @initialize()
    def start(self) -> None:
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.keeper = EndpointsKeeper(resync_seconds=None)
        await self.keeper.open()
        self.task = asyncio.create_task(self.keeper.run())

    async def _close(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self.keeper.close()

    async def _restart(self, known: set[int]) -> None:
        """Of the endpoints that live, these are handed over at once, and the others later."""
        await self._close()
        await self._open()
        first = Endpoints(each.endpoint for number, each in self.living.items() if number in known)
        await self.keeper.apply(first)
        await self.keeper.apply(Endpoints(each.endpoint for each in self.living.values()))
        await self.keeper.prune()

    @rule(number=st.integers(0, PODS - 1), other=st.integers(0, 2), mtu=st.sampled_from([0, 1400]))
    def add_or_delete(self, number: int, other: int, mtu: int) -> None:
        """One that lives goes; else it comes, under another container id, with the addresses of a pod that is gone."""
        one = self.living.pop(number, None)
        if one is not None:
            assert self.runner.run(one.delete(self.keeper))
            return
        free = [each for each in range(PODS) if each not in {self._owner(pod) for pod in self.living.values()}]
        addresses = self.world.pods[free[other % len(free)]].endpoint.addresses
        place = self.world.pods[number]
        end = replace(place.endpoint, container=f"c{number}-{other}", addresses=addresses, mtu=mtu)
        self.living[number] = Pod(place.place, end)
        self.runner.run(self.living[number].add(self.keeper))

    def _owner(self, one: Pod) -> int:
        return one.endpoint.addresses[0][3] - 1

    @rule(known=st.sets(st.integers(0, PODS - 1)))
    def restart(self, known: set[int]) -> None:
        self.runner.run(self._restart(known))

    @precondition(lambda self: self.living)
    @rule(edit=st.sampled_from(sorted(EDITS)), pick=st.integers(0, PODS - 1))
    def somebody_edits(self, edit: str, pick: int) -> None:
        """Whatever is there then."""
        one = list(self.living.values())[pick % len(self.living)]
        four, six = map(format_address, one.endpoint.addresses)
        for line in EDITS[edit]:
            line = line.replace("DEVICE", one.endpoint.device).replace("10.1.0.2", four).replace("fd00:1::2", six)
            with contextlib.suppress(OSError):
                if line.startswith("!"):
                    self.node.sysctl(*line[1:].split("="))
                else:
                    self.node.exec(f"ip {line}", check=False)

    @precondition(lambda self: self.living)
    @rule(pick=st.integers(0, PODS - 1))
    def somebody_deletes_it_in_the_pod(self, pick: int) -> None:
        one = list(self.living.values())[pick % len(self.living)]
        one.place.exec("ip link delete eth0", check=False)

    @rule()
    def events_are_heard(self) -> None:
        self.runner.run(asyncio.sleep(0))

    @precondition(lambda self: hasattr(self, "keeper"))
    @rule()
    def compare(self) -> None:
        """All that there was to hear has been heard."""
        pods = list(self.living.values())
        try:
            self.runner.run(becomes(self.world.found, wanted(pods)))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.keeper.report}") from None
        self.runner.run(self._is_well(pods))

    async def _is_well(self, pods: list[Pod]) -> None:
        await eventually(lambda: self.keeper.report.in_sync, lambda: str(self.keeper.report))
        for each in pods:
            assert await each.check(self.keeper) == []
        assert len(await self.keeper.read_endpoints()) == len(pods)

    def teardown(self) -> None:
        try:
            if hasattr(self, "keeper"):
                self.compare()
        finally:
            self._clean_up()

    def _clean_up(self) -> None:
        try:
            if hasattr(self, "keeper"):
                self.runner.run(self.keeper.cleanup())
                self.runner.run(self._close())
                assert shown(self.node) == ""
                assert "158" not in self.node.ip("route show table all")
        finally:
            self.stack.close()


# Without shrinking: each try of a failure waits for a state that never comes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
SETTINGS = settings(
    max_examples=8, stateful_step_count=15, deadline=None, phases=PHASES, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
def test_whatever_happens_who_lives_is_wired_and_who_left_has_left_nothing(lab: Lab) -> None:
    world = World(lab)
    run_state_machine_as_test(lambda: EndpointMachine(world), settings=SETTINGS)  # type: ignore[arg-type]

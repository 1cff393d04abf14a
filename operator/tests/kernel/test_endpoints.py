"""Pods' interfaces are made whole, or not at all."""

from netloom.kernel.endpoints.endpoint import Endpoints
from tests.kernel.meshes import eventually
from tests.kernel.netns import Lab
from tests.kernel.wired_pods import endpoints_of, pod


async def test_smoke(lab: Lab) -> None:
    node = lab.namespace("node")
    node.sysctl("net.ipv4.ip_forward", "1")
    node.sysctl("net.ipv6.conf.all.forwarding", "1")
    one, two = pod(lab, 1), pod(lab, 2)
    async with endpoints_of(node) as keeper:
        await keeper.apply(Endpoints())
        print(await one.add(keeper))
        print(await two.add(keeper))
        print(node.state())
        print(one.place.state())
        print(await one.check(keeper))
        print(keeper.report)
        assert one.place.pings("10.1.0.3")
        assert one.place.pings("fd00:1::3")
        print(await keeper.read_endpoints())
        print(await one.delete(keeper))
        await eventually(lambda: "netloom_p" not in node.ip("link") or node.ip("link").count("netloom_p") == 1)
        await keeper.cleanup()
        print(node.state())

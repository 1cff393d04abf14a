"""What an earlier life left in the kernel and nobody explains stays until somebody says that all peers are known."""

import pytest

from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION, VXLAN, Encapsulation
from tests.kernel.conftest import Planes
from tests.kernel.meshes import here, many, mesh, peer
from tests.kernel.netns import Namespace
from tests.kernel.nft import Masquerades, masquerades, masquerading, ours

__all__ = ["masquerades"]


@pytest.mark.parametrize("encapsulations", [(VXLAN,), (NO_ENCAPSULATION,), (NO_ENCAPSULATION, VXLAN)], ids=str)
async def test_peers_that_are_not_told_stay_and_come_back_for_nothing(
    node: Namespace, planes: Planes, encapsulations: tuple[Encapsulation, ...]
) -> None:
    def told(*numbers: int) -> Desired:
        return Desired(
            here(encapsulations=(VXLAN, NO_ENCAPSULATION)),
            [peer(each, f"10.{each}.0.0/24", encapsulations=encapsulations) for each in numbers],
        )

    await (await planes.open()).apply(told(2, 3, 4))
    before = node.owned()
    assert "10.4.0.0/24" in before
    plane = await planes.open(retain_unknown=True)
    desired = told()
    report = await plane.apply(desired)
    assert (report.written, plane.retained > 0, node.owned()) == ({}, True, before)
    for number in (3, 2, 4):
        desired.set_peer(told(number).peers[f"node-{number}"])
        assert (await plane.apply(desired)).written == {}
    assert plane.retained == 0
    desired.remove_peer("node-3")
    await plane.apply(desired)
    assert "10.3.0.0/24" not in node.owned(), "a peer that was told and leaves is no unknown one"


async def test_they_go_once_all_peers_are_known(node: Namespace, planes: Planes) -> None:
    await (await planes.open()).apply(mesh(2, 3))
    plane = await planes.open(retain_unknown=True)
    await plane.apply(mesh(2))
    assert plane.retained == 2
    await plane.prune()
    assert plane.retained == 0
    fresh = node.owned()
    await (await planes.open()).apply(mesh(2))
    assert node.owned() == fresh
    assert "10.3.0.0/24" not in fresh


async def test_a_restart_in_a_whole_world_spares_nothing(node: Namespace, planes: Planes) -> None:
    await (await planes.open()).apply(mesh(2, 3))
    plane = await planes.open(retain_unknown=True)
    desired = mesh(2, 3)
    assert (await plane.apply(desired)).written == {}
    assert plane.retained == 0
    desired.remove_peer("node-3")
    await plane.apply(desired)
    assert "10.3.0.0/24" not in node.owned()


@pytest.mark.parametrize(
    ("claimant", "stays"),
    [
        (peer(9, "10.3.0.0/24"), False),
        (peer(9, "10.3.0.0/16"), False),
        (peer(9, "10.9.0.0/24", "fd00:3::/48"), True),
        (peer(3, "10.9.0.0/24", name="node-9"), False),
        (peer(3, "10.9.0.0/24"), False),
        (peer(9, "10.9.0.0/24"), True),
    ],
    ids=["the CIDR", "a wider one", "that of the other family", "its address", "itself, with another CIDR", "none"],
)
async def test_what_a_peer_claims_is_the_peers(node: Namespace, planes: Planes, claimant: object, stays: bool) -> None:
    await (await planes.open()).apply(mesh(2, 3))
    plane = await planes.open(retain_unknown=True)
    desired = mesh(2)
    await plane.apply(desired)
    assert "10.3.0.0/24" in node.owned()
    desired.set_peer(claimant)  # type: ignore[arg-type]
    await plane.apply(desired)
    assert ("route 10.3.0.0/24 nhid 1852653413" in node.owned()) is stays
    assert "10.2.0.0/24" in node.owned()


async def test_what_this_node_has_itself_is_its_own(node: Namespace, planes: Planes) -> None:
    await (await planes.open()).apply(mesh(2, 3))
    plane = await planes.open(retain_unknown=True)
    await plane.apply(Desired(here("node-1", "192.168.7.1", "10.3.0.0", "fd00:3::"), [peer(2)]))
    assert "route 10.3.0.0/24" not in node.owned()


async def test_comparisons_and_events_do_not_end_it(node: Namespace, planes: Planes) -> None:
    await (await planes.open()).apply(mesh(2, 3))
    plane = await planes.open(retain_unknown=True)
    desired = mesh(2)
    await plane.apply(desired)
    node.ip("route replace 10.3.0.0/24 proto 158 nhid 1852653413 mtu 1300")
    node.ip("route replace 10.3.0.0/24 proto 158 nhid 1852653413")
    node.ip("link set eth0 mtu 1400")
    node.ip("link set eth0 mtu 1500")
    desired.set_peer(peer(4))
    await plane.apply(desired)
    assert "10.3.0.0/24" in node.owned()
    assert plane.retained == 2


async def test_it_costs_no_message_at_any_size(node: Namespace, planes: Planes) -> None:
    await (await planes.open()).apply(many(2000))
    plane = await planes.open(retain_unknown=True)
    assert (await plane.apply(Desired(here()))).written == {}
    assert plane.retained == 2000


async def test_known_cidrs_of_nodes_that_are_not_told_are_not_masqueraded(
    node: Namespace, masquerades: Masquerades
) -> None:
    await (await masquerades.open()).apply(masquerading(peers=(2, 3, 4)))
    before = ours(node)
    masquerade = await masquerades.open(retain_unknown=True)
    desired = masquerading(peers=())
    report = await masquerade.apply(desired)
    assert (report.written, masquerade.retained, ours(node)) == ({}, 6, before)
    for number in (3, 2, 4):
        desired.set_known(f"node-{number}", masquerading(peers=(number,)).known[f"node-{number}"])
        assert (await masquerade.apply(desired)).written == {}
    desired.set_known("node-3", ())
    await masquerade.apply(desired)
    assert ours(node) == before, "whoever has held back, holds back until all are known"
    await masquerade.prune()
    assert masquerade.retained == 0
    assert "10.3.0.0/24" not in ours(node)
    assert "10.2.0.0/24" in ours(node)


async def test_masquerading_after_a_restart_in_a_whole_world_spares_nothing(
    node: Namespace, masquerades: Masquerades
) -> None:
    await (await masquerades.open()).apply(masquerading())
    masquerade = await masquerades.open(retain_unknown=True)
    assert (await masquerade.apply(masquerading())).written == {}
    assert masquerade.retained == 0

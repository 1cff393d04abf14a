"""Peers to rows: claims, ids, and that a mesh changed step by step is the mesh made at once."""

import hashlib
import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from netloom.cidr import Cidr, parse_address
from netloom.kernel.mac import mac_of
from netloom.kernel.mesh.desired import Desired, FurtherAddresses, Peer
from netloom.kernel.mesh.encapsulation import GENEVE, NO_ENCAPSULATION, VXLAN
from netloom.kernel.mesh.fib import FibResult
from netloom.kernel.mesh.lifelines import Device, NodeNetwork, NodeRoute
from netloom.kernel.mesh.mesh import Mesh
from netloom.kernel.mesh.peer_claims import AddressConflict
from netloom.kernel.mesh.rows import DeviceState, SeenNexthop, SeenRoute
from netloom.kernel.ownership import NEXTHOP_IDS, ROUTE_PROTOCOL
from tests.kernel.meshes import peer

CARRIERS = DeviceState({VXLAN: 7}, vni=1, ipv6=True)


def mesh_of(*peers: Peer) -> Mesh:
    mesh = Mesh()
    mesh.set_device_state(CARRIERS)
    for one in peers:
        mesh.set_peers([one])
    return mesh


def wanted(mesh: Mesh) -> tuple[dict[object, object], ...]:
    """What the mesh wants in the kernel, without the choice of ids."""
    gateways = {key: value.gateway for key, value in mesh.nexthops.desired.items()}
    assert len(set(gateways.values())) == len(gateways)
    return (
        {value.gateway: value for value in mesh.nexthops.desired.values()},
        dict(mesh.neighbours.desired),
        {key: (gateways[content.nexthop], content.mtu) for key, content in mesh.routes.desired.items()},
    )


def test_the_older_has_what_both_claim_in_any_order() -> None:
    old, young = peer(2, "10.9.0.0/24", since="2026-01"), peer(3, "10.9.0.0/24", "10.3.0.0/24", since="2026-02")
    for order in ((old, young), (young, old)):
        mesh = mesh_of(*order)
        assert mesh.claims.conflicts() == [AddressConflict("10.9.0.0/24", "node-2", "node-3")]
        assert mesh.peer_of("route", Cidr.parse("10.9.0.0/24")) == "node-2"
        assert Cidr.parse("10.3.0.0/24") in mesh.routes.desired


def test_a_held_peer_makes_way_for_a_wider_cidr_of_one_that_lives_and_for_none_that_is_held() -> None:
    held = msgspec.structs.replace(peer(2, "10.9.0.0/24", "10.2.0.0/24"), held=True)
    wide, prefix = peer(3, "10.9.0.0/16"), Cidr.parse("10.9.0.0/24")
    mesh = mesh_of(held, peer(4))
    assert prefix in mesh.routes.desired
    mesh.set_peers([wide])
    assert prefix not in mesh.routes.desired
    assert Cidr.parse("10.2.0.0/24") in mesh.routes.desired
    mesh.set_peers([msgspec.structs.replace(wide, held=True)])
    assert prefix in mesh.routes.desired
    mesh.set_peers([wide])
    mesh.remove_peer("node-3")
    assert prefix in mesh.routes.desired
    mesh.set_peers([wide])
    mesh.set_peers([msgspec.structs.replace(held, held=False)])
    assert prefix in mesh.routes.desired, "two that live settle it by the longer prefix"


def test_who_has_no_address_of_its_own_has_nothing() -> None:
    twin = msgspec.structs.replace(peer(3, since="2026-02"), underlay=peer(2).underlay)
    mesh = mesh_of(peer(2, since="2026-01"), twin)
    assert [(c.claim, c.holder, c.peer) for c in mesh.claims.conflicts()] == [("192.168.7.2", "node-2", "node-3")]
    assert wanted(mesh) == wanted(mesh_of(peer(2)))
    mesh.remove_peer("node-2")
    assert mesh.claims.conflicts() == []
    assert wanted(mesh) == wanted(mesh_of(twin))


def colliding_names() -> tuple[str, str]:
    """Two names whose nexthop ids are the same."""
    seen: dict[int, str] = {}
    for number in range(100_000):
        name = hashlib.sha256(str(number).encode()).hexdigest()[:12]
        first = seen.setdefault(zlib.crc32(name.encode(), 4) % len(NEXTHOP_IDS), name)
        if first != name:
            return first, name
    raise AssertionError("no collision among 100,000 names")


def test_two_names_with_one_hash_get_two_ids() -> None:
    one, other = colliding_names()
    mesh = mesh_of(peer(2, "10.2.0.0/24", name=one), peer(3, "10.3.0.0/24", name=other))
    ids = sorted(mesh.nexthops.desired)
    assert len(ids) == 2
    assert ids[1] == ids[0] + 1


def test_ids_survive_a_restart_whatever_the_order_of_peers() -> None:
    one, other = colliding_names()
    peers = [peer(2, "10.2.0.0/24", name=one), peer(3, "10.3.0.0/24", name=other)]
    before = mesh_of(*peers)
    kernel = [SeenNexthop(key, value, ROUTE_PROTOCOL) for key, value in before.nexthops.desired.items()]
    routes = [SeenRoute(key, identity, ROUTE_PROTOCOL) for key, identity in before.routes.desired.items()]
    for order in (peers, peers[::-1]):
        restarted = Mesh()
        restarted.seen.load(kernel, dict(before.neighbours.desired), routes)
        restarted.set_device_state(CARRIERS)
        restarted.neighbours.load(dict(before.neighbours.desired))
        restarted.replace_peers(Desired(None, order))
        assert restarted.pending() == []


def test_a_foreign_nexthop_keeps_its_id() -> None:
    own = next(iter(mesh_of(peer(2, "10.2.0.0/24")).nexthops.desired))
    mesh = Mesh()
    value = next(iter(mesh_of(peer(5, "10.5.0.0/24")).nexthops.desired.values()))
    mesh.seen.load([SeenNexthop(own, value, 42)], {}, [])
    mesh.set_device_state(CARRIERS)
    mesh.set_peers([peer(2, "10.2.0.0/24")])
    assert list(mesh.nexthops.desired) == [own + 1]
    assert mesh.nexthops.kernel == {}


def test_a_peer_whose_nexthop_was_lost_makes_way_for_somebody_elses_of_its_id() -> None:
    mesh = mesh_of(peer(2, "10.2.0.0/24", "fd00:2::/64"), peer(3, "10.3.0.0/24"))
    before = dict(mesh.nexthops.desired)
    for table in (mesh.nexthops, mesh.neighbours, mesh.routes):
        table.assume([*table.updates()])  # type: ignore[attr-defined]
    lost = mesh.routes.desired[Cidr.parse("10.2.0.0/24")].nexthop
    mesh.seen.lost_nexthops({lost})
    mesh.seen.saw_nexthop(SeenNexthop(lost, before[lost], 42))
    mesh.make_way()
    assert lost not in mesh.nexthops.desired
    assert set(mesh.nexthops.desired.values()) == set(before.values())
    assert mesh.routes.desired[Cidr.parse("10.2.0.0/24")].nexthop == lost + 1
    assert mesh.nexthops.pending == {lost + 1}
    assert mesh.peer_of("nexthop", lost + 1) == "node-2"


def test_a_lost_nexthop_takes_its_routes_and_no_others() -> None:
    mesh = mesh_of(peer(2, "10.2.0.0/24", "10.22.0.0/24"), peer(3, "10.3.0.0/24"))
    for table in (mesh.nexthops, mesh.neighbours, mesh.routes):
        table.assume([*table.updates()])  # type: ignore[attr-defined]
    assert mesh.pending() == []
    lost = mesh.routes.desired[Cidr.parse("10.2.0.0/24")].nexthop
    mesh.seen.lost_nexthops({lost})
    assert mesh.nexthops.pending == {lost}
    assert mesh.routes.pending == {Cidr.parse("10.2.0.0/24"), Cidr.parse("10.22.0.0/24")}


def test_the_first_way_that_is_possible_is_taken_and_the_nexthop_keeps_its_id() -> None:
    one = peer(2, "10.2.0.0/24", "fd00:2::/64", encapsulations=(NO_ENCAPSULATION, GENEVE, VXLAN), underlay6="fd07::2")
    mesh = mesh_of(one)
    four, six = sorted(mesh.nexthops.desired, key=lambda key: len(mesh.nexthops.desired[key].gateway))
    assert {each.ifindex for each in mesh.nexthops.desired.values()} == {7}, "VXLAN has the only device"
    mesh.set_device_state(DeviceState({VXLAN: 7, GENEVE: 8}, ipv6=True))
    assert {each.ifindex for each in mesh.nexthops.desired.values()} == {8}
    assert {ifindex for ifindex, _ in mesh.neighbours.desired} == {8}
    mesh.fib.answered_all([(one.underlay, FibResult(3, direct=True))])
    mesh.reached(mesh.fib.take_changed())
    assert (mesh.nexthops.desired[four].ifindex, mesh.nexthops.desired[four].remote) == (3, b"")
    assert mesh.nexthops.desired[six].ifindex == 8, "each family for itself"
    mesh.fib.answered_all([(one.underlay6, FibResult(3, direct=True))])
    mesh.reached(mesh.fib.take_changed())
    assert mesh.neighbours.desired == {}
    mesh.fib.link_changed(3, running=False)
    mesh.reached(mesh.fib.take_changed())
    assert {each.ifindex for each in mesh.nexthops.desired.values()} == {8}
    assert set(mesh.nexthops.desired) == {four, six}


def test_who_can_only_be_reached_natively_and_is_not_is_stranded() -> None:
    mesh = mesh_of(peer(2, encapsulations=(NO_ENCAPSULATION,), underlay6="fd07::2"))
    assert mesh.unreachable == {"node-2": (4, 6)}
    mesh.fib.answered_all([(parse_address("192.168.7.2"), FibResult(3, direct=True))])
    mesh.reached(mesh.fib.take_changed())
    assert mesh.unreachable == {"node-2": (6,)}, "its IPv6 CIDR has no way yet"
    mesh.fib.answered_all([(parse_address("fd07::2"), FibResult(3, direct=True))])
    mesh.reached(mesh.fib.take_changed())
    assert mesh.unreachable == {}
    mesh.set_peers([peer(2, encapsulations=())])
    assert mesh.unreachable == {}
    assert mesh.pending() == [], "nothing is to be done for a peer without a way"


TEXTS = ("10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "10.2.0.0/23", "fd00:1::/64", "fd00:2::/64")
CIDRS = [Cidr.parse(text) for text in TEXTS]
UNDERLAYS = [parse_address(f"192.168.7.{n}") for n in range(2, 5)] + [parse_address("10.2.0.9")]
UNDERLAYS6 = [parse_address(f"fd07::{n}") for n in range(2, 6)]
peers = st.builds(
    Peer,
    name=st.sampled_from(["a", "b", "c", "d"]),
    underlay=st.sampled_from(UNDERLAYS),
    mac=st.sampled_from([mac_of(name) for name in "abcd"]),
    cidrs=st.lists(st.sampled_from(CIDRS), unique=True, max_size=4).map(tuple),
    since=st.sampled_from(["", "2026-01", "2026-02"]),
    encapsulations=st.lists(st.sampled_from([VXLAN, GENEVE, NO_ENCAPSULATION]), unique=True).map(tuple),
    underlay6=st.sampled_from([b"", *UNDERLAYS6]),
    held=st.booleans(),
    speaks=st.booleans(),
)
further = st.builds(
    FurtherAddresses,
    addresses=st.lists(st.sampled_from([*UNDERLAYS, parse_address("10.3.0.7")]), unique=True).map(tuple),
    since=st.sampled_from(["", "2026-01", "2026-02"]),
    held=st.booleans(),
    speaks=st.booleans(),
)
ROUTES = [
    NodeRoute(Cidr.parse(destination), ((3, parse_address(gateway) if gateway else b""),), connected=not gateway)
    for destination, gateway in (
        ("0.0.0.0/0", "10.1.0.1"),
        ("10.2.0.0/24", ""),
        ("10.2.0.8/29", ""),
        ("10.0.0.0/14", ""),
        ("::/0", "fd00:2::1"),
        ("fd00:1::/32", ""),
    )
]
device_state = st.builds(
    DeviceState,
    tunnels=st.dictionaries(st.sampled_from([VXLAN, GENEVE]), st.sampled_from([7, 8])),
    vni=st.integers(1, 2),
    ipv6=st.booleans(),
    native_mtu=st.sampled_from([0, 1400]),
)
fib_lookups = st.builds(FibResult, outgoing=st.sampled_from([3, 4]), direct=st.booleans())


class MeshMachine(RuleBasedStateMachine):
    """Whatever came before, the mesh wants what a fresh one with the same peers wants, and holds no row for nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.mesh = Mesh()
        self.peers: dict[str, Peer] = {}
        self.device_state = DeviceState()
        self.fib_lookups: dict[bytes, FibResult] = {}
        self.stopped: set[int] = set()
        self.around = NodeNetwork()
        self.further: dict[str, FurtherAddresses] = {}

    @rule(routes=st.sets(st.sampled_from(ROUTES), max_size=2))
    def look_around(self, routes: set[NodeRoute]) -> None:
        self.around = NodeNetwork({3: Device("eth0")}, routes)
        self.mesh.look_around(self.around)

    @rule(name=st.sampled_from(["a", "b", "e"]), further=st.none() | further)
    def set_further(self, name: str, further: FurtherAddresses | None) -> None:
        self.mesh.set_further(name, further)
        self.further.pop(name, None)
        if further is not None:
            self.further[name] = further

    @rule(one=peers)
    def set_peer(self, one: Peer) -> None:
        self.mesh.set_peers([one])
        self.peers[one.name] = one

    @rule(name=st.sampled_from(["a", "b", "c", "d"]))
    def remove_peer(self, name: str) -> None:
        self.mesh.remove_peer(name)
        self.peers.pop(name, None)

    @rule(device_state=device_state)
    def set_device_state(self, device_state: DeviceState) -> None:
        self.mesh.set_device_state(device_state)
        self.device_state = device_state

    @rule(
        some=st.lists(peers, unique_by=lambda one: one.name),
        others=st.dictionaries(st.sampled_from(["a", "b", "e"]), further, max_size=2),
    )
    def replace_peers(self, some: list[Peer], others: dict[str, FurtherAddresses]) -> None:
        self.further = others
        desired = Desired(None, some)
        for name, further in self.further.items():
            desired.set_further(name, further)
        self.mesh.replace_peers(desired)
        self.peers = {one.name: one for one in some}

    @rule(address=st.sampled_from(UNDERLAYS + UNDERLAYS6), result=fib_lookups)
    def the_way_changes(self, address: bytes, result: FibResult) -> None:
        self.fib_lookups[address] = result
        self.mesh.fib.route_changed(address, len(address) * 8)

    @rule(ifindex=st.sampled_from([3, 4]), running=st.booleans())
    def a_link_changes(self, ifindex: int, running: bool) -> None:
        self.mesh.fib.link_changed(ifindex, running=running)
        (self.stopped.discard if running else self.stopped.add)(ifindex)

    @rule()
    def write(self) -> None:
        for table in (self.mesh.nexthops, self.mesh.neighbours, self.mesh.routes):
            table.assume([*table.updates(), *table.deletions()])  # type: ignore[attr-defined]
        assert self.mesh.pending() == []

    def look_up(self, mesh: Mesh) -> None:
        for address in list(mesh.fib.due):
            mesh.fib.answered_all([(address, self.fib_lookups.get(address, FibResult()))])
        mesh.reached(mesh.fib.take_changed())

    @invariant()
    def wants_what_a_fresh_one_wants(self) -> None:
        fresh = Mesh()
        fresh.set_device_state(self.device_state)
        fresh.look_around(self.around)
        for name, further in self.further.items():
            fresh.set_further(name, further)
        for one in sorted(self.peers.values(), key=lambda one: one.name, reverse=True):
            fresh.set_peers([one])
        fresh.fib.set_stopped(self.stopped)
        for mesh in (self.mesh, fresh):
            self.look_up(mesh)
        assert wanted(self.mesh) == wanted(fresh)
        assert self.mesh.claims.conflicts() == fresh.claims.conflicts()
        assert self.mesh.withheld.routes() == fresh.withheld.routes()
        assert self.mesh.unreachable == fresh.unreachable
        assert self.mesh.fib.outgoing == fresh.fib.outgoing
        assert self.mesh.natives == fresh.natives

    @invariant()
    def every_route_has_its_nexthop_and_every_tunnel_nexthop_its_neighbour(self) -> None:
        mesh = self.mesh
        assert {content.nexthop for content in mesh.routes.desired.values()} <= set(mesh.nexthops.desired)
        gateways = {(value.ifindex, value.gateway) for value in mesh.nexthops.desired.values() if value.remote}
        assert gateways == set(mesh.neighbours.desired)


TestMesh = pytest.mark.slow(MeshMachine.TestCase)
TestMesh.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


@given(st.lists(peers, unique_by=lambda one: one.name), st.randoms())
def test_the_order_of_arrival_plays_no_part(some: list[Peer], random: object) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert wanted(mesh_of(*some)) == wanted(mesh_of(*shuffled))
    assert mesh_of(*some).claims.conflicts() == mesh_of(*shuffled).claims.conflicts()

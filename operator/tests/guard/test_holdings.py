"""The index against a scan of everything, whatever is put in, replaced and taken out."""

from ipaddress import IPv4Network, IPv6Network, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from netloom.cidr import Cidr
from netloom.cidr.interval_set import FrozenIntervalSet
from netloom.guard.holdings import Holders, Holdings, cidrs_of

Network = IPv4Network | IPv6Network


def _network(family: int, bits: int, length: int) -> Network:
    """One of the few networks of sixteen addresses, so that they meet."""
    if family == 4:
        return ip_network((0x0A00_0000 | bits, 28 + length), strict=False)
    return ip_network((0xFD << 120 | bits, 124 + length), strict=False)


NETWORKS = st.builds(_network, st.sampled_from([4, 4, 4, 6]), st.integers(0, 15), st.integers(0, 4))
TEXTS = NETWORKS.map(str) | st.sampled_from(["", "garbage", "10.0.0.0/33", "10.0.0.1/24", "::ffff:10.0.0.0/120"])
OWNERS = st.sampled_from(["a", "b", "c", "d", "e", "f"])
POOLS = st.sampled_from(["blue", "green", ""])


def cidr_of(network: Network) -> Cidr:
    return Cidr.of(network.network_address.packed, network.prefixlen)


def networks_of(texts: list[str]) -> list[Network]:
    found = []
    for text in texts:
        try:
            network = ip_network(text, strict=False)
        except ValueError:
            continue
        if "ffff" not in text:
            found.append(network)
    return found


def covered(network: Network, by: list[Network]) -> bool:
    """Address by address."""
    return all(any(address in other for other in by) for address in network)


def inside(one: Network, other: Network) -> bool:
    return one.version == other.version and one.subnet_of(other)  # type: ignore[arg-type]


@given(NETWORKS, st.lists(NETWORKS, max_size=6))
def test_ranges_cover_what_their_cidrs_cover_together(asked: Network, cidrs: list[Network]) -> None:
    assert FrozenIntervalSet(map(cidr_of, cidrs)).covers(cidr_of(asked)) == covered(asked, cidrs)


@given(st.lists(NETWORKS, max_size=9), st.lists(NETWORKS, max_size=9), NETWORKS, st.booleans())
def test_what_is_outside_is_found_at_every_edge(
    held: list[Network], kept: list[Network], asked: Network, within: bool
) -> None:
    holdings = Holdings()
    for number, network in enumerate(held):
        holdings.put(f"node-{number}", cidrs=[str(network)])
    wanted = [
        f"node-{number}"
        for number, network in enumerate(held)
        if not covered(network, kept) and (inside(network, asked) if within else network.overlaps(asked))
    ]
    found = holdings.outside(FrozenIntervalSet(map(cidr_of, kept)), cidr_of(asked), within=within)
    assert found.count == len(wanted)
    assert set(found.names) <= set(wanted)


class Scan(RuleBasedStateMachine):
    """What is held is kept as lists besides, and every question is answered from them, too."""

    def __init__(self) -> None:
        super().__init__()
        self.holdings = Holdings()
        self.known: dict[str, tuple[str, list[str], list[tuple[str, list[str]]], bool]] = {}

    @rule(
        owner=OWNERS,
        mode=st.sampled_from(["", "cluster-pool", "kubernetes"]),
        cidrs=st.lists(TEXTS, max_size=3),
        pools=st.lists(st.tuples(POOLS, st.lists(TEXTS, max_size=3)), max_size=3),
        more=st.booleans(),
    )
    def put(self, owner: str, mode: str, cidrs: list[str], pools: list[tuple[str, list[str]]], more: bool) -> None:
        self.holdings.put(owner, mode, cidrs, pools, more=more)
        self.known.pop(owner, None)
        if cidrs or more or any(texts for _, texts in pools):
            self.known[owner] = mode, cidrs, pools, more

    @rule(owner=OWNERS)
    def remove(self, owner: str) -> None:
        self.holdings.remove(owner)
        self.known.pop(owner, None)

    @invariant()
    def counts(self) -> None:
        assert self.holdings.count == len(self.known)
        assert self.holdings.names == tuple(sorted(self.known)[:3])
        assert self.holdings.modes == {mode for mode, *_ in self.known.values()}
        assert self.holdings.holders() == Holders(len(self.known), tuple(sorted(self.known)[:3]))
        for pool in ("blue", "green", "nobody's"):
            owners = sorted(
                owner
                for owner, (_, _, pools, _) in self.known.items()
                if any(name == pool and texts for name, texts in pools)
            )
            assert self.holdings.holders(pool) == Holders(len(owners), tuple(owners[:3]))
        for family in (4, 6):
            held = any(network.version == family for owner in self.known for network in self.held(owner, None))
            assert self.holdings.of_family(family) == held  # type: ignore[arg-type]

    @rule(asked=NETWORKS, pool=st.sampled_from([None, "blue", "green"]))
    def within(self, asked: Network, pool: str | None) -> None:
        cidr = cidr_of(asked)
        everything = self.holdings.outside(FrozenIntervalSet(), cidr, pool, within=True)
        self.same(everything, lambda network: inside(network, asked), pool)
        self.same(self.holdings.overlapping(cidr, pool), lambda network: network.overlaps(asked), pool)
        without = self.holdings.overlapping(cidr, pool, but="a")
        self.same(without, lambda network: network.overlaps(asked), pool, but="a")

    @rule(asked=NETWORKS)
    def counted(self, asked: Network) -> None:
        count, first = self.holdings.blocks_inside(cidr_of(asked))
        held = [(cidr_of(network), owner) for owner in self.known for network in self.held(owner, None)]
        found = sorted({(cidr, owner) for cidr, owner in held if cidr_of(asked).contains(cidr)})
        assert (count, list(first)) == (len(found), found[:3])

    @rule(
        kept=st.lists(NETWORKS, max_size=4),
        asked=NETWORKS,
        pool=st.sampled_from([None, "blue", "green"]),
    )
    def outside(self, kept: list[Network], asked: Network, pool: str | None) -> None:
        ranges = FrozenIntervalSet(map(cidr_of, kept))
        self.same(
            self.holdings.outside(ranges, cidr_of(asked), pool),
            lambda network: not covered(network, kept) and network.overlaps(asked),
            pool,
        )
        self.same(
            self.holdings.outside(ranges, cidr_of(asked), pool, within=True),
            lambda network: not covered(network, kept) and inside(network, asked),
            pool,
        )
        self.same(
            self.holdings.outside_family(ranges, 4),
            lambda network: not covered(network, kept) and network.version == 4,
            None,
        )

    def same(self, found: Holders, asked, pool: str | None, but: str = "") -> None:  # type: ignore[no-untyped-def]
        owners = [owner for owner in self.known if owner != but and any(map(asked, self.held(owner, pool)))]
        assert found.count == len(owners)
        assert len(found.names) == min(3, len(owners))
        assert set(found.names) <= set(owners)

    def held(self, owner: str, pool: str | None) -> list[Network]:
        _, cidrs, pools, _ = self.known[owner]
        if pool is not None:
            return networks_of([text for name, texts in pools for text in texts if name == pool])
        return networks_of(cidrs + [text for _, texts in pools for text in texts])


Scan.TestCase.settings = settings(stateful_step_count=20, deadline=None)
TestScan = Scan.TestCase


def test_texts_of_one_family() -> None:
    texts = ["10.0.0.0/8", "fd00::/8", "neither"]
    assert [str(cidr) for cidr in cidrs_of(texts)] == ["10.0.0.0/8", "fd00::/8"]
    assert [str(cidr) for cidr in cidrs_of(texts, 6)] == ["fd00::/8"]

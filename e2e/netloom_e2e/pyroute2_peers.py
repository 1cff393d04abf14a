"""Peers into the kernel the way that a user of Python would find first: `IPRoute`, one call after the other.

pyroute2 has no nexthop objects and no `encap ip`, so the mesh is flannel's: per peer an FDB entry, a neighbour and a
route. A process of its own; prints what its calls took as one line of JSON.
"""

import argparse
import json
import time

from pyroute2 import IPRoute

from netloom_e2e import peers

_PERMANENT = 0x80


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Peers into the kernel by pyroute2.")
    parser.add_argument("--peers", type=int, required=True)
    count = parser.parse_args().peers
    wanted = peers.peers(count)
    with IPRoute() as ipr:
        (device,) = ipr.link_lookup(ifname=peers.CLASSIC)
        began, cpu = time.perf_counter(), time.process_time()
        for each in wanted:
            ipr.fdb("append", ifindex=device, lladdr=each.mac, dst=each.underlay)
            ipr.neigh("replace", dst=each.underlay, lladdr=each.mac, ifindex=device, state=_PERMANENT)
            ipr.route("replace", dst=each.cidr, gateway=each.underlay, oif=device, flags=["onlink"])
        used = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps(used))


if __name__ == "__main__":
    main()

"""Results of ADD, against what the text of each version of the specification says of them."""

import json
from typing import Any

import pytest

from netloom.cidr import parse_address
from netloom.kernel.endpoints.endpoint import Endpoint, Wired
from netloom_reconcilers.node.endpoints.errors import SUPPORTED
from netloom_reconcilers.node.endpoints.results import Dns, Interface, Ip, Result, Route, encode, made

ENDPOINT = Endpoint(
    container="4f2a",
    interface="eth0",
    addresses=(parse_address("10.42.1.2"), parse_address("fd00:42:0:1::2")),
    netns="/run/netns/x",
)
WIRED = Wired(
    device="netloom_pabcdef", host_mac=bytes.fromhex("020000000001"), pod_mac=bytes.fromhex("020000000002"), mtu=1450
)

# What may be where, and what has to be, by SPEC.md of the tags spec-v0.3.1, v0.4.0, v1.0.0 and of 1.1.0.
INTERFACE = {"name": str, "mac": str, "sandbox": str}
IP = {"address": str, "gateway": str, "interface": int}
ROUTE = {"dst": str, "gw": str}
DNS = {"nameservers": list, "domain": str, "search": list, "options": list}
NEW_INTERFACE = {**INTERFACE, "mtu": int, "socketPath": str, "pciID": str}
NEW_ROUTE = {**ROUTE, "mtu": int, "advmss": int, "priority": int, "table": int, "scope": int}
KEYS: dict[str, dict[str, dict[str, type]]] = {
    "0.3.1": {"interfaces": INTERFACE, "ips": {**IP, "version": str}, "routes": ROUTE},
    "0.4.0": {"interfaces": INTERFACE, "ips": {**IP, "version": str}, "routes": ROUTE},
    "1.0.0": {"interfaces": INTERFACE, "ips": IP, "routes": ROUTE},
    "1.1.0": {"interfaces": NEW_INTERFACE, "ips": IP, "routes": NEW_ROUTE},
}
NEEDED = {
    "interfaces": {"name"},
    "ips": {"address"},
    "routes": {"dst"},
}


def check(said: dict[str, Any], version: str) -> None:
    """That it is a result of that version."""
    assert said["cniVersion"] == version
    assert said.keys() == {"cniVersion", "interfaces", "ips", "routes", "dns"}
    for field, keys in KEYS[version].items():
        for each in said[field]:
            assert NEEDED[field] <= each.keys() <= keys.keys(), (field, each)
            assert all(type(value) is keys[key] for key, value in each.items()), (field, each)
            if field == "ips":
                assert 0 <= each["interface"] < len(said["interfaces"])
                assert ("version" in each) is (version in ("0.3.1", "0.4.0"))
    assert said["dns"].keys() <= DNS.keys()


@pytest.mark.parametrize("version", SUPPORTED)
def test_each_version_is_as_its_text_has_it(version: str) -> None:
    before = Result(
        interfaces=(Interface("lo", "00:00:00:00:00:00", 65536, "/run/netns/x", "/run/s", "0000:00:1f.6"),),
        routes=(Route("192.0.2.0/24", "192.0.2.1", 1400, 1360, 7, 254, 0),),
    )
    for result in (made(ENDPOINT, WIRED, Dns()), made(ENDPOINT, WIRED, Dns(("1.1.1.1",), "d", ("s",), ("o",)), before)):
        check(json.loads(encode(result, version)), version)


def test_the_newest_in_full() -> None:
    assert json.loads(encode(made(ENDPOINT, WIRED, Dns()), "1.1.0")) == {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "netloom_pabcdef", "mac": "02:00:00:00:00:01", "mtu": 1450},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1450, "sandbox": "/run/netns/x"},
        ],
        "ips": [
            {"address": "10.42.1.2/32", "gateway": "169.254.1.1", "interface": 1},
            {"address": "fd00:42:0:1::2/128", "gateway": "fe80::1", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
        "dns": {},
    }


def test_the_oldest_says_which_family() -> None:
    said = json.loads(encode(made(ENDPOINT, WIRED, Dns()), "0.3.1"))
    assert [each["version"] for each in said["ips"]] == ["4", "6"]
    assert said["interfaces"][0] == {"name": "netloom_pabcdef", "mac": "02:00:00:00:00:01"}


def test_what_was_there_before_stays_and_indexes_point_where_they_should() -> None:
    before = Result(
        interfaces=(Interface("lo", sandbox="/run/netns/x"), Interface("dummy0")),
        routes=(Route("192.0.2.0/24"),),
        dns=Dns(domain="d"),
    )
    said = made(ENDPOINT, WIRED, Dns(), before)
    assert [each.name for each in said.interfaces or ()] == ["lo", "dummy0", "netloom_pabcdef", "eth0"]
    assert [each.interface for each in said.ips or ()] == [3, 3]
    assert [each.dst for each in said.routes or ()] == ["192.0.2.0/24", "0.0.0.0/0", "::/0"]
    assert said.dns == Dns(domain="d")
    assert made(ENDPOINT, WIRED, Dns(domain="mine"), before).dns == Dns(domain="mine")


def test_one_family_has_one_route() -> None:
    endpoint = Endpoint(container="c", interface="eth0", addresses=(parse_address("fd00::2"),), netns="/n")
    said = made(endpoint, WIRED, Dns())
    assert said.routes == (Route("::/0", "fe80::1"),)
    assert said.ips == (Ip("fd00::2/128", "fe80::1", 1),)

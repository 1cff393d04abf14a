"""In which words a Node is named whose address is no other machine's, and whose fault that is here."""

from pathlib import Path

import pytest

from netloom.cidr import parse_address
from netloom.kernel.mesh.keeper import MeshReport
from netloom.kernel.mesh.underlay import Astray, Why
from tests.test_tunnels import Setting

END = "Let its kubelet report the machine's own address (--node-ip), or delete the Node if its machine is gone."
SAID: dict[Why, str] = {
    "pod": "which leads to this node's own pods: no machine has it. dev7 does not count as a device between nodes, and "
    "neither does its MTU. ",
    "tunnel": "which leads to other nodes' pods: no machine has it. ",
    "indoors": "which has no address that this node is known by: only containers or guests of this machine seem to be "
    "there. dev7 does not count as a device between nodes, and neither does its MTU. If a node is, name dev7 in "
    "spec.devices of NetloomNetwork default, beside the devices that lead to the other nodes. If none is: ",
}
SENTENCES: dict[Why, str] = {
    why: f"NetloomNode b: spec.addresses has 10.1.0.7, and packets to it leave by dev7, {said}{END}"
    for why, said in SAID.items()
} | {
    "here": "NetloomNode b: spec.addresses has 10.1.0.7, which this machine has itself, on dev7: nothing that is sent "
    f"there leaves it. {END}"
}


@pytest.mark.parametrize("why", SENTENCES)
def test_what_is_said(tmp_path: Path, why: Why) -> None:
    """An error where the way ends in this machine; what only another's object lacks is a warning."""
    tunnels = Setting(tmp_path).tunnels
    report = MeshReport(astray=(Astray("dev7", why, (parse_address("10.1.0.7"),), ("b",)),))
    errors, warnings = tunnels.errors(report), tunnels.warnings(report)
    said, other = (errors, warnings) if why in ("pod", "here") else (warnings, errors)
    assert SENTENCES[why] in said
    assert not any("10.1.0.7" in sentence for sentence in other)


def test_many_are_counted(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(1, 6)]
    addresses = tuple(parse_address(f"10.1.0.{number}") for number in range(1, 6))
    (said,) = [
        sentence
        for sentence in Setting(tmp_path).tunnels.errors(
            MeshReport(astray=(Astray("cni0", "pod", addresses, tuple(names)),))
        )
        if "n1" in sentence
    ]
    assert "NetloomNode n3: spec.addresses has 10.1.0.3; and so have 2 more, and packets" in said

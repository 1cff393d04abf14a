"""Definitions that know less than this program are told, and those of this tree are none."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from netloom.roles.definitions import compare

CRDS = Path(__file__).resolve().parents[3] / "crds"


@pytest.fixture
def served() -> dict[str, Any]:
    """Schemas as the API server names them."""
    found = {}
    for file in CRDS.glob("*.yaml"):
        spec = yaml.safe_load(file.read_text())["spec"]
        found[f"dev.netloom.v1alpha1.{spec['names']['kind']}"] = spec["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def test_those_of_this_tree_know_all(served: dict[str, Any]) -> None:
    assert list(compare(served)) == []


@pytest.mark.parametrize(
    ("kind", "place", "said"),
    [
        ("NetloomNetwork", ("spec", "forwarding"), "spec.forwarding"),
        ("NetloomNetwork", ("status", "ipam", "inUse"), "status.ipam.inUse"),
        ("NetloomNode", ("status", "connectedCIDRs"), "status.connectedCIDRs"),
        ("NetloomNode", ("spec", "ipam", "pools", "allocated", "items", "cidrs"), "spec.ipam.pools.allocated.cidrs"),
    ],
)
def test_a_field_that_is_not_known_is_named(
    served: dict[str, Any], kind: str, place: tuple[str, ...], said: str
) -> None:
    *path, last = place
    at = served[f"dev.netloom.v1alpha1.{kind}"]
    for key in path:
        at = at["items"] if key == "items" else at["properties"][key]
    del at["properties"][last]
    ((name, sentence),) = compare(served)
    assert name == f"{kind.lower()}s.netloom.dev"
    assert f"is older than this program: it does not know {said}, so the API server drops that. Apply crds/" in sentence


def test_a_kind_that_is_not_there_is_others_to_tell(served: dict[str, Any]) -> None:
    assert list(compare({})) == []

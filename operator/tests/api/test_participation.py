"""Which Nodes are Netloom's."""

import msgspec
import pytest

from netloom.api.core import Node
from netloom.api.meta import LabelSelector, ObjectMeta
from netloom.api.participation import chosen, takes_part, why_not
from netloom.api.v1alpha1 import NetloomNetwork
from netloom.api.validation import validate_network


def node(**labels: str) -> Node:
    return Node(metadata=ObjectMeta(name="vk", labels={key.replace("_", "/"): value for key, value in labels.items()}))


def network(**selector: object) -> NetloomNetwork:
    content = {
        "metadata": {"name": "default"},
        "spec": {"ipam": {"clusterPool": {"ipv4PodCIDRList": ["10.0.0.0/16"]}}, "nodeSelector": selector},
    }
    return msgspec.convert(content, NetloomNetwork)


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        ({}, True),
        ({"netloom.dev_ignore": "true"}, False),
        ({"netloom.dev_ignore": ""}, False),
        ({"netloom.dev_ignore": "no"}, False),
        ({"netloom.dev_ignore": "false"}, True),
        ({"ignore": "true"}, True),
    ],
)
def test_a_label_takes_a_node_out(labels: dict[str, str], part: bool) -> None:
    assert takes_part(node(**labels), None) is part
    assert takes_part(node(**labels), network()) is part


@pytest.mark.parametrize(
    ("selector", "labels", "part"),
    [
        ({}, {}, True),
        ({"matchLabels": {"role": "worker"}}, {"role": "worker"}, True),
        ({"matchLabels": {"role": "worker"}}, {"role": "edge"}, False),
        ({"matchLabels": {"role": "worker"}}, {}, False),
        ({"matchLabels": {"role": ""}}, {}, False),
        ({"matchLabels": {"role": "worker", "zone": "a"}}, {"role": "worker", "zone": "b"}, False),
        ({"matchExpressions": [{"key": "role", "operator": "In", "values": ["a", "b"]}]}, {"role": "b"}, True),
        ({"matchExpressions": [{"key": "role", "operator": "In", "values": ["a", "b"]}]}, {}, False),
        ({"matchExpressions": [{"key": "role", "operator": "NotIn", "values": ["a", "b"]}]}, {"role": "b"}, False),
        ({"matchExpressions": [{"key": "role", "operator": "NotIn", "values": ["a", "b"]}]}, {}, True),
        ({"matchExpressions": [{"key": "role", "operator": "Exists"}]}, {"role": ""}, True),
        ({"matchExpressions": [{"key": "role", "operator": "Exists"}]}, {}, False),
        ({"matchExpressions": [{"key": "role", "operator": "DoesNotExist"}]}, {"role": ""}, False),
        ({"matchExpressions": [{"key": "role", "operator": "DoesNotExist"}]}, {}, True),
    ],
)
def test_a_selector_chooses_as_kubernetes_does(selector: dict[str, object], labels: dict[str, str], part: bool) -> None:
    assert takes_part(node(**labels), network(**selector)) is part
    assert chosen(labels, msgspec.convert(selector, LabelSelector)) is part


def test_what_leaves_a_node_out_is_said() -> None:
    assert why_not(node(**{"netloom.dev_ignore": "true"})) == (
        "its label netloom.dev/ignore=true takes it out of Netloom"
    )
    assert why_not(node(role="edge")) == "spec.nodeSelector of the NetloomNetwork does not choose it"


def test_a_selector_that_met_no_schema_is_judged_in_the_same_words() -> None:
    selector = {
        "matchLabels": {"a b": "x", "role": "-edge"},
        "matchExpressions": [
            {"key": "role", "operator": "In"},
            {"key": "role", "operator": "Exists", "values": ["b c"]},
        ],
    }
    assert [str(each) for each in validate_network(network(**selector))] == [
        'NetloomNetwork default: spec.nodeSelector.matchLabels: "a b" is not a label. '
        "Write one such as example.com/role.",
        "NetloomNetwork default: spec.nodeSelector.matchLabels[role] '-edge': not a label's value. "
        'Write letters, digits, "-", "_" and ".", with a letter or digit at both ends.',
        "NetloomNetwork default: spec.nodeSelector.matchExpressions[0].values: In compares with values, and there are "
        "none. Give at least one.",
        "NetloomNetwork default: spec.nodeSelector.matchExpressions[1].values: Exists asks for the key alone. "
        "Leave the values out, or use In or NotIn.",
        "NetloomNetwork default: spec.nodeSelector.matchExpressions[1].values[0] 'b c': not a label's value. "
        'Write letters, digits, "-", "_" and ".", with a letter or digit at both ends.',
    ]

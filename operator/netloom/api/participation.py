"""Which Nodes are Netloom's: one answer for the operator, the agents, and whoever counts.

A cluster may have Nodes that are none of ours: a virtual kubelet, a machine with another network. One with the label
`netloom.dev/ignore`, whatever its value but "false", is left out, and so is one that `spec.nodeSelector` of the
NetloomNetwork does not choose. (Kubernetes' own labels of that kind count by their presence alone, and people who
write `=false` there get the opposite of what they meant.) Left out means: no NetloomNode, no CIDR, counted nowhere.
"""

from collections.abc import Mapping

from netloom.api.core import Node
from netloom.api.meta import LabelRequirement, LabelSelector
from netloom.api.v1alpha1 import IGNORE_LABEL, NetloomNetwork


def takes_part(node: Node, network: NetloomNetwork | None) -> bool:
    """Whether a Node is Netloom's, by its labels. Without a network, its label alone decides."""
    labels = node.metadata.labels
    if labels.get(IGNORE_LABEL, "false") != "false":
        return False
    return network is None or chosen(labels, network.spec.node_selector)


def chosen(labels: Mapping[str, str], selector: LabelSelector) -> bool:
    """Whether a label selector chooses what has these labels, as Kubernetes has it."""
    return all(labels.get(key) == value for key, value in selector.match_labels.items()) and all(
        _holds(labels, each) for each in selector.match_expressions
    )


def why_not(node: Node) -> str:
    """Which of the two leaves a Node out that does not take part, as the end of a sentence."""
    value = node.metadata.labels.get(IGNORE_LABEL, "false")
    if value != "false":
        return f"its label {IGNORE_LABEL}{'=' if value else ''}{value} takes it out of Netloom"
    return "spec.nodeSelector of the NetloomNetwork does not choose it"


def _holds(labels: Mapping[str, str], requirement: LabelRequirement) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None

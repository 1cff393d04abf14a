"""NetloomPrefilters: what they would drop, where, and from which lists."""

import re
from collections.abc import Iterator

from netloom.api.cidrs import check_cidrs
from netloom.api.prefilter import ListReference, NetloomPrefilter, PrefilterSpec
from netloom.api.problem import Problem
from netloom.api.validation.selector import check_selector

_DEVICE = re.compile(r"!?[^!/\t\n\f\r ]+")
_NAMESPACE = re.compile(r"([a-z0-9]([-a-z0-9]*[a-z0-9])?)?")
_CONFIG_MAP = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


def validate_prefilter(prefilter: NetloomPrefilter) -> list[Problem]:
    """Everything that is wrong with a prefilter by itself."""
    name, spec = f"NetloomPrefilter {prefilter.metadata.name}", prefilter.spec
    problems = check_selector(spec.node_selector, object=name)
    for field, texts in (("spec.denyCIDRs", spec.deny_cidrs), ("spec.allowCIDRs", spec.allow_cidrs)):
        problems += check_cidrs(texts, object=name, field=field, example="192.0.2.0/24")
    problems += _devices(name, spec)
    problems += _drops_all(name, spec)
    problems += _both(name, spec)
    for field, references in (
        ("spec.denyFromConfigMaps", spec.deny_from_config_maps),
        ("spec.allowFromConfigMaps", spec.allow_from_config_maps),
    ):
        for number, reference in enumerate(references):
            problems += _reference(name, f"{field}[{number}]", reference)
    return problems


def _devices(name: str, spec: PrefilterSpec) -> Iterator[Problem]:
    for number, text in enumerate(spec.devices):
        if not _DEVICE.fullmatch(text):
            way_out = "Write one such as eth0, bond* or !veth*."
            field = f"spec.devices[{number}]"
            yield Problem(name, field, text, "InvalidDevice", "not a device's name or pattern.", way_out)


def _drops_all(name: str, spec: PrefilterSpec) -> Iterator[Problem]:
    found = next((text for text in spec.deny_cidrs if text.endswith("/0")), None)
    if found is not None and not spec.may_cut_off_nodes:
        message = f"{found} drops every packet that no exception lets pass, those of the API server as well."
        way_out = "Name what is to be dropped, or set spec.mayCutOffNodes to true."
        yield Problem(name, "spec.denyCIDRs", found, "DropsEverything", message, way_out)


def _both(name: str, spec: PrefilterSpec) -> Iterator[Problem]:
    allowed = set(spec.allow_cidrs)
    found = next((text for text in spec.deny_cidrs if text in allowed), None)
    if found is not None:
        message = f"{found} is in spec.allowCIDRs as well, so nothing of it would be dropped."
        yield Problem(name, "spec.denyCIDRs", found, "Contradiction", message, "Remove it from one of them.")


def _reference(name: str, field: str, reference: ListReference) -> Iterator[Problem]:
    if not _NAMESPACE.fullmatch(reference.namespace):
        message, way_out = "not the name of a namespace.", "Write one such as netloom-system."
        yield Problem(name, f"{field}.namespace", reference.namespace, "InvalidReference", message, way_out)
    if not _CONFIG_MAP.fullmatch(reference.name):
        message, way_out = "not the name of a ConfigMap.", "Write one such as spamhaus-drop."
        yield Problem(name, f"{field}.name", reference.name, "InvalidReference", message, way_out)

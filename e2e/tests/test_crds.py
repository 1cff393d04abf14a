"""The custom resources on a real API server, by the real kubectl: what is taken, what is refused, and in which words.

The cases are tables in `manifests/`, one per kind. Where the refusal is a rule's, `netloom.api.validation` has to say
the same of the same object, word by word.
"""

import functools
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import msgspec
import pytest
import yaml

from netloom.api.meta import Resource
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import LEDGERS, NETLOOM_NODES, NETWORKS, POOLS, PREFILTERS, NetworkIPAM
from netloom.api.validation import (
    validate_network,
    validate_node,
    validate_pool,
    validate_pool_update,
    validate_prefilter,
)
from netloom.api.words import NODES_HOLD
from netloom.guard import wording
from netloom_e2e.asking import merged
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane

Manifest = dict[str, Any]

MANIFESTS = Path(__file__).parent / "manifests"
RESOURCES: list[Resource[Any]] = [NETWORKS, NETLOOM_NODES, POOLS, PREFILTERS, LEDGERS]
VALIDATE: dict[str, Callable[[Any], list[Problem]]] = {
    "netloomnetworks": validate_network,
    "netloomnodes": validate_node,
    "netloomippools": validate_pool,
    "netloomprefilters": validate_prefilter,
}
UNCHECKED = "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid"
"""How a line begins that the API server adds where a field is not even of the right form."""


@dataclass(frozen=True)
class Case:
    """One row of a table: a patch of what was there, and the refusal, if it is one."""

    resource: Resource[Any]
    name: str
    before: Manifest
    patch: Manifest
    says: tuple[str, ...]
    by_schema: bool
    locked: dict[str, object]
    """status.ipam before the change; empty where no node holds an address."""

    @property
    def after(self) -> Manifest:
        return merged(self.before, self.patch)

    @property
    def path(self) -> str:
        return self.resource.path(self.after["metadata"]["name"])


def cases(*tables: str) -> list[Any]:
    return [pytest.param(case, id=f"{case.resource.kind}: {case.name}") for case in _read(tables)]


def _read(tables: tuple[str, ...]) -> Iterator[Case]:
    for resource, table in itertools.product(RESOURCES, tables):
        content = _content(resource.plural)
        for row in content.get(table, []):
            patch = {key: row[key] for key in ("spec", "status") if key in row} or row["patch"]
            yield Case(
                resource=resource,
                name=row["name"],
                before=merged(content["base"], {"spec": row.get("given", {})}),
                patch=patch,
                says=tuple(row.get("says", ())),
                by_schema=row.get("by") == "schema",
                locked=_in_force(row),
            )


@functools.cache
def _content(table: str) -> Manifest:
    content: Manifest = yaml.load((MANIFESTS / f"{table}.yaml").read_text(), yaml.CSafeLoader)
    return content


def _in_force(row: Manifest) -> dict[str, object]:
    names = {"locked": "mode", "in_use": "inUse", "ranges": "ledgerRanges"}
    return {field: row[name] for name, field in names.items() if name in row}


@pytest.fixture
def cluster(crds_installed: ControlPlane) -> Iterator[ControlPlane]:
    yield crds_installed
    crds_installed.delete_all(*(f"{resource.plural}.{resource.version}.{resource.group}" for resource in RESOURCES))


def lines_of(refusal: CompletedProcess[str], kind: str, name: str) -> list[str]:
    """The lines of a refusal, sorted: the API server visits the fields of an object in any order."""
    assert refusal.returncode == 1, f"taken: {refusal.stdout}"
    beginning = f'The {kind} "{name}" is invalid: '
    assert refusal.stderr.startswith(beginning), refusal.stderr
    lines = (line.removeprefix("* ") for line in refusal.stderr.removeprefix(beginning).strip().split("\n"))
    return sorted(line for line in lines if not line.startswith(UNCHECKED))


def in_our_words(problems: list[Problem]) -> list[str]:
    lines = (f"{problem.field}: {problem.text}" for problem in problems if problem.severity == "error")
    return sorted(_without_ipv6(line) for line in lines)


def _without_ipv6(line: str) -> str:
    """What to write instead of an IPv6 CIDR is more than CEL can say: the rules tell how to find it."""
    line = re.sub(r"Write \S*:\S*\.$", "Set them to zero.", line)
    lower = 'Write it in lower case, with the longest run of zeros as "::" (RFC 5952).'
    return re.sub(r"Write \S*:\S* \(RFC 5952\)\.$", lower, line)


def without_verdict(line: str) -> str:
    """`field: Invalid value: "x": text`, `field: Forbidden: text`, `field: Required value: text` as `field: text`."""
    return re.sub(r'^(\S+): (?:Forbidden: |Required value: |Invalid value: (?:(?:"[^"]*"|\d+): )?)', r"\1: ", line)


@pytest.mark.parametrize("case", cases("accepted"))
def test_accepted(cluster: ControlPlane, case: Case) -> None:
    cluster.kubectl("apply", "-f", "-", input=json.dumps(case.after))
    stored = cluster.client.request("GET", case.path)
    ours, served = (msgspec.convert(each, case.resource.type) for each in (case.after, stored))
    assert ours.spec == served.spec, "the API server completes an object as its decoding does"
    assert in_our_words(VALIDATE.get(case.resource.plural, lambda _: [])(ours)) == []


@pytest.mark.parametrize("case", cases("refused"))
def test_refused(cluster: ControlPlane, case: Case) -> None:
    refusal = cluster.kubectl("apply", "-f", "-", input=json.dumps(case.after), check=False)
    assert lines_of(refusal, case.resource.kind, case.after["metadata"]["name"]) == sorted(case.says)
    validate = VALIDATE.get(case.resource.plural)
    if validate and not case.by_schema:
        problems = validate(msgspec.convert(case.after, case.resource.type))
        assert in_our_words(problems) == sorted(map(without_verdict, case.says))


@pytest.mark.parametrize("case", cases("changes", "status"))
def test_changes(cluster: ControlPlane, case: Case) -> None:
    before = exists(cluster, case.resource, case.before, case.locked)
    subresource = ["--subresource=status"] if "status" in case.patch else []
    name = case.before["metadata"]["name"]
    arguments = ["patch", case.resource.plural, name, "--type=merge", f"--patch={json.dumps(case.patch)}", *subresource]
    answer = cluster.kubectl(*arguments, check=not case.says)
    if not case.says:
        stored = cluster.client.request("GET", case.path)
        asked = msgspec.convert(merged(before, case.patch), case.resource.type)
        assert msgspec.convert(stored, case.resource.type).spec == asked.spec
    else:
        assert lines_of(answer, case.resource.kind, name) == sorted(case.says)
    if case.resource is NETWORKS and (changed := [text for text in case.says if "of a live cluster" in text]):
        in_use, mode = case.locked.get("inUse", NODES_HOLD), case.locked["mode"]
        wanted = case.patch["spec"]["ipam"]["mode"] or NetworkIPAM().mode
        assert changed == [
            f"spec.ipam.mode: Forbidden: {wording.NETWORK_MODE.text.format(in_use=in_use, mode=mode, wanted=wanted)}"
        ]
    validate = VALIDATE.get(case.resource.plural)
    if validate and not case.by_schema:
        old, new = (msgspec.convert(each, case.resource.type) for each in (before, merged(before, case.patch)))
        lock = "which stays in force"  # a state that the operator reports, and no rule can refuse
        ours = in_our_words([problem for problem in validate(new) if lock not in problem.message])
        theirs = sorted(map(without_verdict, case.says))
        if case.resource is POOLS:
            assert sorted(ours + in_our_words(validate_pool_update(old, new))) == theirs
        else:
            assert [line for line in theirs if line in ours] == ours


def exists(cluster: ControlPlane, resource: Resource[Any], manifest: Manifest, locked: dict[str, object]) -> Manifest:
    """Makes the object, with what is in force."""
    stored = cluster.client.request("POST", resource.path(), manifest)
    if locked:
        path = resource.path(manifest["metadata"]["name"], subresource="status")
        stored = cluster.client.request("PATCH", path, {"status": {"ipam": locked}})
    return dict(stored)


CHARACTERS = "0123456789abcdefF:./% "
SEEDS = ["10.0.0.0/8", "192.0.2.128/25", "2001:db8::/32", "fd00:0:0:1::/64", "::ffff:10.0.0.0/104", "::1.2.3.4/128"]


def test_the_api_server_and_we_agree_on_what_a_cidr_is(cluster: ControlPlane) -> None:
    """Texts a few typing errors away from a CIDR: the same ones are refused, in the same words."""
    typist = random.Random(20)
    texts = tuple(_mistyped(typist, typist.choice(SEEDS)) for _ in range(3000))
    prefilter = {"metadata": {"name": "typed"}, "spec": {"denyCIDRs": texts}}
    header = {"apiVersion": PREFILTERS.api_version, "kind": PREFILTERS.kind}
    with pytest.raises(ApiFailure) as refusal:
        cluster.client.request("POST", PREFILTERS.path(), header | prefilter)
    causes = json.loads(str(refusal.value).partition(": ")[2])["details"]["causes"]
    theirs = sorted(without_verdict(f"{cause['field']}: {cause['message']}") for cause in causes)
    assert in_our_words(validate_prefilter(msgspec.convert(prefilter, PREFILTERS.type))) == theirs
    assert 500 < len({cause["field"] for cause in causes}) < 2900, "both good and bad texts were tried"


def _mistyped(typist: random.Random, text: str) -> str:
    for _ in range(typist.randrange(3)):
        at = typist.randrange(len(text) + 1)
        text = text[:at] + typist.choice(["", *CHARACTERS]) + text[at + typist.randrange(2) :]
    return text[:43]

"""What a role can do is a list: what --features makes of it, and that features of an operator stop no other."""

import asyncio
from pathlib import Path
from typing import ClassVar

import pytest

from netloom.roles import agent, operator
from netloom.roles.agent import Agent
from netloom.roles.agent_sources import AgentOptions, cluster_sources
from netloom.roles.operator import Operator, OperatorOptions
from netloom.runtime.client import Api
from netloom.runtime.errors import ConfigError
from netloom_reconcilers.cluster import withdrawing
from netloom_reconcilers.conditions import ADDRESSES, AGENT, HEALTH, OPERATOR, Readiness, manager_of
from netloom_reconcilers.features import chosen
from netloom_reconcilers.features.cluster import ClusterContext, ClusterFeature, Told
from netloom_reconcilers.features.node import NodeFeature
from tests.roles.test_crashes import NODE_PATH, put_network, running, said
from tests.runtime.scripted import ScriptedApi, refuse, until

LEASE_PATH = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"


class Probe:
    """A feature of an operator that only says what it is told, and crashes when it should."""

    name: ClassVar[str]
    told: ClassVar[Told] = ()
    made: ClassVar[list["Probe"]] = []

    def __init__(self, context: ClusterContext) -> None:
        self.context = context
        self.begun = self.looks = 0
        self.fault = ""
        self.told: list[str] = []
        self.crash = asyncio.Event()
        self.made.append(self)

    def begin(self) -> "Probe":
        self.begun += 1
        return self

    async def run(self) -> None:
        await self.crash.wait()
        self.crash.clear()
        raise AttributeError(f"{self.name} has no attribute")

    def look(self) -> None:
        self.looks += 1

    async def tell_crash(self, crash: str) -> None:
        self.told.append(crash)


class One(Probe):
    name = "one"


class Two(Probe):
    name = "two"


class Three(Probe):
    name = "three"


PROBES = (One, Two, Three)


@pytest.fixture(autouse=True)
def _none_made_yet() -> None:
    Probe.made.clear()


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("*", ["one", "two", "three"]),
        ("-two", ["one", "three"]),
        ("*,-two", ["one", "three"]),
        ("-two, -one", ["three"]),
        ("three,one", ["one", "three"]),
        ("one,-two", ["one"]),
        ("one,two,-two", ["one"]),
        ("*,three", ["one", "two", "three"]),
        ("-one,-two,-three", []),
    ],
)
def test_which_features_are_on(wanted: str, names: list[str]) -> None:
    assert [feature.name for feature in chosen(PROBES, wanted)] == names


@pytest.mark.parametrize("wanted", ["four", "-four", "*,-four", "one,-four", "--one"])
def test_a_name_that_is_none(wanted: str) -> None:
    unknown = "-one" if wanted == "--one" else "four"
    with pytest.raises(ConfigError, match=f"^--features: there is no feature '{unknown}'; there are: one, two, three$"):
        chosen(PROBES, wanted)


@pytest.mark.parametrize("wanted", ["", " , "])
def test_no_name_at_all(wanted: str) -> None:
    with pytest.raises(ConfigError, match=r"^--features names no feature; there are: one, two, three, and \* for all"):
        chosen(PROBES, wanted)


@pytest.mark.parametrize("features", [agent.FEATURES, operator.FEATURES])
def test_names_are_names(features: tuple[type[Probe], ...]) -> None:
    names = [feature.name for feature in features]
    assert len(set(names)) == len(names)
    assert all(name.replace("-", "").isalnum() and not name.startswith("-") for name in names)


def test_field_managers_are_one_each() -> None:
    managers = [OPERATOR, ADDRESSES, HEALTH, AGENT, *(manager_of(feature.name) for feature in agent.FEATURES)]
    assert len(set(managers)) == len(managers)


async def test_a_feature_that_crashes_is_told_and_begun_again_and_the_others_go_on(
    server: ScriptedApi, api: Api
) -> None:
    role = Operator(api, OperatorOptions(identity="me"), (One, Two))
    one, two = Probe.made
    async with running(role.manager):
        await until(lambda: one.begun == two.begun == 1)
        two.fault = "no ledger"
        assert role.manager.health.not_ready() == {"two": "no ledger"}
        two.fault = ""

        one.crash.set()
        await until(lambda: one.begun == 2)
        crash = "one crashed: one has no attribute. It is started again; the log has the details."
        assert one.told == [crash]
        assert list(two.context.crashes()) == [crash]
        assert role.manager.health.not_ready() == {"component one": "crashed: one has no attribute"}
        assert two.looks == 1, "it may tell of it as well"
        assert (two.begun, two.told) == (1, [])
        assert server.objects[LEASE_PATH]["netloom-operator"]["spec"].get("leaseTransitions", 0) == 0
    assert "holderIdentity" not in server.objects[LEASE_PATH]["netloom-operator"]["spec"]


@pytest.mark.parametrize("off", [probe.name for probe in PROBES])
async def test_each_is_switched_off_and_the_others_work(server: ScriptedApi, api: Api, off: str) -> None:
    role = Operator(api, OperatorOptions(leader_elect=False, features=f"-{off}"), PROBES)
    async with running(role.manager):
        await until(lambda: all(probe.begun for probe in Probe.made))
        assert {probe.name for probe in Probe.made} == {"one", "two", "three"} - {off}
        await until(lambda: not role.manager.health.not_ready())


@pytest.mark.parametrize("off", operator.FEATURES)
async def test_an_operator_without_one_of_its_features(
    server: ScriptedApi, api: Api, off: type[ClusterFeature]
) -> None:
    """Here with another in its place, so that somebody leads."""
    role = Operator(api, OperatorOptions(features=f"-{off.name}"), (off, One))
    async with running(role.manager):
        await until(lambda: Probe.made[0].begun == 1)
        await until(lambda: not role.manager.health.not_ready())
        taken_back = [kind.path() for kind, _ in off.told]
        await until(lambda: len(reads(server)) == len(taken_back))
        assert reads(server) == taken_back, "nobody reads anything else"
        assert not [call for call in server.calls if call.verb == "patch"], "there is nothing to take back"


def reads(server: ScriptedApi) -> list[str]:
    return [call.collection for call in server.calls if call.verb in ("list", "watch")]


@pytest.mark.parametrize("off", [feature for feature in operator.FEATURES if feature.told])
async def test_what_a_feature_said_is_taken_back_by_the_next_leader_without_it(
    server: ScriptedApi, api: Api, off: type[ClusterFeature], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(withdrawing, "AGAIN_SECONDS", 0.05)
    ((kind, managers),) = off.told
    applied = [{"manager": each, "operation": "Apply"} for each in managers]
    others = [{"manager": "somebody", "operation": "Apply"}, {"manager": managers[0], "operation": "Update"}]
    for name, fields in {"of-it": applied + others, "of-others": others, "nobodys": []}.items():
        server.put(kind.path(), {"metadata": {"name": name, "managedFields": fields}})
    server.on("list", refuse(403, "Forbidden"))
    role = Operator(api, OperatorOptions(features=f"-{off.name}"), (off, One))
    async with running(role.manager):
        await until(lambda: server.count("patch") == len(managers))
        assert Probe.made[0].begun == 1, "who works is not disturbed"
    assert server.count("list") == 2, "once it was refused"
    patches = [call for call in server.calls if call.verb == "patch"]
    assert {call.query["fieldManager"] for call in patches} == set(managers)
    for call in patches:
        assert (call.collection, call.name) == (kind.path(), "of-it")
        assert "status" not in call.body
        assert call.body["metadata"]["uid"] == server.objects[kind.path()]["of-it"]["metadata"]["uid"]


class Watcher(NodeFeature):
    """A feature of an agent that owns nothing and has a condition."""

    name = "watcher"
    condition = "Watched"

    def readiness(self) -> Readiness:
        return Readiness(False, "Asleep", "It sleeps.")


@pytest.mark.slow
async def test_a_features_condition_is_applied_by_a_manager_of_its_own(
    server: ScriptedApi, api: Api, tmp_path: Path
) -> None:
    put_network(server)
    server.put(NODE_PATH, {"metadata": {"name": "node-1", "generation": 1}, "spec": {}})
    options = AgentOptions(node_name="node-1", run_dir=tmp_path)
    role = Agent(options, cluster_sources(options, api), api, (Watcher,))
    async with running(role.manager):
        await until(lambda: len(said(server, NODE_PATH, "Watched") + said(server, NODE_PATH, "DataplaneReady")) == 2)
    assert said(server, NODE_PATH, "Watched") == [("False", "Asleep", "It sleeps.")]
    assert said(server, NODE_PATH, "DataplaneReady")[0][0] == "True", "it is the other's own business"
    writes = [call for call in server.calls if call.verb == "patch" and call.collection == NODE_PATH]
    managers = {call.body["status"]["conditions"][0]["type"]: call.query["fieldManager"] for call in writes}
    assert managers == {"Watched": "netloom-agent-watcher", "DataplaneReady": "netloom-agent"}

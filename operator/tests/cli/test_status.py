"""What `netloom status` asks, what it makes of refusals, and how it waits."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web

from netloom.api.cluster_facts import OPERATOR_LEASE
from netloom.api.errors import UserError
from netloom.api.v1alpha1 import IGNORE_LABEL
from netloom.cli import local_agent, status
from netloom.cli.status import StatusOptions, StatusReport, collect, duration, wait_until_healthy
from netloom.runtime import log, loop
from netloom.runtime.client import PAGE, Api
from netloom.runtime.errors import ConfigError
from tests.runtime.scripted import Call, ScriptedApi, refuse

NODES = "/api/v1/nodes"
NETLOOM_NODES = "/apis/netloom.dev/v1alpha1/netloomnodes"
PREFILTERS = "/apis/netloom.dev/v1alpha1/netloomprefilters"
NETWORKS = "/apis/netloom.dev/v1alpha1/netloomnetworks"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
DAEMON_SETS = "/apis/apps/v1/namespaces/kube-system/daemonsets"
PODS = "/api/v1/namespaces/kube-system/pods"
NOBODY = "127.0.0.1:1"
FACTS = {"node": "a", "inSync": True, "driftRepaired": 0, "netlinkWrites": 3, "errors": []}


@pytest.fixture(autouse=True)
def no_agent_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_agent, "ADDRESS", NOBODY)


def condition(type_: str) -> dict[str, Any]:
    return {"type": type_, "status": "True", "reason": "Good", "message": "", "lastTransitionTime": "-"}


def lease(name: str, holder: str, **labels: str) -> dict[str, Any]:
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "metadata": {
            "name": name,
            "labels": labels,
            "managedFields": [{"time": now, "fieldsV1": {"f:spec": {"f:renewTime": {}}}}],
        },
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 40, "acquireTime": now},
    }


def fill(server: ScriptedApi, *names: str) -> None:
    """A cluster of these nodes in which all is well."""
    server.put(NETWORKS, {"metadata": {"name": "default"}, "status": {"conditions": [condition("Ready")]}})
    server.put(LEASES, lease(OPERATOR_LEASE, "op"))
    for name in names:
        server.put(NODES, {"metadata": {"name": name}})
        held = {
            "spec": {"ipam": {"podCIDRs": ["10.0.0.0/24"]}},
            "status": {"conditions": [condition("DataplaneReady")]},
        }
        server.put(NETLOOM_NODES, {"metadata": {"name": name}} | held)
        server.put(LEASES, lease(f"netloom-agent-{name}", name))


def about(server: ScriptedApi, *collections: str, code: int = 403) -> None:
    """Requests about these collections are refused."""

    async def fault(call: Call) -> web.StreamResponse:
        reason = {403: "Forbidden", 404: "NotFound", 500: "InternalError"}[code]
        if call.collection in collections and (call.name or call.verb == "list"):
            return await refuse(code, reason, f"no {call.collection.split('/')[-1]} for you")(call)
        return await call.ordinary()

    server.faulty = fault


def problems(report: StatusReport) -> list[str]:
    return [str(group) for group in report.problems]


@asynccontextmanager
async def listening(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """The address of somebody who answers so."""
    app = web.Application()
    app.router.add_get("/status", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.05, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_cluster_that_is_well(server: ScriptedApi, api: Api) -> None:
    fill(server, "a", "b")
    report = await collect(api, StatusOptions())
    assert problems(report) == []
    assert report.healthy
    assert report.operator.leader == "op"
    assert report.totals.agents_alive == 2
    assert report.network is not None
    assert (report.network.mode, report.network.mode_in_force) == ("cluster-pool", "")
    assert (report.agent, report.notes) == (None, ()), "a machine without an agent is no fault"


async def test_prefilters(server: ScriptedApi, api: Api) -> None:
    """What does not run or is not whole is a problem; what is no fault, and perhaps not expected, is a note."""
    fill(server)
    devices = [{"name": "eth0", "mode": "generic", "error": "its driver cannot."}]
    status: dict[str, Any] = {"conditions": [condition("DataplaneReady")]}
    status["prefilter"] = {"devices": devices, "filters": [{"name": "drop"}]}
    server.put(NODES, {"metadata": {"name": "a"}})
    spec = {"ipam": {"podCIDRs": ["10.0.0.0/24"]}}
    server.put(NETLOOM_NODES, {"metadata": {"name": "a"}, "spec": spec, "status": status})
    server.put(LEASES, lease("netloom-agent-a", "a"))

    def prefilter(name: str, generation: int, *conditions: dict[str, Any]) -> None:
        meta = {"name": name, "generation": generation}
        server.put(PREFILTERS, {"metadata": meta, "status": {"conditions": conditions}})

    good = condition("Ready") | {"observedGeneration": 3}
    nowhere = good | {"status": "Unknown", "reason": "NoNodes", "message": "No Node has the labels."}
    prefilter("edge", 3, good)
    prefilter("nowhere", 3, nowhere)
    report = await collect(api, StatusOptions())
    assert (report.healthy, problems(report)) == (True, [])
    assert report.notes == (
        "NetloomPrefilter nowhere: No Node has the labels.",
        "prefilters run in generic mode, which costs more of the processor for each packet, on a. For one, on a, eth0: "
        "its driver cannot. Who wants native mode or an error sets spec.mode to native.",
    )

    failed = good | {"status": "False", "reason": "NodesFailed", "message": "On a: eth0: there is no such device."}
    bad = condition("Whole") | {"status": "False", "reason": "BadLines", "message": "on a: line 3 is no CIDR."}
    prefilter("edge", 3, failed, bad)
    prefilter("changed", 4, good)
    report = await collect(api, StatusOptions())
    assert problems(report) == [
        "NetloomPrefilter changed: no operator has said how it fares since it was changed. If that lasts, look whether "
        "`netloom operator` runs, with its feature prefilters.",
        "NetloomPrefilter edge: Ready=False NodesFailed: On a: eth0: there is no such device.",
        "NetloomPrefilter edge: Whole=False BadLines: on a: line 3 is no CIDR.",
    ]


async def test_agents_that_do_not_come_up_are_told_while_their_leases_are_good(server: ScriptedApi, api: Api) -> None:
    """As after an upgrade to an image that nobody can pull."""
    fill(server, "a", "b", "c")
    agents = {"desiredNumberScheduled": 3, "updatedNumberScheduled": 1, "numberReady": 2}
    server.put(DAEMON_SETS, {"metadata": {"name": "netloom-agent"}, "status": agents})
    for name, waiting in (("x", {"reason": "ImagePullBackOff", "message": "no such image"}), ("y", {})):
        containers = {"containerStatuses": [{"state": {"waiting": waiting}}]}
        server.put(PODS, {"metadata": {"name": name}, "spec": {"nodeName": "b"}, "status": containers})
    report = await collect(api, StatusOptions())
    assert not report.healthy
    assert problems(report) == [
        "DaemonSet kube-system/netloom-agent: of 3 agents 2 are ready, and 1 are of the version that was asked for. "
        "Pods keep their network; new ones wait where no agent runs. kubectl rollout status daemonset/netloom-agent "
        "-n kube-system",
        "Pod kube-system/x on b: ImagePullBackOff: no such image",
    ]
    assert [each.kind for each in report.problems] == ["DaemonSet", "Pod"]
    about(server, DAEMON_SETS, PODS)
    assert (await collect(api, StatusOptions())).healthy, "who may not look there is told by the Leases, later"


async def test_a_lease_is_of_the_node_in_its_name_whatever_its_holder_says(server: ScriptedApi, api: Api) -> None:
    """As for the operator: else one agent could speak for another, and both verdicts would differ."""
    fill(server, "a")
    server.put(LEASES, lease("netloom-agent-a", "b"))
    report = await collect(api, StatusOptions())
    assert report.healthy, problems(report)


async def test_what_is_asked_of_a_large_cluster(server: ScriptedApi, api: Api) -> None:
    """A list of each kind in chunks, the operator's Lease, and of the agents' pods those that do not come up; nothing
    per node."""
    fill(server, *(f"n{number:04}" for number in range(2 * PAGE + 1)))
    report = await collect(api, StatusOptions(lease_namespace="kube-system"))
    assert report.totals.summary == "1,001 of 1,001 nodes ready"
    assert server.count("list") == 3 * 3 + 3
    assert server.count("get") == 2
    asked = {query.get("labelSelector", ""): query.get("fieldSelector", "") for query in server.queries("list")}
    parts = "app.kubernetes.io/part-of=netloom"
    assert asked == {"": "", "netloom.dev/agent=true": "", parts: "status.phase=Pending"}
    assert len(server.calls) == 15


@pytest.mark.parametrize(
    ("collections", "said"),
    [
        ((NODES,), {"Nodes"}),
        ((LEASES,), {"Leases of the agents", "Lease of the operator"}),
        ((NETWORKS,), {"NetloomNetworks"}),
        ((NETLOOM_NODES,), {"NetloomNodes"}),
        ((PREFILTERS,), {"NetloomPrefilters"}),
        ((NODES, LEASES), {"Nodes", "Leases of the agents", "Lease of the operator"}),
    ],
)
async def test_who_may_not_read_everything_is_told_what_is_missing(
    server: ScriptedApi, api: Api, collections: tuple[str, ...], said: set[str]
) -> None:
    fill(server, "a")
    about(server, *collections)
    report = await collect(api, StatusOptions())
    assert {group.kind for group in report.problems} == said
    assert all("for you" in problem for problem in problems(report))
    assert not report.healthy
    assert [node.name for node in report.nodes] == ["a"]


async def test_who_may_read_nothing_gets_no_verdict(server: ScriptedApi, api: Api) -> None:
    about(server, NODES, LEASES, NETWORKS, NETLOOM_NODES)
    with pytest.raises(
        UserError, match=r"nothing of what Netloom is about may be looked at: .*netloomnetworks for you"
    ):
        await collect(api, StatusOptions())


async def test_crds_that_are_not_installed(server: ScriptedApi, api: Api) -> None:
    about(server, NETWORKS, NETLOOM_NODES, code=404)
    with pytest.raises(ExceptionGroup) as failure:
        await collect(api, StatusOptions())
    assert "kubectl apply -f crds/" in str(failure.value.exceptions[0])


async def test_an_object_that_does_not_fit_is_named(server: ScriptedApi, api: Api) -> None:
    fill(server, "a")
    server.put(NETLOOM_NODES, {"metadata": {"name": "odd"}, "spec": {"addresses": "none"}})
    assert [
        "NetloomNode odd: is not readable" in problem for problem in problems(await collect(api, StatusOptions()))
    ] == [True]


async def test_nodes_that_take_no_part_are_counted_apart(server: ScriptedApi, api: Api) -> None:
    fill(server, "a")
    server.put(NODES, {"metadata": {"name": "virtual"}})
    assert not (await collect(api, StatusOptions())).healthy
    server.put(NODES, {"metadata": {"name": "virtual", "labels": {IGNORE_LABEL: "true"}}})
    report = await collect(api, StatusOptions())
    assert report.healthy
    assert (report.totals.nodes, report.totals.left_out) == (1, 1)


# The agent of this machine


async def test_the_agent_of_this_machine(server: ScriptedApi, api: Api) -> None:
    fill(server, "a")

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response(said)

    async with listening(answer) as address:
        said: dict[str, Any] = FACTS | {"peers": 2, "further": ["facts"]}
        report = await collect(api, StatusOptions(agent_address=address))
        assert report.healthy
        assert report.agent == said
        said = FACTS | {"inSync": False}
        assert problems(await collect(api, StatusOptions(agent_address=address))) == [
            "agent of this machine (a): not everything that is desired is in the kernel yet."
        ]
        said = FACTS | {"inSync": False, "errors": [f"{letter} broke." for letter in "vwxyz"]}
        assert problems(await collect(api, StatusOptions(agent_address=address))) == [
            "agent of this machine (a): v broke. w broke. x broke. And 2 more: see its /status."
        ]


FOREIGN: dict[str, Callable[[], web.Response]] = {
    "status 200, text/html": lambda: web.Response(text="<html>", content_type="text/html"),
    "status 200, application/json": lambda: web.json_response({"node": 1}),
    "status 404, text/plain": lambda: web.Response(status=404, text="no"),
    "status 302, application/octet-stream": lambda: web.Response(status=302, headers={"Location": "http://[::1"}),
}


@pytest.mark.parametrize("what", FOREIGN)
async def test_a_foreign_server_on_the_agents_port(
    server: ScriptedApi, api: Api, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(server, "a")

    async def answer(_request: web.Request) -> web.StreamResponse:
        return FOREIGN[what]()

    async with listening(answer) as address:
        said = f"{address}: what answers there is no agent of Netloom ({what})."
        assert problems(await collect(api, StatusOptions(agent_address=address))) == [said]
        monkeypatch.setattr(local_agent, "ADDRESS", address)
        report = await collect(api, StatusOptions())
        assert (report.notes, report.healthy) == ((said,), True), "who did not ask for an agent is told"


async def test_what_answers_there_speaks_no_http(server: ScriptedApi, api: Api) -> None:
    fill(server, "a")

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as listener:
        address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        (said,) = problems(await collect(api, StatusOptions(agent_address=address)))
    assert said.startswith(f"{address}: what answers there is no agent of Netloom: ")


@pytest.mark.parametrize(
    ("address", "why"),
    [(NOBODY, "Connection refused"), ("no-such-host.invalid:9964", "")],
)
async def test_an_agent_that_was_asked_for_and_does_not_answer(
    server: ScriptedApi, api: Api, address: str, why: str
) -> None:
    fill(server, "a")
    report = await collect(api, StatusOptions(agent_address=address))
    (said,) = problems(report)
    assert said.startswith(f"agent at {address}: does not answer: {why}")
    assert not report.healthy


@pytest.mark.parametrize("address", ["foo", "foo:", ":9964", "foo:bar", "foo:70000"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        StatusOptions(agent_address=address).check()


# Waiting


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("1h30m", 5400), ("0", 0), ("0s", 0), ("1.5s", 1.5), ("250ms", 0.25)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "soon", "-5s", "5 m", "5s and more", "1d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        duration(text)


async def test_waiting_ends_when_all_is_well_and_says_what_it_waits_for(
    server: ScriptedApi, api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status, "LOOK_SECONDS", 0.0)
    looks = 0

    async def look() -> StatusReport:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise ConfigError("the API server is away")
        if looks == 4:
            fill(server, "a")
        return await collect(api, StatusOptions())

    assert (await wait_until_healthy(look, 60)).healthy
    assert looks == 4
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert len(lines) == 2, "what is waited for is said when it changes"
    assert lines[0].startswith("netloom: waiting: 0 of 0 nodes ready; operator: none was ever heard of")
    assert lines[0].endswith("(problem 1 of 2)")
    assert lines[1] == "netloom: waiting: the API server is away"
    assert told.out == ""


async def test_waiting_ends_when_the_time_is_over(server: ScriptedApi, api: Api) -> None:
    report = await wait_until_healthy(lambda: collect(api, StatusOptions()), 0)
    assert not report.healthy


async def test_an_api_server_that_stays_away_is_no_verdict() -> None:
    async def look() -> StatusReport:
        raise ConfigError("the API server is away")

    with pytest.raises(UserError, match="is away"):
        await wait_until_healthy(look, 0)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` sets up the log and the memory of a process, which is not the tests'."""
    monkeypatch.setattr(log, "configure", lambda *_options: None)
    monkeypatch.setattr(loop, "run", asyncio.run)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (ConfigError("the API server is away"), "the API server is away"),
        (ExceptionGroup("", [ConfigError("a"), ConfigError("b")]), "a\nnetloom: b"),
        (OSError(24, "Too many open files"), "the cluster could not be asked: [Errno 24] Too many open files"),
        (
            ExceptionGroup("", [OSError(24, "Too many open files"), ConfigError("away")]),
            "the cluster could not be asked: [Errno 24] Too many open files; away",
        ),
    ],
)
def test_no_verdict_is_not_a_bad_one(
    failure: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(asked: StatusOptions, wait: float | None) -> StatusReport:
        raise failure

    monkeypatch.setattr(status, "_seen", fail)
    assert status.run(StatusOptions(), None, lambda report: pytest.fail("there is none")) == status.EXIT_NOT_ASKED
    assert capsys.readouterr().err == f"netloom: {said}\n"


@pytest.mark.usefixtures("in_this_process")
def test_a_fault_of_our_own_is_not_taken_for_the_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(asked: StatusOptions, wait: float | None) -> StatusReport:
        raise ExceptionGroup("", [OSError(24, "no"), KeyError("x")])

    monkeypatch.setattr(status, "_seen", fail)
    with pytest.raises(ExceptionGroup):
        status.run(StatusOptions(), None, lambda report: None)


def test_a_report_has_all_of_a_verdict() -> None:
    from netloom.api.verdict import Verdict

    assert set(Verdict.__struct_fields__) < set(StatusReport.__struct_fields__)
    assert msgspec.structs.fields(StatusReport)[0].encode_name == "time"

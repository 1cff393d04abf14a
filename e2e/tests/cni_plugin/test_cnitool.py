"""The plugin as the CNI's own library calls it, which container runtimes use."""

import json
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from netloom_e2e import binaries, cni_plugin
from netloom_e2e.cni_plugin import CALL_SECONDS, Plugin
from netloom_e2e.namespaces import Namespace
from netloom_e2e.scripted_agent import Conversation, Request, Script, ScriptedAgent, answering

Agents = Callable[..., AbstractContextManager[ScriptedAgent]]

VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]


@dataclass(frozen=True)
class Tool:
    """cnitool with a conflist of the plugin alone. What libcni keeps of results is kept in a folder of the test."""

    program: Path
    plugin: Plugin
    folder: Path
    pod: Namespace

    def configure(self, version: str) -> None:
        conflist = {"cniVersion": version, "name": "netloom", "plugins": [{"type": cni_plugin.NAME, "mtu": 1400}]}
        (self.folder / "05-netloom.conflist").write_text(json.dumps(conflist))

    def __call__(self, command: str) -> "subprocess.CompletedProcess[str]":
        cache = self.folder / "var"
        cache.mkdir(exist_ok=True)
        private = ("unshare", "--mount", "sh", "-ec", f'mount --bind {cache} /var/lib; exec "$0" "$@"')
        environment = {
            **self.plugin.environment({"PATH": str(self.plugin.program.parent), "ARGS": "K8S_POD_NAME=web-0"}),
            "NETCONFPATH": str(self.folder),
        }
        return subprocess.run(
            [*private, self.program, command, "netloom", f"/run/netns/{self.pod.name}"],
            capture_output=True,
            text=True,
            env=environment,
            timeout=CALL_SECONDS,
        )


@pytest.fixture(scope="session")
def program() -> Path:
    return binaries.cnitool()


@pytest.fixture
def tool(program: Path, plugin: Plugin, folder: Path, pod: Namespace) -> Tool:
    made = Tool(program, plugin, folder, pod)
    made.configure("1.1.0")
    return made


def result(version: str) -> dict[str, object]:
    address: dict[str, object] = {"address": "10.0.0.7/32", "interface": 0}
    if version.startswith("0."):
        address["version"] = "4"
    return {"cniVersion": version, "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}], "ips": [address]}


def being_an_agent(version: str) -> Script:
    """ADD has a result, all else nothing to say."""

    def script(plugin: Conversation) -> Request:
        request = plugin.receive()
        plugin.answer(0, json.dumps(result(version)).encode() if request.headers["COMMAND"] == "ADD" else b"")
        return request

    return script


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pod_comes_is_looked_at_and_goes(tool: Tool, agent: Agents, version: str) -> None:
    tool.configure(version)
    calls = ["add", "del"] if version == "0.3.1" else ["add", "check", "del"]
    with agent(being_an_agent(version)) as asked:
        done = [tool(call) for call in calls]
        assert [(each.returncode, each.stderr) for each in done] == [(0, "")] * len(calls)
        assert json.loads(done[0].stdout)["ips"][0]["address"] == "10.0.0.7/32"
        assert [request.headers["COMMAND"].lower() for request in asked.requests] == calls
        assert all(request.headers["CONTAINERID"].startswith("cnitool-") for request in asked.requests)
        configs = [json.loads(request.stdin) for request in asked.requests]
        assert [(each["name"], each["cniVersion"], each["mtu"]) for each in configs] == [
            ("netloom", version, 1400)
        ] * len(calls)
        if version != "0.3.1":
            assert configs[-1]["prevResult"]["ips"][0]["address"] == "10.0.0.7/32"


def test_garbage_is_collected_and_the_status_told(tool: Tool, agent: Agents) -> None:
    with agent(being_an_agent("1.1.0")) as asked:
        for call in ("add", "status", "gc"):
            assert tool(call).returncode == 0
        commands = [request.headers["COMMAND"] for request in asked.requests]
        assert commands == ["ADD", "STATUS", "DEL", "GC"]  # the library makes a deletion of what it knows itself
        assert "cni.dev/valid-attachments" not in json.loads(asked.requests[-1].stdin)  # no list is not an empty one
        assert [len(request.files) for request in asked.requests] == [2, 0, 2, 0]


def test_without_an_agent_the_library_is_told_what_it_understands(tool: Tool, agent: Agents, plugin: Plugin) -> None:
    with agent(being_an_agent("1.1.0")):
        assert tool("add").returncode == 0
    away = f"Netloom's agent cannot be reached at {plugin.socket}: No such file or directory"
    way_out = "See whether Netloom's agent runs on this node, and what its log says."
    for call in ("add", "check", "status"):
        done = tool(call)
        assert (done.returncode, away in done.stdout + done.stderr) == (1, True), done
        assert way_out in done.stdout + done.stderr
    assert tool("del").returncode == 0
    [written] = plugin.deletions.iterdir()
    assert written.name.startswith("cnitool-")
    assert written.read_bytes().startswith(b"NETLOOM-CNI/1 ")
    assert b"K8S_POD_NAME=web-0" in written.read_bytes()


def test_an_error_of_the_agent_reaches_the_library(tool: Tool, agent: Agents) -> None:
    error = b'{"cniVersion":"1.1.0","code":7,"msg":"pool blue is missing","details":"Create it."}'
    with agent(answering(1, error)):
        done = tool("add")
    assert done.returncode == 1
    assert "pool blue is missing; Create it." in done.stdout + done.stderr


def test_the_nodes_own_namespace_is_refused_through_the_library_too(tool: Tool, agent: Agents) -> None:
    with agent(answering(0, b"{}")) as asked:
        own = Tool(tool.program, tool.plugin, tool.folder, Namespace("../../proc/self/ns/net"))
        done = own("add")
        assert (done.returncode, asked.requests) == (1, [])
    assert "is the network namespace that the plugin was called in" in done.stdout + done.stderr

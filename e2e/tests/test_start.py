"""A cluster that comes up in no good order: every role is there before its API server, and waits for it.

One story, as each part of it takes seconds: the API server is away, then it is there with a certificate that nobody
here trusts yet, then the CA is renewed on disk.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from netloom.webhook.names import Scope
from netloom_e2e import crds
from netloom_e2e.agents import NETWORK, Agents, network
from netloom_e2e.certificates import Authority
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.gateway import gateway
from netloom_e2e.guard import Guard, Guards
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.mesh import NETLOOM, facts, state
from netloom_e2e.operators import RBAC, USER, Operators


@pytest.fixture(scope="module")
def plane(control_plane_binaries: Path) -> Iterator[ControlPlane]:
    """Its own, as its certificate changes."""
    with ControlPlane("start", hosts=[Lab.address]) as running:
        crds.install(running)
        running.kubectl("apply", "--server-side", "--filename", RBAC)
        yield running


@pytest.fixture
def agents(plane: ControlPlane, tmp_path: Path) -> Iterator[Agents]:
    with Lab(f"nls{os.getpid() % 10000}") as lab, gateway(lab, plane.port):
        made = Agents(lab, plane, tmp_path)
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def operators(plane: ControlPlane) -> Iterator[Operators]:
    started = Operators(plane)
    yield started
    started.kill()


@pytest.fixture
def guards(plane: ControlPlane) -> Iterator[Guards]:
    guards = Guards(plane, Scope())
    yield guards
    guards.kill()


def trusting(kubeconfig: Path, ca: Path, folder: Path) -> Path:
    """A copy of a kubeconfig that names another CA bundle."""
    content = yaml.safe_load(kubeconfig.read_text())
    content["clusters"][0]["cluster"]["certificate-authority"] = str(ca)
    copy = folder / kubeconfig.name
    copy.write_text(yaml.safe_dump(content))
    return copy


def start_agent(agents: Agents, machine: Machine, kubeconfig: Path) -> None:
    command = [str(NETLOOM), "agent", "--kubeconfig", str(kubeconfig), "--node-name", machine.node]
    with (agents.folder / f"{machine.node}.log").open("a") as log:
        agents.agents[machine.node] = machine.popen([*command, "--run-dir", agents.run_dir(machine)], stdout=log)


def readiness(machine: Machine) -> str:
    return machine.ask(9964, "/readyz")


def test_roles_wait_for_an_api_server_that_is_not_there(
    plane: ControlPlane, agents: Agents, operators: Operators, guards: Guards, tmp_path: Path
) -> None:
    plane.client.request("POST", NETWORK, network())
    n1, _ = agents.enter("n1"), agents.enter("n2")
    ca = tmp_path / "trusted.crt"
    ca.write_bytes(plane.authority.certificate.read_bytes())
    for_agent = trusting(plane.kubeconfig(host=agents.lab.address), ca, tmp_path)
    for_operator = trusting(plane.kubeconfig(USER), ca, tmp_path)
    start_agent(agents, n1, for_agent)
    agents.in_sync(n1, peers=1)
    before = state(n1)
    agents.agents["n1"].send_signal(signal.SIGKILL)
    agents.agents["n1"].wait(20)
    guards.install()
    for_guard = trusting(guards.kubeconfig(), ca, tmp_path)

    plane.kill_apiserver()
    start_agent(agents, n1, for_agent)
    operator = operators.start(kubeconfig=for_operator)
    guard = guards.start(kubeconfig=for_guard)
    process = Guard(operator.process, operator.address)

    def all_say(what: str) -> None:
        for name, says in (
            ("operator", process.readiness),
            ("guard", guard.readiness),
            ("agent", lambda: readiness(n1)),
        ):
            wait_for(f"the {name} says {what}: {says()}", lambda says=says: what in says(), deadline=30)  # type: ignore[misc]

    all_say("[-] API server: the API server at https://")
    all_say("cannot be reached: ")
    assert operator.healthy()
    assert guard.healthy()
    wait_for("the agent answers", lambda: facts(n1).get("inSync") is False)
    assert state(n1) == before

    new = Authority(tmp_path / "new", "the next CA")
    plane.present(new)
    plane.start_apiserver()
    all_say(f"shows a certificate that {ca} does not trust: ")
    assert state(n1) == before

    ca.write_bytes(new.certificate.read_bytes())
    wait_for("the operator is ready", lambda: operator.approves("/readyz"), deadline=60)
    wait_for("the guard is ready", guard.ready, deadline=60)
    wait_for("the agent is ready", lambda: "[-]" not in (readiness(n1) or "[-]"), deadline=60)
    agents.in_sync(n1, peers=1)
    assert facts(n1)["netlinkWrites"] == 0
    assert state(n1) == before

"""The command line as a shell meets it: whatever is closed, full, locked, cut off or typed wrong, there is a sentence
and an exit status, and never a traceback. The table is run at once, as it is mostly waiting for Python to start."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from netloom_e2e import console
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.fixtures import Kubectl
from netloom_e2e.lab import Lab, Machine, environment, wait_for
from netloom_e2e.mesh import NETLOOM, facts, state

MANIFESTS = """\
{apiVersion: netloom.dev/v1alpha1, kind: NetloomNetwork, metadata: {name: default}, spec: {ipam: {mode: kubernetes}}}
---
apiVersion: netloom.dev/v1alpha1
kind: NetloomNode
metadata: {name: me}
spec: {addresses: [{type: InternalIP, ip: 10.9.9.9}], ipam: {mode: kubernetes, podCIDRs: [10.44.0.0/24]}}
"""
CONFIG = """\
{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: c}}],
clusters: [{name: c, cluster: {server: "%s"}}]}
"""
BROKEN = """\
from netloom.cli import process
def broken(): raise ValueError("a\\nb")
process.end(process.run(broken))
"""
LONG = """\
from netloom.cli import process
from netloom.runtime import loop
async def nothing(): pass
def long():
    loop.run(nothing())
    print("x" * 400_000)
process.end(process.run(long))
"""
ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "status",
    "plan",
    "guard",
    "guard install",
    "cleanup",
    "uninstall",
    "help",
    "completion",
    "version",
    "agent",
    "webhook",
)
PLAN = "unshare -n netloom plan --manifests good --node-name me"
INSTALL = "netloom guard install --for cilium --url https://127.0.0.1:9443"
SOMEBODY = "setpriv --reuid 12345 --regid 12345 --clear-groups --"
FEWER_RIGHTS = "setpriv --bounding-set=-net_admin --inh-caps=-net_admin --"
UNREAD = "\nnetloom: ".join(f"{each} is left out: .*NET_ADMIN.*" for each in ("masquerade", "senders", "forwarding"))
FULL = "the output cannot be written: No space left on device"


class Try(NamedTuple):
    """A line of a shell, how it ends, and what it says: on standard error, without `netloom: ` before it."""

    line: str
    status: int
    said: str


def address(text: str, why: str) -> Try:
    line = f"printf '%s' '{CONFIG % text}' >$$ && netloom plan --kubeconfig $$"
    return Try(line, 1, rf"kubeconfig \d+, context 'a': the server address '{re.escape(text)}' cannot be used: {why}")


TRIES = [
    # a kubeconfig that is none
    address("https://[::1", "Invalid IPv6 URL"),
    address("https://h:99999", "Port out of range 0-65535"),
    address("localhost:8080", "it is not of the form https://HOST:PORT"),
    address("ftp://localhost", "it is not of the form https://HOST:PORT"),
    address("https://exa mple", "it is not of the form https://HOST:PORT"),
    Try("netloom status --wait 1s --kubeconfig no", 3, "kubeconfig no does not exist"),
    Try("netloom plan --kubeconfig .", 1, "kubeconfig . is no file"),
    Try(r"printf '\377\376\000' >u && netloom plan --kubeconfig u", 1, "kubeconfig u is not YAML: .*"),
    Try("printf '[%.0s' {1..5000} >d && netloom plan --kubeconfig d", 1, "kubeconfig d is not YAML: .*"),
    Try("echo contexts: 5 >o && netloom plan --kubeconfig o", 1, "kubeconfig o sets no current-context.*"),
    Try(f"{SOMEBODY} netloom plan --kubeconfig locked/c", 1, "kubeconfig locked/c cannot be read: Permission denied"),
    Try(
        f"HOME=$PWD/locked {SOMEBODY} netloom plan",
        1,
        "kubeconfig .*locked/.kube/config cannot be read: Perm.* denied",
    ),
    Try(f"unset HOME; {SOMEBODY} netloom plan", 1, "no way to an API server: .*~/.kube/config does not exist.*"),
    Try("netloom plan --kubeconfig '~nobody-here/c'", 1, "kubeconfig ~nobody-here/c: whose home directory .*"),
    Try("mkdir gone && cd gone && rmdir ../gone && netloom plan --kubeconfig c", 1, "kubeconfig c does not exist"),
    # files in the way
    Try(f"{PLAN} --run-dir file", 1, "--run-dir file is no directory"),
    Try("unshare -n netloom agent -f good --node-name me --run-dir file", 1, "--run-dir file is no directory"),
    Try("unshare -n netloom cleanup --yes --run-dir file", 1, "--run-dir file is no directory"),
    Try("unshare -n netloom cleanup --yes --run-dir odd", 1, "odd/sysctl.json: Is a directory"),
    Try(f"{PLAN} --run-dir odd >/dev/null", 2, ""),
    Try("netloom plan --manifests bad", 1, "m.yaml, document 1, (.|\n)*\nnetloom: n.yaml, .*"),
    # streams
    Try("netloom version >/dev/full", 1, FULL),
    Try(f"{INSTALL} >/dev/full", 1, FULL),
    Try(f"{PLAN} >/dev/full", 1, FULL),
    Try("netloom version >&-", 1, "the output cannot be written: Bad file descriptor"),
    Try("netloom version <&- 2>&- >/dev/null", 0, ""),
    Try("netloom nonsense 2>/dev/full", 1, ""),
    Try(f"{INSTALL} | head -1 >/dev/null", 0, ""),
    Try("PYTHONUNBUFFERED=1 python long.py | (sleep 2; test $(wc -c) = 400001)", 0, ""),
    Try("netloom --help | true; exit ${PIPESTATUS[0]}", 141, ""),
    Try(
        "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 netloom plan -f /ü",
        1,
        r"--manifests /\\udcc3\\udcbc: there is no.*",
    ),
    # limits
    *(Try(f"ulimit -n {n}; netloom plan --kubeconfig c", 1, ".*(Too many open files|refused).*") for n in (6, 16)),
    Try(f"ulimit -n 12; {PLAN}", 1, "Too many open files: .* raise the limit, as by `ulimit -n 1024`"),
    # rights
    Try(f"unshare -n {FEWER_RIGHTS} netloom plan -f good --node-name me >/dev/null", 2, UNREAD),
    Try(f"unshare -n {FEWER_RIGHTS} netloom plan -f good --features masquerade --node-name me", 1, ".*NET_ADMIN.*"),
    Try(f"{SOMEBODY} netloom plan -f good --node-name me >/dev/null", 2, UNREAD),
    Try(f"unshare -n {FEWER_RIGHTS} netloom cleanup --dry-run >/dev/null", 0, UNREAD),
    # a fault of our own
    Try(
        "python broken.py",
        1,
        r"ValueError: a b \(.*\). This is a fault of Netloom: please report it, .*NETLOOM_LOG_LEVEL=debug.*",
    ),
    Try("NETLOOM_LOG_LEVEL=debug python broken.py 2>&1 | grep -c '^Traceback' >/dev/null", 0, ""),
    # what would be ignored
    Try("netloom plan -f good --kubeconfig c", 2, "--kubeconfig has no effect with --manifests, .*"),
    Try("netloom agent -f good --context a", 2, "--context has no effect with --manifests, .*"),
    Try(f"KUBECONFIG=c {PLAN} >/dev/null", 2, ""),
    Try("netloom operator --no-leader-elect --lease-namespace a --kubeconfig no", 1, "kubeconfig no does not exist"),
    Try("netloom operator --dns-name a", 2, "--dns-name has no effect without --webhook-address, .*"),
    Try("netloom webhook --for cilium --agent-user a", 2, "--agent-user has no effect with --for cilium, .*"),
    Try(
        "netloom webhook --for netloom --cilium-namespace a",
        2,
        "--cilium-namespace has no effect with --for netloom, .*",
    ),
    Try(
        "netloom webhook --tls-ca-file a",
        2,
        "--tls-ca-file has no effect without --tls-cert-file. Give that as well, .*",
    ),
    Try(f"{INSTALL} --replicas 3", 2, "--replicas has no effect with --url: .* Leave one of the two out."),
    Try(f"{INSTALL} --context a", 2, "--context has no effect without --apply. .*"),
    # cleanup asks
    Try(
        "netloom cleanup </dev/null",
        2,
        "cleanup takes the network from this machine's pods, .* give --yes, or --dry-run.*",
    ),
    Try("netloom uninstall </dev/null", 2, "uninstall takes the network from all pods of the cluster, .* give --yes"),
]


class Done(NamedTuple):
    status: int
    said: str


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """Of all tries, run side by side in one folder."""
    folder = tmp_path_factory.mktemp("tries")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    for name in ("good", "bad", "odd/sysctl.json", "locked/.kube"):
        (folder / name).mkdir(parents=True)
    (folder / "good" / "m.yaml").write_text(MANIFESTS)
    for name in ("m", "n"):
        (folder / "bad" / f"{name}.yaml").write_text(MANIFESTS.replace("{mode: kubernetes}", "{mode: 7}"))
    (folder / "c").write_text(CONFIG % "https://127.0.0.1:1")
    (folder / "file").touch()
    (folder / "broken.py").write_text(BROKEN)
    (folder / "long.py").write_text(LONG)
    (folder / "locked").chmod(0o700)
    given = {name: value for name, value in environment().items() if name not in ("KUBECONFIG", "NODE_NAME")}
    given["PATH"] = f"{NETLOOM.parent}:{given['PATH']}"

    def outcome(each: Try) -> Done:
        done = subprocess.run(
            ["bash", "-c", each.line], cwd=folder, env=given, capture_output=True, text=True, timeout=60, check=False
        )
        return Done(done.returncode, done.stderr.strip())

    with ThreadPoolExecutor(4) as pool:
        return dict(zip([each.line for each in TRIES], pool.map(outcome, TRIES), strict=True))


@pytest.mark.parametrize("each", TRIES, ids=lambda each: each.line.replace(str(CONFIG), "")[-60:])
def test_whatever_is_wrong_is_said_in_a_sentence(each: Try, outcomes: dict[str, Done]) -> None:
    done = outcomes[each.line]
    assert done.status == each.status, done.said
    assert re.fullmatch(f"netloom: {each.said}" if each.said else "", done.said), done.said


def run(*command: str | Path, check: bool = True, **more: str) -> str:
    given = {**environment(), **more}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=given, check=check).stdout


def test_ctrl_c_ends_without_noise(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        (tmp_path / "c").write_text(CONFIG % f"http://127.0.0.1:{mute.getsockname()[1]}")
        command = [NETLOOM, "plan", "--kubeconfig", tmp_path / "c"]
        with (
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as asking,
            mute.accept()[0],
        ):
            asking.send_signal(signal.SIGINT)
            assert (asking.communicate(timeout=20)[1], asking.returncode) == ("", 130)


def test_help_starts_without_what_it_does_not_need() -> None:
    program = (
        "import sys; from netloom.cli import main; sys.argv[0] = 'netloom'\ntry: main()\nfinally: print(*sys.modules)"
    )
    shown = run(sys.executable, "-c", program, "--help")
    loaded = set(shown.splitlines()[-1].split())
    assert "typer" in loaded
    assert loaded.isdisjoint({"aiohttp", "pyroute2", "kubernetes_asyncio", "rich", "yaml", "structlog", "asyncio"})


def test_help_and_version_are_where_people_look() -> None:
    shown = run(NETLOOM, "--help")
    assert run(NETLOOM, "help") == run(NETLOOM, "-h") == shown
    headings = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert headings[1:] == [
        "See how things are",
        "Look after a cluster and its machines",
        "About this program",
        "Roles, which pods and services run",
    ]
    commands = re.findall(r"^  (\w+) {2,}", shown, re.MULTILINE)
    program = "import typer; from netloom.cli.app import app; print(*typer.main.get_command(app).commands)"
    assert sorted(commands) == sorted(run(sys.executable, "-c", program).split())
    assert (commands[0], commands[-3:]) == ("status", ["agent", "operator", "webhook"])
    assert run(NETLOOM, "help", "guard", "install") == run(NETLOOM, "guard", "install", "--help")
    assert run(NETLOOM, "--version").split() == run(NETLOOM, "version").split()[:2]
    for names in (["nonsense"], ["status", "nonsense"], ["guard", "install", "nonsense"]):
        refused = subprocess.run([NETLOOM, "help", *names], capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert " ".join(names) in refused.stderr


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, *command: str | Path, **more: str) -> None:
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, {**environment(), "TERM": "dumb", **more})
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait(self, pattern: str, deadline: float = 30.0) -> None:
        """Until this was printed since the last wait."""
        until = time.monotonic() + deadline
        while not (found := re.search(pattern, self.seen)):
            if not select.select([self._master], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError(f"{pattern} is not in {self.seen!r}")
            with contextlib.suppress(OSError):  # the other end is closed
                got = os.read(self._master, 4096)
                self.seen += got.decode(errors="replace")
                continue
            raise AssertionError(f"{pattern} is not in {self.seen!r}")
        self.seen = self.seen[found.end() :]

    def end(self) -> int:
        """Its exit status."""
        with contextlib.suppress(OSError):
            while os.read(self._master, 4096):
                pass
        os.close(self._master)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


SHELLS = {
    "bash": ("bash --norc --noprofile -i", "source <(netloom completion bash)"),
    "zsh": ("zsh -f -i", "autoload -Uz compinit; compinit -u -D; source <(netloom completion zsh)"),
    "fish": ("fish --no-config -i", "netloom completion fish | source"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes(shell: str, tmp_path: Path) -> None:
    """Pressed in the real shell, with the script loaded as the help says: what is run then is the whole word."""
    start, load = SHELLS[shell]
    path = f"{NETLOOM.parent}:{os.environ['PATH']}"
    terminal = Terminal(*start.split(), PATH=path, HOME=str(tmp_path), PS1="> ", LANG="C.UTF-8")
    (tmp_path / "a-file-of-mine").touch()
    terminal.type(f"cd {tmp_path}; {load}; echo load''ed\n")
    terminal.wait("loaded")
    for typed, printed in (
        ("netloom vers\t", r"\Wpython 3\."),
        ("netloom version --out\tjson", r'{"netloom":'),
        ("netloom version --output=js\t", r'{"netloom":'),
        ("netloom version -o te\t", r"\Wpython 3\."),
        ("netloom guard ins\t", r"Missing option '--for'"),
        ("netloom plan --manifests a-f\t", r"--manifests a-file-of-mine: there is no such"),
    ):
        terminal.type(f"{typed}\n")
        terminal.wait(printed)
    terminal.type("exit\n")
    terminal.end()


def test_kubectl_finds_it_as_a_plugin_and_completes_it(kubectl: Kubectl) -> None:
    env = {**environment(), "PATH": f"{NETLOOM.parent}:{os.environ['PATH']}"}
    assert kubectl("netloom", "--version", env=env).stdout == run(NETLOOM, "--version")
    assert kubectl("netloom", "plan", "--help", env=env).stdout.startswith("Usage: kubectl netloom plan ")
    found = kubectl("__complete", "netloom", "sta", env=env).stdout.splitlines()
    assert found[0].startswith("status\t")
    assert found[-1] == ":4"
    found = kubectl("__complete", "netloom", "version", "-o", "", env=env).stdout.splitlines()
    assert found[:2] == ["text", "json"]


def test_kubectl_shows_what_people_look_for(crds_installed: ControlPlane, kubectl: Kubectl) -> None:
    listed = kubectl("api-resources", "--categories=netloom", "-o", "name").stdout.splitlines()
    assert sorted(name.partition(".")[0] for name in listed) == [
        "netloomippools",
        "netloomnetworks",
        "netloomnodes",
        "netloomprefilters",
    ]
    name = "columns"
    spec = {
        "addresses": [{"type": "InternalIP", "ip": "192.168.9.9"}],
        "ipam": {"mode": "cluster-pool", "podCIDRs": ["10.42.9.0/24", "fd00:42:0:9::/64"]},
    }
    manifest = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNode", "metadata": {"name": name}, "spec": spec}
    kubectl("apply", "-f", "-", input=json.dumps(manifest))
    try:
        head, line = kubectl("get", "netloomnode", name).stdout.splitlines()
        assert line.split()[:4] == [name, "192.168.9.9", "10.42.9.0/24", "fd00:42:0:9::/64"]
        assert re.split(r"\s{2,}", head)[:5] == ["NAME", "ADDRESS", "POD CIDR", "SECOND CIDR", "ALLOCATED"]
    finally:
        kubectl("delete", "netloomnode", name)


def test_a_plan_without_rights_is_one_sentence(crds_installed: ControlPlane) -> None:
    command = [NETLOOM, "plan", "--kubeconfig", crds_installed.kubeconfig("nobody-in-particular")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), check=False)
    assert done.returncode == 1
    said = r'netloom: the objects may not be read: .*User "nobody-in-particular" cannot list resource.*\n'
    assert re.fullmatch(said, done.stderr), "one line, and no log"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Machine]:
    with Lab(f"nlq{os.getpid() % 10000}") as lab:
        machine = lab.add_node("n1")
        (tmp_path / "m.yaml").write_text(MANIFESTS.replace("10.9.9.9", machine.address))
        yield machine


def test_cleanup_asks_and_does_nothing_beside_an_agent(node: Machine, tmp_path: Path) -> None:
    given = ["--run-dir", str(tmp_path / "run")]
    agent = [str(NETLOOM), "agent", "--manifests", str(tmp_path), "--node-name", "me", "--log-level", "error", *given]
    running = node.popen(agent, stdout=subprocess.DEVNULL)
    try:
        wait_for("all of it", lambda: facts(node).get("inSync"), deadline=30)
        before = state(node)
        beside = subprocess.run(
            [*node.enter, NETLOOM, "cleanup", "--yes", *given], capture_output=True, text=True, timeout=60, check=False
        )
        assert beside.returncode == 1
        said = (
            r"netloom: An agent runs on this machine \(process \d+\), and would put everything back at once. Stop.*\n"
        )
        assert re.fullmatch(said, beside.stderr)
        assert state(node) == before
    finally:
        running.terminate()
        running.wait(20)

    planned = node.run(str(NETLOOM), "cleanup", "--dry-run", *given)
    assert "ip link delete netloom_vxlan" in planned
    for answer, status, left in (("\n", 1, True), ("no\n", 1, True), ("y\n", 0, False)):
        terminal = Terminal(*node.enter, NETLOOM, "cleanup", *given)
        terminal.wait(r"ip link delete netloom_vxlan")
        terminal.wait(r"Remove these \d+\? \[y/N\] ")
        assert state(node) == before, "not before the answer"
        terminal.type(answer)
        assert (terminal.end(), "netloom" in node.ip("link")) == (status, left)
    terminal = Terminal(*node.enter, NETLOOM, "cleanup", *given)
    terminal.wait("nothing to remove")
    assert terminal.end() == 0


def test_the_kubeconfig_of_the_table_is_good_but_for_its_address() -> None:
    assert yaml.safe_load(CONFIG % "x")["clusters"][0]["cluster"]["server"] == "x"


def test_the_page_about_it_is_true() -> None:
    """Mended by `python -m netloom_e2e.console docs/cli.md`."""
    page = (ROOT / "docs" / "cli.md").read_text()
    assert console.rendered(page) == page
    named = {re.sub(r"=.*", "", option) for option in re.findall(r"(?<![\w-])--[a-z][\w-]+", page)}
    offered = run(NETLOOM, "--help") + "".join(run(NETLOOM, "help", *each.split()) for each in COMMANDS)
    foreign = {"--bounding-set", "--inh-caps"}
    assert named - foreign - set(re.findall(r"--[a-z][\w-]+", offered)) == set()
    assert set(re.findall(r"(?<!inet )netloom (?!COMMAND)([a-z]+)", re.sub(r"kubectl \w+ netloom", "", page))) <= {
        *(each.split()[0] for each in COMMANDS),
    }

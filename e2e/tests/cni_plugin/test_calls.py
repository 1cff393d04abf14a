"""A call is handed over as it came, with what the agent needs of the pod's namespace, and its answer is printed."""

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from netloom_e2e import namespaces
from netloom_e2e.cni_plugin import Plugin
from netloom_e2e.namespaces import Namespace
from netloom_e2e.scripted_agent import ScriptedAgent, answering

Agents = Callable[..., AbstractContextManager[ScriptedAgent]]

RESULT = json.dumps({"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.7/32"}]}).encode()
IPV6 = "net.ipv6.conf"


def test_a_call_is_handed_over_as_it_came_and_the_answer_is_printed(
    either_plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes
) -> None:
    with agent(answering(0, RESULT)) as asked:
        result = either_plugin.call({"COMMAND": "ADD", **variables}, config)
        assert (result.status, result.output, result.said) == (0, RESULT, "")
        lines = "".join(f"{name}={value}\n" for name, value in {"COMMAND": "ADD", **variables}.items()).encode()
        body = lines + b"\n" + config
        assert asked.request.raw == b"NETLOOM-CNI/1 %d\n" % len(body) + body


def test_variables_that_are_empty_count_as_not_set(
    plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes
) -> None:
    with agent(answering()) as asked:
        assert plugin.call({**variables, "COMMAND": "DEL", "NETNS": "", "ARGS": ""}, config).status == 0
        assert asked.request.headers == {
            "COMMAND": "DEL",
            "CONTAINERID": "3f4e",
            "IFNAME": "eth0",
            "PATH": "/opt/cni/bin",
        }
        assert asked.request.files == ()


@pytest.mark.parametrize("status", [1, 2, 255])
def test_an_error_of_the_agent_is_printed_with_its_status(
    plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes, status: int
) -> None:
    error = b'{"cniVersion":"1.1.0","code":7,"msg":"pool blue is missing","details":"Create it."}'
    with agent(answering(status, error)):
        result = plugin.call({"COMMAND": "ADD", **variables}, config)
    assert (result.status, result.output) == (status, error)


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
@pytest.mark.parametrize("way", ["by name", "by process"])
def test_the_agent_gets_the_namespace_and_a_socket_in_it(
    either_plugin: Plugin,
    agent: Agents,
    pod: Namespace,
    variables: dict[str, str],
    config: bytes,
    command: str,
    way: str,
) -> None:
    with _process_in(pod) as process, agent(answering(0, RESULT)) as asked:
        if way == "by process":
            variables["NETNS"] = f"/proc/{process.pid}/ns/net"
        assert either_plugin.call({"COMMAND": command, **variables}, config).status == 0
        namespace, inside = asked.request.files
        wanted = (namespaces.NETNS / pod.name).stat()
        assert (os.fstat(namespace).st_dev, os.fstat(namespace).st_ino) == (wanted.st_dev, wanted.st_ino)
        with socket.socket(fileno=os.dup(inside)) as netlink:
            assert (netlink.family, netlink.type, netlink.proto) == (
                socket.AF_NETLINK,
                socket.SOCK_RAW,
                socket.NETLINK_ROUTE,
            )
            assert b"e2e-lab" in _dump_of_links(netlink)  # the alias of the pod's loopback device


@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_what_is_about_no_pod_comes_without_a_namespace(
    plugin: Plugin, agent: Agents, config: bytes, command: str
) -> None:
    with agent(answering()) as asked:
        result = plugin.call({"COMMAND": command, "PATH": "/opt/cni/bin"}, config)
        assert (result.status, result.output, asked.request.files) == (0, b"", ())
        assert asked.request.headers == {"COMMAND": command, "PATH": "/opt/cni/bin"}


def test_a_configuration_of_four_megabytes_arrives_whole(
    either_plugin: Plugin, agent: Agents, variables: dict[str, str]
) -> None:
    begin, end = b'{"cniVersion":"1.1.0","name":"n","prevResult":"', b'"}'
    config = begin + b"x" * ((4 << 20) - len(begin) - len(end)) + end
    with agent(answering(0, RESULT)) as asked:
        assert either_plugin.call({"COMMAND": "ADD", **variables}, config).status == 0
        assert asked.request.stdin == config
        assert len(asked.request.files) == 2


def test_an_answer_of_four_megabytes_is_printed_whole(
    plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes
) -> None:
    output = b'{"ips":"' + b"x" * ((4 << 20) - 10) + b'"}'
    with agent(answering(0, output)):
        assert plugin.call({"COMMAND": "ADD", **variables}, config).output == output


# ------------------------------------------------------------------------------------------------------- the namespace


@pytest.mark.parametrize("netns", ["/run/netns/none-of-that-name", "/proc/4194304/ns/net", "file", "fifo", "folder"])
@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
def test_a_namespace_that_is_gone_is_an_error_except_for_a_deletion(
    either_plugin: Plugin,
    agent: Agents,
    folder: Path,
    variables: dict[str, str],
    config: bytes,
    netns: str,
    command: str,
) -> None:
    """A file of a namespace stays when its mount is gone."""
    (folder / "file").touch()
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    path = netns if netns.startswith("/") else str(folder / netns)
    with agent(answering(0, RESULT)) as asked:
        result = either_plugin.call({**variables, "COMMAND": command, "NETNS": path}, config)
        if command == "DEL":
            assert (result.status, asked.request.files) == (0, ())
            return
    why = "No such file or directory" if netns.startswith("/") else "Invalid argument"
    assert result.error == (
        4,
        f'CNI_NETNS "{path}" is no network namespace: {why}',
        "The container has ended, or has not begun.",
    )


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
def test_the_nodes_own_namespace_is_no_pods(
    plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes, command: str
) -> None:
    with agent(answering(0, RESULT)) as asked:
        result = plugin.call({**variables, "COMMAND": command, "NETNS": "/proc/self/ns/net"}, config)
        if command == "DEL":
            assert (result.status, asked.request.files) == (0, ())
            return
    assert result.error == (
        4,
        'CNI_NETNS "/proc/self/ns/net" is the network namespace that the plugin was called in',
        "A container has one of its own.",
    )


@pytest.mark.parametrize(
    ("override", "passes"), [("1", True), ("true", True), ("TRUE", True), ("0", False), ("", False)]
)
def test_but_may_be_given_on_purpose(
    plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes, override: str, passes: bool
) -> None:
    with agent(answering(0, RESULT)) as asked:
        said = {**variables, "COMMAND": "ADD", "NETNS": "/proc/self/ns/net", "NETNS_OVERRIDE": override}
        assert (plugin.call(said, config).status == 0) is passes
        if passes:
            assert os.fstat(asked.request.files[0]).st_ino == Path("/proc/self/ns/net").stat().st_ino
            assert "NETNS_OVERRIDE" not in asked.request.headers


def test_without_the_right_to_enter_it_says_so(
    plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes
) -> None:
    with agent(answering(0, RESULT)):
        drop = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
        code, message, way_out = plugin.call({"COMMAND": "ADD", **variables}, config, before=drop).error
    assert (code, way_out) == (5, "The runtime has to call the plugin as root, with CAP_SYS_ADMIN.")
    assert message == f'CNI_NETNS "{variables["NETNS"]}" cannot be entered: Operation not permitted'


# ---------------------------------------------------------------------------------------------------------------- IPv6


@pytest.mark.parametrize("switched", ["all", "default"])
def test_an_agent_without_rights_switches_ipv6_on_where_it_is_off(
    plugin: Plugin, agent: Agents, pod: Namespace, variables: dict[str, str], config: bytes, switched: str
) -> None:
    """With CAP_NET_ADMIN alone, and from its own namespace, by the third descriptor."""
    pod.run("sysctl", "-qw", f"{IPV6}.{switched}.disable_ipv6=1")
    pod.ip("link", "add", "dev0", "type", "bridge")
    try:
        with agent(answering(0, RESULT)) as asked:
            assert plugin.call({"COMMAND": "ADD", **variables}, config).status == 0
            _, inside, switch = asked.request.files
            assert _add_ipv6_address(pod, inside) == "Permission denied"
            _with_net_admin_alone(switch, "import os, sys; os.write(int(sys.argv[1]), b'0')")
            assert _add_ipv6_address(pod, inside) == ""
        for name in ("all", "default", "lo", "dev0"):
            assert pod.run("sysctl", "-n", f"{IPV6}.{name}.disable_ipv6") == "0\n"
    finally:
        pod.ip("link", "delete", "dev0")
        pod.run("sysctl", "-qw", f"{IPV6}.all.disable_ipv6=0", f"{IPV6}.default.disable_ipv6=0")


def test_only_an_add_gets_the_switch(
    plugin: Plugin, agent: Agents, pod: Namespace, variables: dict[str, str], config: bytes
) -> None:
    pod.run("sysctl", "-qw", f"{IPV6}.all.disable_ipv6=1")
    try:
        with agent(answering()) as asked:
            assert plugin.call({"COMMAND": "CHECK", **variables}, config).status == 0
            assert len(asked.request.files) == 2
    finally:
        pod.run("sysctl", "-qw", f"{IPV6}.all.disable_ipv6=0")


def _with_net_admin_alone(file: int, code: str) -> None:
    only = ("--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin")
    command = ("setpriv", *only, sys.executable, "-c", code, str(file))
    subprocess.run(command, check=True, pass_fds=(file,), timeout=30)


def _add_ipv6_address(pod: Namespace, inside: int) -> str:
    """By the socket that was passed, as a process with CAP_NET_ADMIN alone; what the kernel says against it."""
    index = int(json.loads(pod.ip("-json", "link", "show", "dev0"))[0]["ifindex"])
    code = f"""
import os, socket, struct, sys
address = socket.inet_pton(socket.AF_INET6, "fd00::7")
body = struct.pack("=BBBBI", socket.AF_INET6, 128, 2, 0, {index}) + struct.pack("=HH", 20, 2) + address
netlink = socket.socket(fileno=int(sys.argv[1]))
netlink.send(struct.pack("=IHHII", 16 + len(body), 20, 0x505, 1, 0) + body)
error = -struct.unpack_from("=i", netlink.recv(65536), 16)[0]
sys.exit(os.strerror(error) if error else 0)
"""
    only = ("--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin")
    command = ("setpriv", *only, sys.executable, "-c", code, str(inside))
    done = subprocess.run(command, capture_output=True, text=True, pass_fds=(inside,), timeout=30, check=False)
    return done.stderr.strip()


# ------------------------------------------------------------------------------------------------------------ VERSION


def test_versions_are_told_without_an_agent(either_plugin: Plugin) -> None:
    result = either_plugin.call({"COMMAND": "VERSION"}, b'{"cniVersion":"1.0.0"}')
    assert (result.status, json.loads(result.output)) == (
        0,
        {"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]},
    )


@pytest.mark.parametrize("stdin", [b"", b"{", b'{"cniVersion":"9.9.9"}', b'{"cniVersion":7}'])
def test_and_to_whoever_asks_in_whatever_way(either_plugin: Plugin, stdin: bytes) -> None:
    result = either_plugin.call({"COMMAND": "VERSION"}, stdin)
    assert (result.status, json.loads(result.output)["cniVersion"]) == (0, "1.1.0")


@pytest.mark.parametrize("redirection", ["<&-", "</"])
def test_also_without_standard_input(either_plugin: Plugin, redirection: str) -> None:
    shell = ("sh", "-c", f'exec "$0" {redirection}')
    assert either_plugin.call({"COMMAND": "VERSION"}, b"", before=shell).status == 0


def test_and_to_a_person_at_a_terminal(plugin: Plugin) -> None:
    """Who types nothing, and wants no help."""
    terminal, inside = os.openpty()
    with os.fdopen(terminal, "wb"), os.fdopen(inside, "rb") as stdin:
        environment = plugin.environment({"COMMAND": "VERSION"}, seconds=3000)
        done = subprocess.run([plugin.program], stdin=stdin, capture_output=True, env=environment, timeout=30)
    assert (done.returncode, json.loads(done.stdout)["cniVersion"]) == (0, "1.1.0")


@contextmanager
def _process_in(place: Namespace) -> Iterator[subprocess.Popen[str]]:
    """Something that lives in a namespace."""
    process = place.popen(["sleep", "infinity"], stdout=subprocess.DEVNULL)
    try:
        wanted = (namespaces.NETNS / place.name).stat().st_ino
        own = Path(f"/proc/{process.pid}/ns/net")
        namespaces.wait_for("it has entered its namespace", lambda: own.stat().st_ino == wanted)
        yield process
    finally:
        process.kill()
        process.wait(30)


def _dump_of_links(netlink: socket.socket) -> bytes:
    request = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
    netlink.send(struct.pack("=IHHII", 16 + len(request), 18, 0x301, 1, 0) + request)
    return netlink.recv(1 << 16)

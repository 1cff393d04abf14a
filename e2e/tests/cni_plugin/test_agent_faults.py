"""The agent is away, slow, cut off or talks nonsense: what can be repeated fails and says so, and a deletion succeeds,
as it is written down.
"""

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from netloom_e2e.cni_plugin import CALL_SECONDS, Plugin, Result
from netloom_e2e.namespaces import wait_for
from netloom_e2e.scripted_agent import MAGIC, Conversation, Script, ScriptedAgent, answering

Agents = Callable[..., AbstractContextManager[ScriptedAgent]]

WAY_OUT = "See whether Netloom's agent runs on this node, and what its log says."
COMMANDS = ["ADD", "CHECK", "GC", "STATUS", "DEL"]
UNREAD = b'{"cniVersion":"1.1.0","name":"n","x":"' + b"x" * (3 << 20) + b'"}'


def check(plugin: Plugin, command: str, result: Result, why: str, code: int = 11) -> None:
    """That the call ended as it should where the agent is no help, and why."""
    written = list(plugin.deletions.iterdir()) if plugin.deletions.exists() else []
    if command == "DEL":
        assert (result.status, result.output) == (0, b"")
        assert result.said == (
            f"netloom-cni: {why}; the deletion of 3f4e:eth0 is written down in {plugin.deletions} for it\n"
        )
        assert [path.name for path in written] == ["3f4e:eth0"]
    else:
        assert result.error == (50 if command == "STATUS" else code, why, WAY_OUT)
        assert written == []


# ---------------------------------------------------------------------------------------------------------------- away


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", ["nothing", "a socket of the past", "a file"])
def test_where_nobody_listens_it_ends_at_once(
    either_plugin: Plugin, variables: dict[str, str], config: bytes, command: str, what: str
) -> None:
    if what == "a file":
        either_plugin.socket.touch()
    if what == "a socket of the past":
        with socket.socket(socket.AF_UNIX) as past:
            past.bind(str(either_plugin.socket))
    result = either_plugin.call({"COMMAND": command, **variables}, config)
    why = "No such file or directory" if what == "nothing" else "Connection refused"
    check(either_plugin, command, result, f"Netloom's agent cannot be reached at {either_plugin.socket}: {why}")


@pytest.mark.parametrize(("command", "code"), [("ADD", 5), ("DEL", 5), ("STATUS", 50)])
def test_who_is_not_root_is_no_agent_that_is_away(
    plugin: Plugin, folder: Path, agent: Agents, variables: dict[str, str], config: bytes, command: str, code: int
) -> None:
    program = folder / "netloom-cni"  # nobody else may enter the cache
    shutil.copy(plugin.program, program)
    folder.chmod(0o755)
    plugin.deletions.mkdir(0o700)
    with agent(answering()):
        plugin.socket.chmod(0o600)
        nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        result = Plugin(program, plugin.socket, plugin.deletions).call(
            {"COMMAND": command, **variables}, config, before=nobody
        )
    why = f"Netloom's agent cannot be reached at {plugin.socket}: Permission denied"
    assert (result.code, result.error[1].startswith(why)) == (code, True)
    if command == "DEL":
        assert result.error[1].endswith(f"cannot be written down in {plugin.deletions}: open: Permission denied")


# ---------------------------------------------------------------------------------------------------------------- slow


def silent(plugin: Conversation) -> None:
    plugin.receive()
    plugin.ignore()


def deaf(plugin: Conversation) -> None:
    plugin.ignore()


def trickling(plugin: Conversation) -> None:
    """There is something to read all the time, and it never ends."""
    plugin.receive()
    plugin.send(MAGIC + b"0 4000000\n")
    plugin.trickle()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("script", "why"),
    [
        (silent, "gives no answer"),
        (trickling, "gives no answer"),
        (deaf, "does not take the call"),
    ],
)
def test_the_deadline_is_one_for_the_whole_call(
    plugin: Plugin, agent: Agents, variables: dict[str, str], command: str, script: Script, why: str
) -> None:
    with agent(script):
        result = plugin.call({"COMMAND": command, **variables}, UNREAD, seconds=1)
    check(plugin, command, result, f"Netloom's agent at {plugin.socket} {why}: Operation timed out")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_agent_that_accepts_nobody_is_waited_for_as_long(
    plugin: Plugin, variables: dict[str, str], config: bytes, command: str
) -> None:
    with _crowded(plugin.socket):
        result = plugin.call({"COMMAND": command, **variables}, config, seconds=1)
    check(plugin, command, result, f"Netloom's agent cannot be reached at {plugin.socket}: Operation timed out")


def test_in_a_crowd_everybody_is_served(plugin: Plugin, variables: dict[str, str], config: bytes) -> None:
    """More pods begin at once than the kernel keeps callers for."""
    crowd = 30
    agent = ScriptedAgent(plugin.socket, answering(0, b"{}"), backlog=0)
    environment = plugin.environment({"COMMAND": "ADD", **variables})
    started = [
        subprocess.Popen([plugin.program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(crowd)
    ]
    for process in started:
        assert process.stdin
        process.stdin.write(config)
        process.stdin.close()
    wait_for("most of them wait for the kernel", lambda: sum(map(_is_connecting, started)) >= crowd - 2)
    with agent.running():
        assert [process.wait(CALL_SECONDS) for process in started] == [0] * crowd
    for process in started:
        assert process.stdout
        assert process.stdout.read() == b"{}"
        process.stdout.close()


def _is_connecting(process: "subprocess.Popen[bytes]") -> bool:
    return "unix_wait_for_peer" in Path(f"/proc/{process.pid}/wchan").read_text() or (
        Path(f"/proc/{process.pid}/syscall").read_text().split()[0] == "42"
    )


def _crowded(path: Path) -> ExitStack:
    """A socket that as many are connected to as the kernel lets wait, and nobody is accepted."""
    crowd = ExitStack()
    listener = crowd.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(path))
    listener.listen(0)
    while True:
        caller = crowd.enter_context(socket.socket(socket.AF_UNIX))
        caller.setblocking(False)
        try:
            caller.connect(str(path))
        except BlockingIOError:
            return crowd


# ------------------------------------------------------------------------------------------------ cut off, and nonsense


def saying(data: bytes) -> Script:
    def script(plugin: Conversation) -> None:
        plugin.receive()
        plugin.send(data)

    return script


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"N",
        MAGIC,
        MAGIC + b"0",
        MAGIC + b"0 7",
        MAGIC + b"0 7\n",
        MAGIC + b'0 7\n{"a":1',
        MAGIC + b"0 4194304\n{}",
    ],
)
def test_an_answer_that_is_cut_off_is_none(
    either_plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes, command: str, said: bytes
) -> None:
    with agent(saying(said)):
        result = either_plugin.call({"COMMAND": command, **variables}, config)
    why = f"Netloom's agent at {either_plugin.socket} hung up after {len(said)} bytes of an answer"
    check(either_plugin, command, result, why)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"NETLOOM-CNI/2 0 2\n{}",
        b"x" * 64,
        MAGIC + b"\n",
        MAGIC + b"0\n",
        MAGIC + b"0 \n",
        MAGIC + b" 0 2\n{}",
        MAGIC + b"0  2\n{}",
        MAGIC + b"0 2 \n{}",
        MAGIC + b"-1 2\n{}",
        MAGIC + b"0 -2\n{}",
        MAGIC + b"+0 2\n{}",
        MAGIC + b"256 2\n{}",
        MAGIC + b"0 4194305\n{}",
        MAGIC + b"0 18446744073709551618\n{}",
        MAGIC + b"99999999999999999999 2\n{}",
        MAGIC + b"0 " + b"0" * 60,
    ],
)
def test_what_is_no_answer_is_nonsense(
    either_plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes, command: str, said: bytes
) -> None:
    with agent(saying(said)):
        result = either_plugin.call({"COMMAND": command, **variables}, config)
    shown = said[:64].decode()
    if command != "DEL":
        shown = "".join(each if " " <= each <= "~" else "\ufffd" for each in shown)
    check(either_plugin, command, result, f'what listens at {either_plugin.socket} answers nonsense: "{shown}"', 5)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("status", "output"),
    [(0, b"Traceback"), (0, b"[]"), (0, b'{"a":'), (1, b""), (1, b"out of order"), (0, b"{}{}")],
)
def test_what_a_runtime_could_not_read_is_not_passed_on(
    either_plugin: Plugin,
    agent: Agents,
    variables: dict[str, str],
    config: bytes,
    command: str,
    status: int,
    output: bytes,
) -> None:
    with agent(answering(status, output)):
        result = either_plugin.call({"COMMAND": command, **variables}, config)
    why = f'what listens at {either_plugin.socket} answers nonsense: status {status} with "{output.decode()}"'
    check(either_plugin, command, result, why, 5)


def test_an_add_needs_a_result(plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes) -> None:
    with agent(answering(0, b"")):
        result = plugin.call({"COMMAND": "ADD", **variables}, config)
    check(plugin, "ADD", result, f'what listens at {plugin.socket} answers nonsense: status 0 with ""', 5)


def test_what_comes_behind_an_answer_is_not_printed(
    plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes
) -> None:
    with agent(saying(MAGIC + b"0 2\n{}NETLOOM-CNI/1 1 3\nxyz")):
        result = plugin.call({"COMMAND": "ADD", **variables}, config)
    assert (result.status, result.output) == (0, b"{}")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_agent_that_refuses_before_it_has_read_is_heard(
    either_plugin: Plugin, agent: Agents, variables: dict[str, str], command: str
) -> None:
    error = b'{"cniVersion":"1.1.0","code":11,"msg":"too many callers"}'
    with agent(lambda plugin: plugin.answer(1, error)):
        result = either_plugin.call({"COMMAND": command, **variables}, UNREAD)
    assert (result.status, result.output) == (1, error)


def test_descriptors_of_an_answer_do_no_harm(
    either_plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes
) -> None:
    def script(plugin: Conversation) -> None:
        plugin.receive()
        with Path("/dev/null").open() as file:
            plugin.send_with(MAGIC + b"0 2\n{}", file.fileno())

    with agent(script):
        result = either_plugin.call({"COMMAND": "ADD", **variables}, config)
    assert (result.status, result.output) == (0, b"{}")


def test_nothing_of_the_call_can_be_read_by_others(plugin: Plugin, variables: dict[str, str], config: bytes) -> None:
    before = os.umask(0)
    try:
        assert plugin.call({"COMMAND": "DEL", **variables}, config).status == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(plugin.deletions.stat().st_mode) == 0o700
    assert stat.S_IMODE((plugin.deletions / "3f4e:eth0").stat().st_mode) == 0o600

"""Streams that are closed, narrow or left by their reader, and signals at any moment."""

import fcntl
import os
import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from netloom_e2e.cni_plugin import CALL_SECONDS, Plugin
from netloom_e2e.namespaces import wait_for
from netloom_e2e.scripted_agent import Conversation, Request, ScriptedAgent, answering

Agents = Callable[..., AbstractContextManager[ScriptedAgent]]

RESULT = b'{"cniVersion":"1.1.0","ips":[]}'
LARGE = b'{"ips":"' + b"x" * (1 << 20) + b'"}'
_F_SETPIPE_SZ = 1031


def with_closed(streams: str) -> tuple[str, ...]:
    return ("sh", "-c", f'exec "$0" {streams}')


# ------------------------------------------------------------------------------------------------------ standard output


def test_where_nothing_can_take_the_place_of_a_closed_stream_it_is_told(
    plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes
) -> None:
    """As in a root of its own without devices."""
    before = ("unshare", "--mount", "sh", "-ec", 'mount -t tmpfs none /dev; exec "$0" <&-')
    with agent(answering(0, RESULT)) as asked:
        result = plugin.call({"COMMAND": "ADD", **variables}, config, before=before)
        assert (result.status, asked.requests) == (1, [])
    why = "netloom-cni: a standard stream is closed, and /dev/null cannot be opened in its place\n"
    assert (result.said, result.output) == (why, b"")


@pytest.mark.parametrize("streams", [">&-", ">&- 2>&-"])
def test_an_add_whose_result_nobody_would_see_is_not_begun(
    either_plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes, streams: str
) -> None:
    with agent(answering(0, RESULT)) as asked:
        result = either_plugin.call({"COMMAND": "ADD", **variables}, config, before=with_closed(streams))
        assert (result.status, asked.requests) == (1, [])
    assert result.said == ("" if "2" in streams else "netloom-cni: the result cannot be printed: Bad file descriptor\n")


def test_nor_where_its_reader_has_gone(plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with agent(answering(0, RESULT)) as asked, os.fdopen(writing, "wb") as stdout:
        done = _call(plugin, {"COMMAND": "ADD", **variables}, config, stdout)
        assert (done.returncode, asked.requests) == (1, [])
    assert done.stderr == b"netloom-cni: the result cannot be printed: Broken pipe\n"


@pytest.mark.parametrize("command", ["CHECK", "DEL"])
def test_what_has_nothing_to_say_works_with_all_streams_closed(
    either_plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes, command: str
) -> None:
    """None of them becomes the number of a socket."""
    with agent(answering()) as asked:
        result = either_plugin.call({"COMMAND": command, **variables}, config, before=with_closed(">&- 2>&-"))
        assert (result.status, asked.request.stdin) == (0, config)


def test_a_deletion_is_written_down_with_standard_error_closed(
    either_plugin: Plugin, variables: dict[str, str], config: bytes
) -> None:
    assert either_plugin.call({"COMMAND": "DEL", **variables}, config, before=with_closed(">&- 2>&-")).status == 0
    [written] = either_plugin.deletions.iterdir()
    assert written.read_bytes().endswith(b"\n\n" + config)


def test_a_full_standard_error_keeps_no_deletion_from_its_end(
    plugin: Plugin, variables: dict[str, str], config: bytes
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.write(writing, b"x" * (1 << 20))
    os.set_blocking(writing, True)
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb") as full:
        done = subprocess.run(
            [plugin.program],
            input=config,
            stderr=full,
            env=plugin.environment({"COMMAND": "DEL", **variables}, seconds=1),
            timeout=CALL_SECONDS,
        )
    assert done.returncode == 0
    assert len(list(plugin.deletions.iterdir())) == 1


def test_a_reader_that_goes_away_during_the_call_makes_it_fail(
    plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes
) -> None:
    """By a status, and not by the death of the plugin: it can say why."""
    reading, writing = os.pipe()

    def script(asking: Conversation) -> Request:
        request = asking.receive()
        os.close(reading)
        asking.answer(0, RESULT)
        return request

    with agent(script), os.fdopen(writing, "wb") as stdout:
        done = _call(plugin, {"COMMAND": "ADD", **variables}, config, stdout)
    assert done.returncode == 1
    assert done.stderr == b"netloom-cni: the result cannot be printed: Broken pipe\n"


def test_a_full_disk_behind_standard_output_is_told(
    plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes
) -> None:
    with agent(answering(0, RESULT)), Path("/dev/full").open("wb") as stdout:
        done = _call(plugin, {"COMMAND": "ADD", **variables}, config, stdout)
    assert done.returncode == 1
    assert done.stderr == b"netloom-cni: the result cannot be printed: No space left on device\n"


@pytest.mark.parametrize("blocking", [True, False])
def test_a_narrow_pipe_gets_all_of_a_large_result(
    plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes, blocking: bool
) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, _F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, blocking)
    with agent(answering(0, LARGE)), os.fdopen(reading, "rb") as result:
        process = subprocess.Popen(
            [plugin.program],
            stdin=subprocess.PIPE,
            stdout=writing,
            env=plugin.environment({"COMMAND": "ADD", **variables}),
        )
        os.close(writing)
        assert process.stdin
        process.stdin.write(config)
        process.stdin.close()
        assert result.read() == LARGE
        assert process.wait(CALL_SECONDS) == 0


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_does_not_read_is_waited_for_until_the_deadline(
    plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes, blocking: bool
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, blocking)
    with agent(answering(0, LARGE)), os.fdopen(reading, "rb"), os.fdopen(writing, "wb") as stdout:
        done = _call(plugin, {"COMMAND": "ADD", **variables}, config, stdout, seconds=1)
    assert done.returncode == 1
    assert done.stderr == b"netloom-cni: the result cannot be printed: Operation timed out\n"


def _call(
    plugin: Plugin, variables: dict[str, str], config: bytes, stdout: object, seconds: int = 30
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [plugin.program],
        input=config,
        stdout=stdout,  # type: ignore[call-overload]
        stderr=subprocess.PIPE,
        env=plugin.environment(variables, seconds),
        timeout=CALL_SECONDS,
    )


# -------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    "inject",
    [
        "poll:error=EINTR:when=2+3",
        "read:error=EINTR:when=1",
        "read:error=EAGAIN:when=1",
        "connect:error=EINTR:when=1..3",
        "sendmsg:error=EINTR:when=1",
        "sendmsg:error=EAGAIN:when=1",
        "recvfrom:error=EINTR:when=1",
        "recvfrom:error=EAGAIN:when=1",
        "write:error=EINTR:when=1",
    ],
)
def test_an_interrupted_system_call_is_made_again(
    plugin: Plugin, agent: Agents, folder: Path, variables: dict[str, str], config: bytes, inject: str
) -> None:
    trace = folder / "trace"
    strace = ("strace", "-qq", "-o", str(trace), "-e", f"inject={inject}")
    with agent(answering(0, RESULT)) as asked:
        result = plugin.call({"COMMAND": "ADD", **variables}, config, before=strace)
        assert (result.status, result.output) == (0, RESULT)
        assert (asked.request.stdin, len(asked.request.files)) == (config, 2)
    assert "(INJECTED)" in trace.read_text()


def test_an_interrupted_wait_to_send_goes_on(
    plugin: Plugin, agent: Agents, folder: Path, variables: dict[str, str], config: bytes
) -> None:
    trace = folder / "trace"
    injected = ("-e", "inject=sendmsg:error=EAGAIN:when=1", "-e", "inject=poll:error=EINTR:when=4")
    with agent(answering(0, RESULT)):
        result = plugin.call({"COMMAND": "ADD", **variables}, config, before=("strace", "-o", str(trace), *injected))
    assert (result.status, result.output) == (0, RESULT)
    assert re.search(r"POLLOUT.*EINTR.*INJECTED", trace.read_text())


def test_what_the_agent_takes_piece_by_piece_goes_on_where_it_was(
    plugin: Plugin, agent: Agents, folder: Path, variables: dict[str, str]
) -> None:
    config = b'{"cniVersion":"1.1.0","name":"n","x":"' + b"".join(b"%07d" % each for each in range(400_000)) + b'"}'
    trace = folder / "trace"
    with agent(answering(0, RESULT)) as asked:
        strace = ("strace", "-qq", "-o", str(trace), "-e", "trace=sendmsg")
        assert plugin.call({"COMMAND": "ADD", **variables}, config, before=strace).status == 0
        assert (asked.request.stdin, len(asked.request.files)) == (config, 2)
    sent = [line for line in trace.read_text().splitlines() if re.search(r"= \d+$", line)]
    assert len(sent) > 1
    assert ["SCM_RIGHTS" in line for line in sent] == [True] + [False] * (len(sent) - 1)


def test_a_plugin_that_is_stopped_and_goes_on_ends_as_ever(
    plugin: Plugin, agent: Agents, variables: dict[str, str], config: bytes
) -> None:
    process = subprocess.Popen(
        [plugin.program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=plugin.environment({"COMMAND": "ADD", **variables}),
    )

    def script(asking: Conversation) -> Request:
        request = asking.receive()
        for _ in range(3):
            for number, state in ((signal.SIGSTOP, "T"), (signal.SIGCONT, "S")):
                process.send_signal(number)
                wait_for(f"it is in state {state}", lambda state=state: _state(process.pid) == state)  # type: ignore[misc]
        asking.answer(0, RESULT)
        return request

    with agent(script):
        assert process.communicate(config, CALL_SECONDS) == (RESULT, None)
    assert process.returncode == 0


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

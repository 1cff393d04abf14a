"""A deletion that no agent takes is written down so that it outlives a crash of the machine, or fails and says so."""

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from netloom_e2e.cni_plugin import CALL_SECONDS, Plugin
from netloom_e2e.processes import mounted
from netloom_e2e.scripted_agent import ScriptedAgent, answering

Agents = Callable[..., AbstractContextManager[ScriptedAgent]]

NAME = "3f4e:eth0"
WAY_OUT = "It has to be repeated. Make room there, or see to it that Netloom's agent runs on this node."


@pytest.fixture
def deletion(variables: dict[str, str]) -> dict[str, str]:
    return {"COMMAND": "DEL", **variables}


def left(plugin: Plugin) -> list[str]:
    return sorted(path.name for path in plugin.deletions.iterdir())


def failure(plugin: Plugin, step: str) -> str:
    return (
        f"Netloom's agent cannot be reached at {plugin.socket}: No such file or directory; and the deletion of {NAME} "
        f"cannot be written down in {plugin.deletions}: {step}"
    )


def test_what_is_written_down_is_what_the_agent_would_have_got(
    either_plugin: Plugin, agent: Agents, deletion: dict[str, str], config: bytes
) -> None:
    with agent(answering()) as asked:
        assert either_plugin.call(deletion, config).status == 0
        assert asked.request.files
        assert not either_plugin.deletions.exists()
        result = asked.request.raw
    assert either_plugin.call(deletion, config).status == 0
    assert left(either_plugin) == [NAME]
    assert (either_plugin.deletions / NAME).read_bytes() == result


def test_an_agent_that_refuses_a_deletion_has_the_last_word(
    plugin: Plugin, agent: Agents, deletion: dict[str, str], config: bytes
) -> None:
    with agent(answering(1, b'{"cniVersion":"1.1.0","code":11,"msg":"later"}')):
        assert plugin.call(deletion, config).status == 1
    assert not plugin.deletions.exists()


def test_a_repeated_one_takes_the_place_of_the_first(plugin: Plugin, deletion: dict[str, str], config: bytes) -> None:
    for count in range(2):
        assert plugin.call({**deletion, "ARGS": f"COUNT={count}"}, config).status == 0
        assert left(plugin) == [NAME]
        assert f"ARGS=COUNT={count}\n" in (plugin.deletions / NAME).read_text()


def test_each_interface_of_a_pod_has_its_own(plugin: Plugin, deletion: dict[str, str], config: bytes) -> None:
    for interface in ("eth0", "net1"):
        assert plugin.call({**deletion, "IFNAME": interface}, config).status == 0
    assert left(plugin) == ["3f4e:eth0", "3f4e:net1"]


def test_of_many_at_once_one_stays_whole(plugin: Plugin, deletion: dict[str, str]) -> None:
    """Runtimes repeat what takes long, and of what they began before some may still run."""
    started = []
    for count in range(20):
        config = b'{"cniVersion":"1.1.0","name":"n","prevResult":"' + b"%d" % count * 50_000 + b'"}'
        environment = plugin.environment(deletion)
        process = subprocess.Popen([plugin.program], env=environment, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        started.append((process, config))
    for process, config in started:
        assert process.stdin
        process.stdin.write(config)
    for process, _ in started:
        assert process.stdin
        process.stdin.close()
    assert [process.wait(CALL_SECONDS) for process, _ in started] == [0] * len(started)
    assert left(plugin) == [NAME]
    assert (plugin.deletions / NAME).read_bytes().partition(b"\n\n")[2] in [config for _, config in started]


# ----------------------------------------------------------------------------------------------------------- durability


def traced(plugin: Plugin, deletion: dict[str, str], config: bytes, folder: Path) -> list[str]:
    """The system calls of a deletion that is written down, from its first on a file of the directory."""
    trace = folder / "trace"
    only = "trace=open,openat,mkdir,mkdirat,write,fsync,fdatasync,rename,renameat,renameat2,exit_group"
    result = plugin.call(deletion, config, before=("strace", "-qq", "-y", "-e", only, "-o", str(trace)))
    assert result.status == 0, result
    return [line for line in trace.read_text().splitlines() if str(folder) in line or line.startswith("exit")]


def test_it_succeeds_only_when_the_disk_has_it(
    plugin: Plugin, folder: Path, deletion: dict[str, str], config: bytes
) -> None:
    """What is not synced before it gets its name may be empty after a crash, and a name that is not synced be lost."""
    plugin.deletions.mkdir()
    hidden = rf"{plugin.deletions}/\.[0-9.]+"
    steps = [
        rf"open(at)?\(.*{plugin.deletions}.*O_DIRECTORY",
        r"openat\(.*O_WRONLY\|O_CREAT\|O_EXCL.*O_NOFOLLOW.*0600\)",
        rf"write\(\d+<{hidden}>",
        rf"fsync\(\d+<{hidden}>\) += 0",
        rf"renameat.*{NAME}",
        rf"fsync\(\d+<{plugin.deletions}>\) += 0",
        r"exit_group\(0\)",
    ]
    calls = traced(plugin, deletion, config, folder)
    calls = [line for line in calls if not line.startswith("write(2")]
    assert len(calls) == len(steps), calls
    for call, step in zip(calls, steps, strict=True):
        assert re.search(step, call), (step, call)


def test_a_directory_that_is_missing_is_made_to_last(
    plugin: Plugin, folder: Path, deletion: dict[str, str], config: bytes
) -> None:
    deep = Plugin(plugin.program, plugin.socket, folder / "var" / "lib" / "deletions")
    calls = traced(deep, deletion, config, folder)
    made = [line for line in calls if line.startswith("mkdir") and line.endswith("= 0")]
    assert [re.search(r'"([^"]+)"', line)[1] for line in made] == [  # type: ignore[index]
        f"{folder}/var",
        f"{folder}/var/lib",
        f"{folder}/var/lib/deletions",
    ]
    for line in made:
        parent = Path(re.search(r'"([^"]+)"', line)[1]).parent  # type: ignore[index]
        synced = rf"fsync\(\d+<{parent}>\) += 0"
        assert any(re.match(synced, later) for later in calls[calls.index(line) :]), (parent, calls)
    assert left(deep) == [NAME]


@pytest.mark.parametrize("where", ["openat", "write", "fsync", "renameat", "fsync:when=2"])
def test_one_that_is_killed_in_the_middle_leaves_nothing_half_done(
    plugin: Plugin, deletion: dict[str, str], config: bytes, where: str
) -> None:
    """Where it gets a signal it has not said that it succeeded, and the runtime repeats it."""
    plugin.deletions.mkdir()
    name, _, when = where.partition(":")
    inject = f"inject={name}:signal=KILL{':' + when if when else ''}"
    killed = plugin.call(deletion, config, before=("strace", "-qq", "-o", "/dev/null", "-e", inject))
    assert killed.status == -9
    whole = plugin.call(deletion, config).status == 0 and (plugin.deletions / NAME).read_bytes()
    for path in plugin.deletions.iterdir():
        assert path.name.startswith(".") or (path.name == NAME and path.read_bytes() == whole)


# ------------------------------------------------------------------------------------------------- it cannot be written


@contextmanager
def disk(plugin: Plugin, options: str) -> Iterator[None]:
    """The directory is one of its own, and of that size."""
    plugin.deletions.mkdir()
    with mounted(plugin.deletions, options):
        yield


def test_a_full_disk_is_said_loudly_and_nothing_is_left(
    plugin: Plugin, deletion: dict[str, str], config: bytes
) -> None:
    with disk(plugin, "size=8k"):
        (plugin.deletions / "filler").write_bytes(b"x" * 4096)
        config = config[:-1] + b',"prevResult":"' + b"x" * 8192 + b'"}'
        assert plugin.call(deletion, config).error == (5, failure(plugin, "write: No space left on device"), WAY_OUT)
        assert left(plugin) == ["filler"]
        (plugin.deletions / NAME).write_bytes(before := b"what was written down before stays")
        assert plugin.call(deletion, config).code == 5
        assert (plugin.deletions / NAME).read_bytes() == before


def test_a_disk_without_inodes_is_full_as_well(plugin: Plugin, deletion: dict[str, str], config: bytes) -> None:
    with disk(plugin, "nr_inodes=2"):
        (plugin.deletions / "filler").touch()
        code, message, _ = plugin.call(deletion, config).error
        assert (code, message) == (5, failure(plugin, "create: No space left on device"))


def test_a_disk_that_was_made_read_only_is_told(plugin: Plugin, deletion: dict[str, str], config: bytes) -> None:
    with disk(plugin, "ro"):
        assert plugin.call(deletion, config).error[1] == failure(plugin, "create: Read-only file system")


def test_a_file_in_place_of_the_directory_is_told(
    either_plugin: Plugin, deletion: dict[str, str], config: bytes
) -> None:
    either_plugin.deletions.touch()
    assert either_plugin.call(deletion, config).error[1] == failure(either_plugin, "open: Not a directory")


@pytest.mark.parametrize("path", ["none/\0", "/dev/null/deletions", "/" + "x" * 300, "/run/" + "x/" * 2100])
def test_a_directory_that_cannot_be_made_is_told(
    either_plugin: Plugin, deletion: dict[str, str], config: bytes, path: str
) -> None:
    elsewhere = Plugin(either_plugin.program, either_plugin.socket, Path(path.rstrip("\0")))
    if path == "none/\0":  # a path that begins nowhere is made where the runtime runs
        folder = either_plugin.socket.parent
        result = elsewhere.call(deletion, config, before=("env", "-C", str(folder)))
        assert (result.status, [path.name for path in (folder / "none").iterdir()]) == (0, [NAME])
    else:
        assert elsewhere.call(deletion, config).code == 5


def test_what_took_the_files_name_is_told(plugin: Plugin, deletion: dict[str, str], config: bytes) -> None:
    (plugin.deletions / NAME).mkdir(parents=True)
    assert plugin.call(deletion, config).error[1] == failure(plugin, "rename: Is a directory")
    assert left(plugin) == [NAME]


def test_a_link_of_that_name_is_not_followed(
    plugin: Plugin, folder: Path, deletion: dict[str, str], config: bytes
) -> None:
    plugin.deletions.mkdir()
    (folder / "precious").write_text("precious")
    (plugin.deletions / NAME).symlink_to(folder / "precious")
    assert plugin.call(deletion, config).status == 0
    assert (folder / "precious").read_text() == "precious"
    assert not (plugin.deletions / NAME).is_symlink()


@pytest.mark.parametrize(
    ("inject", "step", "remains"),
    [
        ("openat:error=EDQUOT", "create: Quota exceeded", []),
        ("write:error=EIO:when=1", "write: I/O error", []),
        ("write:retval=0:when=1", "write: I/O error", []),
        ("fsync:error=EIO:when=1", "fsync: I/O error", []),
        ("renameat:error=ENOSPC", "rename: No space left on device", []),
        ("fsync:error=EIO:when=2", "fsync: I/O error", [NAME]),
    ],
)
def test_whatever_step_fails_is_named(
    plugin: Plugin, deletion: dict[str, str], config: bytes, inject: str, step: str, remains: list[str]
) -> None:
    plugin.deletions.mkdir()
    strace = ("strace", "-qq", "-o", "/dev/null", "-e", f"inject={inject}")
    assert plugin.call(deletion, config, before=strace).error == (5, failure(plugin, step), WAY_OUT)
    assert left(plugin) == remains


@pytest.mark.parametrize("inject", ["write:error=EINTR:when=1", "close:error=EINTR:when=1+"])
def test_an_interruption_is_no_failure(plugin: Plugin, deletion: dict[str, str], config: bytes, inject: str) -> None:
    plugin.deletions.mkdir()
    before = ("strace", "-qq", "-o", "/dev/null", "-e", f"inject={inject}")
    assert plugin.call(deletion, config, before=before).status == 0
    assert (plugin.deletions / NAME).read_bytes().endswith(config)

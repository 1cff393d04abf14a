"""`make bench-cni-plugin`: what the CNI plugin itself adds to a pod's start, beside static programs that do nothing.

Each program is started, given a configuration and waited for, in turns, by the same few lines; the plugin's agent is a
loop in a process of its own that answers at once. Time in us of one call, median and least. Takes root. Ends with one
line `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import array
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netloom_e2e import bench, cni_plugin, namespaces
from netloom_e2e.cni_plugin import Plugin
from netloom_e2e.lab import Lab
from netloom_e2e.namespaces import Namespace

_CONFIG = b'{"cniVersion":"1.1.0","name":"netloom","type":"netloom-cni"}'
_ANSWER = b"NETLOOM-CNI/1 0 2\n{}"
_NOTHING = "int main(void) { return 0; }\n"
_COMPILERS = {"nothing, musl": ("musl-gcc",), "nothing, glibc": ("gcc",)}


def _answer(listener: socket.socket) -> None:
    """The least that an agent can do."""
    room = socket.CMSG_SPACE(4 * array.array("i").itemsize)
    while True:
        connection, _ = listener.accept()
        with connection:
            _, ancillary, _, _ = connection.recvmsg(1 << 16, room)
            connection.sendall(_ANSWER)
            for _level, _kind, data in ancillary:
                for file in array.array("i", data):
                    os.close(file)


@contextmanager
def _agent(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = multiprocessing.get_context("fork").Process(target=_answer, args=(listener,), daemon=True)
        process.start()
        try:
            yield
        finally:
            process.kill()
            process.join()


def _us(program: Path, environment: Mapping[str, str], config: Path) -> float:
    """Of one call, from its start to its end."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, str(config), os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
    ]
    start = time.perf_counter()
    pid = os.posix_spawn(program, [str(program)], environment, file_actions=actions)
    _, status = os.waitpid(pid, 0)
    took = time.perf_counter() - start
    if status != 0:
        raise RuntimeError(f"{program} ended with status {status}")
    return took * 1e6


def _compare(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="cni-plugin-") as name, Lab(f"nlbp{os.getpid() % 10000}") as lab:
        folder, place = Path(name), Namespace(f"{lab.prefix}-pod")
        plugin = Plugin(cni_plugin.built(), folder / "cni.sock", folder / "deletions")
        (folder / "source.c").write_text(_NOTHING)
        (folder / "config").write_bytes(_CONFIG)
        pod = {"CONTAINERID": "3f4e", "IFNAME": "eth0", "NETNS": str(namespaces.NETNS / place.name)}
        calls = {
            f"plugin, {each}": (plugin.program, plugin.environment({"COMMAND": each, **pod})) for each in ("ADD", "DEL")
        }
        calls["plugin, VERSION"] = plugin.program, plugin.environment({"COMMAND": "VERSION"})
        for title, compiler in _COMPILERS.items():
            program = folder / title.replace(", ", "-")
            subprocess.run([*compiler, "-static", "-Os", "-s", "-o", program, folder / "source.c"], check=True)
            calls[title] = program, {}
        namespaces.add(place)
        with _agent(plugin.socket):
            return _in_turns(calls, folder / "config", rounds)


def _in_turns(calls: Mapping[str, tuple[Path, Mapping[str, str]]], config: Path, rounds: int) -> dict[str, Any]:
    took: dict[str, list[float]] = {title: [] for title in calls}
    for _ in range(rounds):
        for title, (program, environment) in calls.items():
            took[title].append(_us(program, environment, config))
    least = {title: round(min(each)) for title, each in took.items()}
    median = {title: round(bench.percentile(each, 50)) for title, each in took.items()}
    rows = [(title, str(median[title]), str(least[title])) for title in calls]
    bench.console().print(bench.table("One call, in us", ("", "median", "least"), rows))
    return {"median_us": median, "least_us": least, "rounds": rounds}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=1000, help="calls of each (1000)")
    rounds = arguments.parse_args().rounds
    return bench.conclude("bench-cni-plugin", lambda: _compare(rounds))


if __name__ == "__main__":
    sys.exit(main())

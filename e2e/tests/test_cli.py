"""What somebody who typed something wrong reads: one sentence, exit status 1 (2 for the command line), no traceback."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from netloom import __version__
from netloom_e2e.certificates import Authority
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.lab import Lab, environment
from netloom_e2e.mesh import NETLOOM

COMMANDS = (
    ["status"],
    ["plan"],
    ["guard", "install", "--for=cilium", "--url=https://127.0.0.1:9443", "--apply"],
)
VERBS_OF_A_CLUSTER = (["operator"], ["agent"], ["webhook"], *COMMANDS)


def netloom(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in environment().items() if name not in ("KUBECONFIG", "NODE_NAME")}
    command = [*prefix, str(NETLOOM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=given, check=False)


def refusal(*arguments: str, prefix: tuple[str, ...] = ()) -> str:
    """The one sentence that the command ends with."""
    done = netloom(*arguments, prefix=prefix)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert done.returncode == (3 if arguments[0] == "status" else 1), done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert lines[0].startswith("netloom: ")
    return lines[0].removeprefix("netloom: ")


@pytest.fixture
def kubeconfig(control_plane: ControlPlane, tmp_path: Path) -> Path:
    """A copy of a good kubeconfig, to be spoilt."""
    copy = tmp_path / "kubeconfig"
    copy.write_text(control_plane.kubeconfig().read_text())
    return copy


def spoil(kubeconfig: Path, **cluster: object) -> None:
    content = yaml.safe_load(kubeconfig.read_text())
    content["clusters"][0]["cluster"] |= cluster
    kubeconfig.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("verb", VERBS_OF_A_CLUSTER, ids=" ".join)
def test_a_kubeconfig_that_does_not_exist(verb: list[str]) -> None:
    assert refusal(*verb, "--kubeconfig", "/nowhere/config") == "kubeconfig /nowhere/config does not exist"


def test_a_kubeconfig_that_is_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("a: [")
    assert f"kubeconfig {tmp_path}/config is not YAML" in refusal("status", "--kubeconfig", f"{tmp_path}/config")


def test_a_context_that_does_not_exist(kubeconfig: Path) -> None:
    said = refusal("status", "--kubeconfig", str(kubeconfig), "--context", "prod")
    assert said == f"kubeconfig {kubeconfig} has no context 'prod'; it has: netloom-e2e"


@pytest.mark.parametrize("verb", COMMANDS, ids=" ".join)
def test_an_api_server_that_is_not_there(verb: list[str], kubeconfig: Path) -> None:
    """Roles wait for it: see test_start.py."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        address = f"https://127.0.0.1:{taken.getsockname()[1]}"
        spoil(kubeconfig, server=address)
        said = refusal(*verb, "--kubeconfig", str(kubeconfig))
    assert address in said
    assert "refuse" in said.lower()


def test_a_certificate_of_an_unknown_authority(kubeconfig: Path, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "somebody else")
    spoil(kubeconfig, **{"certificate-authority": str(other.certificate)})
    assert "certificate" in refusal("status", "--kubeconfig", str(kubeconfig))


def test_a_user_that_the_api_server_does_not_know(kubeconfig: Path) -> None:
    content = yaml.safe_load(kubeconfig.read_text())
    content["users"][0]["user"] = {"token": "wrong"}
    kubeconfig.write_text(yaml.safe_dump(content))
    assert "401" in refusal("status", "--kubeconfig", str(kubeconfig))


def test_crds_that_are_not_installed_are_named(tmp_path: Path, control_plane_binaries: Path) -> None:
    with ControlPlane() as bare:
        for verb, status in (("status", 3), ("plan", 1)):
            done = netloom(verb, "--kubeconfig", str(bare.kubeconfig()))
            assert re.fullmatch("netloom: .*Netloom's objects: .*kubectl apply -f crds/.*\n", done.stderr), "and no log"
            assert done.returncode == status


@pytest.mark.parametrize("verb", ["agent", "plan"])
def test_a_directory_of_manifests_that_does_not_exist(verb: str) -> None:
    assert refusal(verb, "--manifests", "/nowhere") == "--manifests /nowhere: there is no such directory"


def test_a_plan_from_a_manifest_with_a_mistake_names_file_and_field(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text(
        "apiVersion: netloom.dev/v1alpha1\nkind: NetloomNetwork\nmetadata: {name: default}\nspec: {mtu: big}\n"
    )
    said = refusal("plan", "--manifests", str(tmp_path))
    assert "net.yaml" in said
    assert "spec.mtu" in said


@pytest.mark.parametrize("verb", [["agent", "--manifests", "/tmp"], ["cleanup", "--yes"]], ids=" ".join)
def test_a_missing_capability(verb: list[str]) -> None:
    prefix = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--")
    said = refusal(*verb, prefix=prefix)
    assert "NET_ADMIN" in said
    assert "securityContext" in said


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    program = "import socket; s = socket.create_server(('127.0.0.1', 9964)); print('listening', flush=True); input()"
    with Lab(f"nlc{os.getpid() % 10000}") as lab:
        node = lab.add_node("n1")
        command = [*node.enter, sys.executable, "-c", program]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "listening\n"
            said = refusal("agent", "--manifests", str(tmp_path), "--run-dir", str(tmp_path / "run"), prefix=node.enter)
            other.kill()
    assert said.startswith("cannot serve HTTP on 127.0.0.1:9964: ")


def test_an_address_that_is_none() -> None:
    assert refusal("agent", "--manifests", "/tmp", "--http-address", "here").startswith("--http-address 'here' is not")


@pytest.mark.parametrize(
    "arguments",
    [["agnet"], ["agent", "--log-level", "loud"], ["status", "-o", "xml"], ["status", "--agent-address", "foo"]],
)
def test_a_word_that_is_none(arguments: list[str]) -> None:
    done = netloom(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert arguments[-1] in done.stderr


def test_a_guard_without_an_image_or_a_url() -> None:
    assert "--image" in refusal("guard", "install", "--for", "cilium")


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    arguments = ["guard", "install", "--for=all", "--url=https://127.0.0.1:9443"]
    assert refusal(*arguments, "--ca-file=/nowhere") == "--ca-file /nowhere cannot be read: No such file or directory"
    (tmp_path / "ca").write_text("hello")
    assert "has no certificate in PEM" in refusal(*arguments, f"--ca-file={tmp_path}/ca")


def test_a_certificate_without_its_key(control_plane: ControlPlane) -> None:
    kubeconfig = f"--kubeconfig={control_plane.kubeconfig()}"
    assert "give both --tls-cert-file and --tls-key-file" in refusal("webhook", kubeconfig, "--tls-cert-file=/tmp/x")


def test_an_address_of_the_guard_that_is_none(control_plane: ControlPlane) -> None:
    kubeconfig = f"--kubeconfig={control_plane.kubeconfig()}"
    assert refusal("webhook", kubeconfig, "--address=here").startswith("--address 'here' is not HOST:PORT")
    assert refusal("operator", kubeconfig, "--webhook-address=here").startswith("--webhook-address 'here' is not")


def test_version() -> None:
    assert json.loads(netloom("version", "-o", "json").stdout)["netloom"] == __version__
    assert netloom("version").stdout.startswith(f"netloom {__version__}\n")

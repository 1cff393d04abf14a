"""What a runtime says: versions, configurations, CNI_ARGS."""

import json

import pytest

from netloom_reconcilers.node.endpoints.config import PodOf, pod_of, read, version_of
from netloom_reconcilers.node.endpoints.errors import SUPPORTED, CniError
from netloom_reconcilers.node.endpoints.framing import Call
from netloom_reconcilers.node.endpoints.results import Dns, Result


def call(command: str = "ADD", stdin: bytes | None = None, version: object = "1.0.0", **said: object) -> Call:
    """One that is right, but for what is said."""
    variables = {key: said.pop(key) for key in ("containerid", "netns", "ifname") if key in said}
    if stdin is None:
        stdin = json.dumps({"cniVersion": version, "name": "netloom", "type": "netloom-cni", **said}).encode()
    known = {"containerid": "4f2a", "netns": "/run/netns/x", "ifname": "eth0", **variables}
    return Call(command=command, stdin=stdin, **known)  # type: ignore[arg-type]


def code(each: Call) -> int:
    """0: it is right."""
    try:
        read(each)
    except CniError as error:
        return error.code
    return 0


def test_versions_and_what_they_brought() -> None:
    right = {
        command: [version for version in ("0.1.0", "0.2.0", "0.3.0", *SUPPORTED, "1.2.0", "2.0.0", "", None)
                  if code(call(command, version=version, **{"cni.dev/valid-attachments": []})) == 0]
        for command in ("ADD", "DEL", "CHECK", "STATUS", "GC")
    }  # fmt: skip
    assert right == {
        "ADD": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "DEL": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "CHECK": ["0.4.0", "1.0.0", "1.1.0"],
        "STATUS": ["1.1.0"],
        "GC": ["1.1.0"],
    }
    for version in ("0.2.0", "2.0.0", "nonsense", None):
        assert code(call(version=version)) == 1, version
    assert code(call("STATUS", version="1.0.0")) == 1


@pytest.mark.parametrize(
    ("wrong", "expected", "said"),
    [
        (call(stdin=b""), 6, "standard input is empty"),
        (call(stdin=b"\xff\xfe"), 6, "cannot be read"),
        (call(stdin=b'{"cniVersion": "1.0.0", "name": "netl'), 6, "cannot be read"),
        (call(stdin=b"[]"), 6, "cannot be read"),
        (call(stdin=b'{"cniVersion": 1, "name": "netloom"}'), 6, "cannot be read"),
        (call("EAT"), 4, "CNI_COMMAND"),
        (call(containerid=""), 4, "CNI_CONTAINERID"),
        (call(containerid="../../etc/passwd"), 4, "CNI_CONTAINERID"),
        (call(containerid="c" * 129), 4, "CNI_CONTAINERID"),
        (call(ifname=""), 4, "CNI_IFNAME"),
        (call(ifname="a/b"), 4, "CNI_IFNAME"),
        (call(ifname=".."), 4, "CNI_IFNAME"),
        (call(ifname="eth0 "), 4, "CNI_IFNAME"),
        (call(ifname="ä" * 8), 4, "CNI_IFNAME"),
        (call(ifname="lo"), 4, "CNI_IFNAME is 'lo'"),
        (call(ifname="eth%d"), 4, "CNI_IFNAME is 'eth%d'"),
        (call(netns=""), 4, "CNI_NETNS"),
        (call("CHECK", netns=""), 4, "CNI_NETNS"),
        (call(name="net/loom"), 7, "name"),
        (call(name=""), 7, "name"),
        (call(ipam={"type": "host-local"}), 2, 'ipam is {"type": "host-local"}'),
        (call(runtimeConfig={"ips": ["10.0.0.9/24"]}), 2, "ips is 10.0.0.9/24"),
        (call(args={"cni": {"ips": ["10.0.0.9"]}}), 2, "ips is 10.0.0.9"),
        (call(runtimeConfig={"mac": "01:00:5e:00:00:01"}), 7, "runtimeConfig.mac"),
        (call(runtimeConfig={"mac": "nonsense"}), 7, "runtimeConfig.mac"),
    ],
)
def test_what_is_wrong_has_a_code_and_names_its_field(wrong: Call, expected: int, said: str) -> None:
    with pytest.raises(CniError) as caught:
        read(wrong)
    assert caught.value.code == expected
    assert said in caught.value.details


def test_what_nobody_reads_is_left_alone() -> None:
    found = read(
        call(
            capabilities={"portMappings": True},
            runtimeConfig={
                "portMappings": [{"hostPort": 80}],
                "mac": "02:00:00:00:00:01",
                "dns": {"servers": ["10.96.0.10"], "searches": ["svc"]},
            },
            args={"cni": {"labels": []}, "mine": 1},
            dns={"nameservers": ["1.1.1.1"], "domain": "d"},
            ipam={},
            prevResult=None,
            shoesize=43,
        )
    )  # fmt: skip
    assert found.mac == "02:00:00:00:00:01"
    assert found.resolver == Dns(nameservers=("10.96.0.10",), search=("svc",))
    assert read(call(dns={"domain": "d"})).resolver == Dns(domain="d")
    assert found.prev_result is None


def test_a_deletion_of_what_cannot_be_is_no_error() -> None:
    """It follows an ADD that failed."""
    for ifname in ("lo", "eth%d"):
        assert code(call("DEL", ifname=ifname, netns="")) == 0


def test_a_deletion_goes_on_with_a_previous_result_that_cannot_be_read() -> None:
    odd = read(call("DEL", netns="", prevResult={"ips": "nonsense"}))
    with pytest.raises(CniError, match="prevResult") as caught:
        _ = odd.prev_result
    assert caught.value.code == 7
    whole = read(call("DEL", prevResult={"ips": None, "interfaces": None, "dns": None}))
    assert whole.prev_result is not None
    assert whole.prev_result.addresses() == ()


def test_whose_sandbox_it_is() -> None:
    said = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=4f2a;K8S_POD_UID=u1"
    assert pod_of(said) == PodOf("default/web-0", "u1")
    assert pod_of("") == pod_of("FOO=BAR;") == PodOf()
    for wrong in (
        "nonsense",
        "K8S_POD_NAME=web",
        "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b/c",
        "K8S_POD_NAMESPACE=..;K8S_POD_NAME=b",
    ):
        with pytest.raises(CniError, match="CNI_ARGS") as caught:
            pod_of(wrong)
        assert caught.value.code == 4


def test_errors_speak_the_version_that_was_asked_for() -> None:
    for stdin, version in ((b'{"cniVersion": "0.4.0"}', "0.4.0"), (b'{"cniVersion": "9"}', "1.1.0"), (b"x", "1.1.0")):
        told = json.loads(CniError(7, "because.").encode(version_of(stdin)))
        assert told == {
            "cniVersion": version,
            "code": 7,
            "msg": "netloom: invalid network configuration",
            "details": "because.",
        }


@pytest.mark.parametrize(
    ("code", "details"), [(2, 'ipam is {"type": "host-local"}: take it out.'), (4, "CNI_IFNAME is 'a/b'.")]
)
def test_the_message_names_what_the_specification_wants_in_it(code: int, details: str) -> None:
    told = json.loads(CniError(code, details).encode("1.1.0"))
    assert told["msg"].startswith("netloom: ")
    assert told["msg"].endswith(details)
    assert told["details"] == details


def test_null_is_what_go_writes_for_nothing() -> None:
    nothing = {"servers": None, "searches": ["svc"], "options": None}
    found = read(call(runtimeConfig={"dns": nothing, "ips": None, "mac": None}, dns=None, ipam=None, args=None))
    assert (found.resolver, found.mac, found.ipam) == (Dns(search=("svc",)), "", {})
    assert read(call(dns={"nameservers": None, "domain": "d"}, prevResult=None)).resolver == Dns(domain="d")
    assert read(call(runtimeConfig=None, prevResult={"ips": None, "dns": {"search": None}})).prev_result == Result()
    with pytest.raises(CniError) as caught:
        read(call(ipam={"type": "host-local", "ranges": None}))
    assert caught.value.code == 2

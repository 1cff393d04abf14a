"""What runtimes and people get wrong: a code of the CNI, what is wrong, and what to do; and the agent is not asked.

Nobody listens in these tests, so whatever passes is told that the agent is away.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from netloom_e2e import cni_plugin
from netloom_e2e.cni_plugin import CALL_SECONDS, Plugin, Result

ID = "It has up to 128 letters, digits, _, . and -, and begins with a letter or digit."
INTERFACE = "It has up to 15 bytes, none of which is a space, / or :, and is not . or .."
NEEDED = "The runtime has to set what the CNI demands."
CONFLIST = "Mend the conflist in the runtime's folder of CNI configurations (/etc/cni/net.d)."
VERSIONS = "It has to be 0.3.1, 0.4.0, 1.0.0 or 1.1.0: mend it in the conflist."
NETWORK = "It has letters, digits, _, . and -, and begins with a letter or digit."


def passed(plugin: Plugin, result: Result) -> bool:
    """Whether there was nothing wrong, and so the agent would have been asked."""
    if result.status == 0:
        return bool(list(plugin.deletions.iterdir()))
    return result.code in (11, 50)


# ----------------------------------------------------------------------------------------------------------- variables


@pytest.mark.parametrize(
    ("command", "unset", "message"),
    [
        ("ADD", ["CONTAINERID"], "ADD takes more than is set: CNI_CONTAINERID"),
        ("ADD", ["NETNS"], "ADD takes more than is set: CNI_NETNS"),
        ("CHECK", ["NETNS", "IFNAME"], "CHECK takes more than is set: CNI_NETNS, CNI_IFNAME"),
        ("DEL", ["CONTAINERID"], "DEL takes more than is set: CNI_CONTAINERID"),
        ("DEL", ["NETNS", "IFNAME"], "DEL takes more than is set: CNI_IFNAME"),
    ],
)
@pytest.mark.parametrize("way", ["unset", "empty"])
def test_a_variable_that_is_missing_is_named(
    either_plugin: Plugin,
    variables: dict[str, str],
    config: bytes,
    command: str,
    unset: list[str],
    message: str,
    way: str,
) -> None:
    for name in unset:
        variables.pop(name)
        if way == "empty":
            variables[name] = ""
    assert either_plugin.call({"COMMAND": command, **variables}, config).error == (4, message, NEEDED)


@pytest.mark.parametrize(
    ("command", "message", "way_out"),
    [
        (None, "CNI_COMMAND is not set", "This is a CNI plugin: a container runtime calls it."),
        ("", "CNI_COMMAND is not set", "This is a CNI plugin: a container runtime calls it."),
        ("add", 'CNI_COMMAND "add" is unknown', "It is one of ADD, CHECK, DEL, GC, STATUS and VERSION."),
        ('UP"\\', 'CNI_COMMAND "UP"\\" is unknown', "It is one of ADD, CHECK, DEL, GC, STATUS and VERSION."),
    ],
)
def test_a_command_that_is_none_is_refused(
    either_plugin: Plugin, variables: dict[str, str], config: bytes, command: str | None, message: str, way_out: str
) -> None:
    if command is not None:
        variables["COMMAND"] = command
    assert either_plugin.call(variables, config).error == (4, message, way_out)


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
@pytest.mark.parametrize(
    "container", [".hidden", "-a", "_a", "a/b", "../../etc/passwd", "..", ".", "a b", "a:b", "ä", "a\x01", "x" * 129]
)
def test_an_id_that_the_cni_does_not_allow_is_refused(
    either_plugin: Plugin, variables: dict[str, str], config: bytes, command: str, container: str
) -> None:
    result = either_plugin.call({**variables, "COMMAND": command, "CONTAINERID": container}, config)
    code, message, way_out = result.error
    shown = "".join(each if " " <= each <= "~" else "\ufffd" * len(each.encode()) for each in container)
    assert (code, message, way_out) == (4, f'CNI_CONTAINERID "{shown}" is no id of a container', ID)
    assert not either_plugin.deletions.exists()


@pytest.mark.parametrize("container", ["a", "0", "A.b-c_d", "x" * 128, "1.."])
def test_all_others_pass(either_plugin: Plugin, variables: dict[str, str], config: bytes, container: str) -> None:
    said = {**variables, "COMMAND": "DEL", "CONTAINERID": container}
    assert passed(either_plugin, either_plugin.call(said, config))


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
@pytest.mark.parametrize(
    "interface", [".", "..", "a/b", "/", "a:b", "a b", "a\tb", "\x7f", "abcdefghijklmnop", "éééééééé"]
)
def test_an_interface_that_linux_does_not_allow_is_refused(
    either_plugin: Plugin, variables: dict[str, str], config: bytes, command: str, interface: str
) -> None:
    result = either_plugin.call({**variables, "COMMAND": command, "IFNAME": interface}, config)
    shown = "".join(each if " " <= each <= "~" else "\ufffd" * len(each.encode()) for each in interface)
    assert result.error == (4, f'CNI_IFNAME "{shown}" is no name of an interface', INTERFACE)


@pytest.mark.parametrize("interface", ["e", "...", "net1.100", "abcdefghijklmno", "é0"])
def test_all_other_interfaces_pass(
    either_plugin: Plugin, variables: dict[str, str], config: bytes, interface: str
) -> None:
    assert passed(either_plugin, either_plugin.call({**variables, "COMMAND": "DEL", "IFNAME": interface}, config))


@pytest.mark.parametrize("name", ["CONTAINERID", "NETNS", "IFNAME", "ARGS", "PATH"])
@pytest.mark.parametrize("command", ["ADD", "DEL", "GC"])
def test_a_line_break_that_would_forge_a_variable_is_refused(
    either_plugin: Plugin, variables: dict[str, str], config: bytes, command: str, name: str
) -> None:
    variables[name] = f"{variables[name]}\nCOMMAND=ADD"
    result = either_plugin.call({"COMMAND": command, **variables}, config)
    assert result.error == (4, f"CNI_{name} has a line break in it", "No variable of the CNI has more than one line.")


def test_variables_without_end_are_refused(either_plugin: Plugin, variables: dict[str, str], config: bytes) -> None:
    variables["ARGS"] = "x" * (64 << 10)
    assert either_plugin.call({"COMMAND": "ADD", **variables}, config).error == (
        4,
        "the CNI_* variables have more than 65536 bytes",
        "Of them, CNI_ARGS, CNI_PATH and CNI_NETNS can be long.",
    )


def test_and_as_many_as_fit_pass(either_plugin: Plugin, variables: dict[str, str], config: bytes) -> None:
    used = len("".join(f"{name}={value}\n" for name, value in {"COMMAND": "DEL", **variables}.items())) + 1
    variables["ARGS"] += "x" * ((64 << 10) - used)
    result = either_plugin.call({"COMMAND": "DEL", **variables}, config)
    assert (result.status, passed(either_plugin, result)) == (0, True)
    variables["ARGS"] += "x"
    assert either_plugin.call({"COMMAND": "DEL", **variables}, config).code == 4


def test_a_path_too_long_for_a_socket_is_refused(plugin: Plugin, variables: dict[str, str], config: bytes) -> None:
    long = Plugin(plugin.program, Path("/run") / ("x" * 200), plugin.deletions)
    assert long.call({"COMMAND": "ADD", **variables}, config).error == (
        4,
        "NETLOOM_CNI_SOCKET has more than 107 bytes",
        "Name a shorter path.",
    )


# ------------------------------------------------------------------------------------------------------ standard input


@pytest.mark.parametrize(
    ("stdin", "sound"),
    [
        (b"", 0),
        (b"   ", 3),
        (b"null", 0),
        (b"[]", 0),
        (b"\xef\xbb\xbf{}", 0),
        (b'{"name":"n"', 11),
        (b'{"name":"n"}}', 12),
        (b'{"name":"n",}', 12),
        (b'{"name":"n\n"}', 10),
        (b'{"name":"\\x"}', 10),
        (b'{"name":"\\u12"}', 14),
        (b"{'name':1}", 1),
        (b'{"name":7}', 8),
        (b'{"cniVersion":["1.1.0"]}', 14),
        (b'{"a":01}', 6),
        (b'{"a":1.}', 7),
        (b'{"a":1e}', 7),
        (b'{"a":-}', 6),
        (b'{"a":NaN}', 5),
        (b'{"a":nul}', 5),
        (b'{"a":\0}', 5),
        (b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", 204),
    ],
)
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_standard_input_that_is_no_json_object_is_refused(
    either_plugin: Plugin, variables: dict[str, str], command: str, stdin: bytes, sound: int
) -> None:
    """So is a deletion: what cannot be read is not written down for later."""
    result = either_plugin.call({"COMMAND": command, **variables}, stdin)
    message = f"standard input is no JSON object of a network: {sound} of its {len(stdin)} bytes make sense"
    assert result.error == (6, message, CONFLIST)
    assert not either_plugin.deletions.exists()


@pytest.mark.parametrize(
    ("stdin", "message", "way_out"),
    [
        ({"name": "n"}, "the network configuration has no cniVersion", VERSIONS.replace("mend it in", "add it to")),
        (
            {"name": "n", "cniVersion": None},
            "the network configuration has no cniVersion",
            VERSIONS.replace("mend it in", "add it to"),
        ),
        ({"name": "n", "cniVersion": "0.3.0"}, 'cniVersion "0.3.0" is unknown', VERSIONS),
        ({"name": "n", "cniVersion": "1.1.0 "}, 'cniVersion "1.1.0 " is unknown', VERSIONS),
        ({"name": "n", "cniVersion": "9" * 99}, f'cniVersion "{"9" * 64}" is unknown', VERSIONS),
        ({"name": "n", "cniVersion": '1"'}, 'cniVersion "1\\"" is unknown', VERSIONS),
    ],
)
def test_a_version_that_is_unknown_is_refused(
    either_plugin: Plugin, variables: dict[str, str], stdin: dict[str, str | None], message: str, way_out: str
) -> None:
    result = either_plugin.call({"COMMAND": "ADD", **variables}, json.dumps(stdin).encode())
    assert result.error == (1, message, way_out)
    assert json.loads(result.output)["cniVersion"] == "1.1.0"


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_errors_speak_the_version_of_the_request(
    either_plugin: Plugin, variables: dict[str, str], version: str
) -> None:
    result = either_plugin.call(
        {"COMMAND": "ADD", **variables}, json.dumps({"cniVersion": version, "name": "n"}).encode()
    )
    assert (result.code, json.loads(result.output)["cniVersion"]) == (11, version)


@pytest.mark.parametrize(
    ("command", "since", "too_old"),
    [("CHECK", "0.4.0", "0.3.1"), ("GC", "1.1.0", "1.0.0"), ("STATUS", "1.1.0", "0.4.0")],
)
def test_what_a_version_does_not_know_is_refused(
    either_plugin: Plugin, variables: dict[str, str], command: str, since: str, too_old: str
) -> None:
    def of(version: str) -> Result:
        config = json.dumps({"cniVersion": version, "name": "n"}).encode()
        return either_plugin.call({"COMMAND": command, **variables}, config)

    message = f"cniVersion {too_old} has no {command}, which takes {since}"
    assert of(too_old).error == (1, message, "Mend it in the conflist.")
    assert passed(either_plugin, of(since))


@pytest.mark.parametrize(
    ("name", "message", "way_out"),
    [
        (None, "the network configuration has no name", "Add it to the conflist."),
        ("", "the network configuration has no name", "Add it to the conflist."),
        ("a/b", '"a/b" is no name of a network', NETWORK),
        ("-a", '"-a" is no name of a network', NETWORK),
        ("n" * 99 + "/", f'"{"n" * 64}" is no name of a network', NETWORK),
    ],
)
def test_a_network_without_a_name_is_refused(
    either_plugin: Plugin, variables: dict[str, str], name: str | None, message: str, way_out: str
) -> None:
    config = json.dumps({"cniVersion": "1.1.0", "name": name}).encode()
    assert either_plugin.call({"COMMAND": "ADD", **variables}, config).error == (7, message, way_out)


def test_more_than_four_megabytes_are_refused(either_plugin: Plugin, variables: dict[str, str]) -> None:
    result = either_plugin.call({"COMMAND": "ADD", **variables}, b" " * ((4 << 20) + 1))
    assert result.error == (7, "standard input has more than 4194304 bytes", "No network configuration is that large.")


@pytest.mark.parametrize("command", ["ADD", "DEL", "STATUS"])
def test_standard_input_that_is_closed_or_no_file_is_told(
    either_plugin: Plugin, variables: dict[str, str], command: str
) -> None:
    way_out = "The runtime has to write the network configuration to it, and to close it."
    for redirection, why in (("<&-", "Bad file descriptor"), ("</", "Is a directory")):
        shell = ("sh", "-c", f'exec "$0" {redirection}')
        result = either_plugin.call({"COMMAND": command, **variables}, b"", before=shell)
        assert result.error == (5, f"standard input cannot be read to its end: {why}", way_out)


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_standard_input_that_does_not_end_is_told(plugin: Plugin, variables: dict[str, str], command: str) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin, os.fdopen(writing, "wb") as end:
        end.write(b'{"cniVersion":"1.1.0",')
        end.flush()
        environment = plugin.environment({"COMMAND": command, **variables}, seconds=1)
        done = subprocess.run([plugin.program], stdin=stdin, capture_output=True, env=environment, timeout=CALL_SECONDS)
    code, message, _ = Result(done.returncode, done.stdout, "").error
    assert (code, message) == (5, "standard input cannot be read to its end: Operation timed out")


# ------------------------------------------------------------------------------------------- whatever else there may be

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
CONFIG = st.fixed_dictionaries(
    {},
    optional={
        "cniVersion": st.sampled_from(["0.3.1", "1.1.0", "2.0.0", "", None, 7]),
        "name": st.sampled_from(["netloom", "", "a b", None, []]),
        "prevResult": JSON,
        "ä\\": JSON,
    },
)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """Configurations, whole ones and such of which somebody cut, swapped or doubled something."""
    ascii_only, indent = draw(st.booleans()), draw(st.sampled_from([None, 1]))
    text = json.dumps(draw(CONFIG), ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 3)))
        piece = draw(
            st.sampled_from([b"", b'"', b"{", b"}", b"\\", b"\\u00e", b",", b":", b"0", b"-", b"e", b"\xff", b"\0"])
        )
        text = text[:start] + piece + text[end:]
    return text


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Plugin:
    folder = tmp_path_factory.mktemp("bad-input")
    return Plugin(cni_plugin.built(sanitized=True), folder / "none.sock", folder / "deletions")


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts())
@example(b'{"cniVersion":"1.1.0","name":"n","x":"' + bytes(range(128, 256)) + b'"}')
@example(b'{"a":' + b"[" * 199 + b"]" * 199 + b"}")
def test_what_is_a_configuration_is_judged_as_python_does(sanitized: Plugin, text: bytes) -> None:
    assert sanitized.call({"COMMAND": "STATUS"}, text).code == expected(text)


def expected(text: bytes) -> int:
    """By Python's reader. Strings' bytes are taken for characters, as whoever reads them looks at UTF-8."""
    try:
        config = json.loads(text.decode("latin-1"), parse_constant=_refuse)
    except ValueError:
        return 6
    if not isinstance(config, dict):
        return 6
    version, name = config.get("cniVersion"), config.get("name")
    if not isinstance(version, str | None) or not isinstance(name, str | None):
        return 6
    if version not in ("0.3.1", "1.1.0") or version == "0.3.1":
        return 1
    return 50 if name == "netloom" or name == "n" else 7


def _refuse(name: str) -> object:
    raise ValueError(name)


ENVIRONMENT_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(ENVIRONMENT_TEXT, ENVIRONMENT_TEXT, st.sampled_from(["ADD", "DEL", "CHECK"]))
def test_whatever_the_names_are_a_deletion_stays_in_its_directory(
    sanitized: Plugin, container: str, interface: str, command: str
) -> None:
    said = {"COMMAND": command, "CONTAINERID": container, "IFNAME": interface, "NETNS": "/run/netns/none"}
    result = sanitized.call(said, b'{"cniVersion":"1.1.0","name":"n"}')
    if result.status == 0:
        written = sanitized.deletions / f"{container}:{interface}"
        assert written.resolve().parent == sanitized.deletions.resolve()
        written.unlink()
    else:
        assert result.code in (4, 11)
    top = sanitized.deletions.parent
    assert {path.name for path in top.iterdir()} <= {"deletions"}
    assert not sanitized.deletions.exists() or not list(sanitized.deletions.iterdir())

"""Requests of the plugin, as bytes: whole, in pieces, and wrong."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom_reconcilers.node.endpoints.errors import CniError
from netloom_reconcilers.node.endpoints.framing import (
    MAGIC,
    MOST_HEADER,
    MOST_STDIN,
    Call,
    Incoming,
    answer,
    parse,
)

ADD = Call(
    command="ADD",
    containerid="4f2a",
    netns="/run/netns/x",
    ifname="eth0",
    args="K8S_POD_NAME=web;K8S_POD_NAMESPACE=default",
    path="/opt/cni/bin",
    stdin=b'{"cniVersion": "1.0.0",\n\n "name": "netloom"}\n',
)

VALUE = st.text(st.characters(exclude_characters="\n\x00", exclude_categories=["Cs"]), max_size=40)


def test_the_bytes_are_these() -> None:
    assert Call(command="DEL", containerid="c", ifname="eth0", stdin=b"{}").encode() == (
        b"NETLOOM-CNI/1 41\nCOMMAND=DEL\nCONTAINERID=c\nIFNAME=eth0\n\n{}"
    ), "documented in cni/README.md"
    assert answer(1, b"{}") == b"NETLOOM-CNI/1 1 2\n{}"
    assert answer(0, b"") == b"NETLOOM-CNI/1 0 0\n"


@given(
    st.builds(Call, command=VALUE.filter(bool), containerid=VALUE, args=VALUE, stdin=st.binary(max_size=99)), st.data()
)
def test_a_request_arrives_in_any_pieces(call: Call, data: st.DataObject) -> None:
    sent, incoming, found = call.encode(), Incoming(), None
    while sent:
        assert found is None, "before it is whole"
        size = data.draw(st.integers(1, len(sent)))
        found, sent = incoming.feed(sent[:size]), sent[size:]
    assert found == call


@given(st.binary(max_size=300))
def test_nonsense_is_refused_or_waited_for(data: bytes) -> None:
    """Nothing else is raised, whatever comes."""
    for start in (b"", MAGIC, MAGIC + b"%d\n" % len(data)):
        with contextlib.suppress(CniError):
            Incoming().feed(start + data)


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"GET / HTTP/1.1\r\n", 5, "no request of its plugin"),
        (b"NETLOOM-CNI/2 3\n", 5, "another version"),
        (b"NETLOOM-CNI/1 x\n", 5, "how long"),
        (b"NETLOOM-CNI/1 -1\n", 5, "how long"),
        (b"NETLOOM-CNI/1 123456789\n", 5, "how long"),
        (MAGIC + b"%d\n" % (MOST_HEADER + MOST_STDIN + 1), 5, "more than"),
        (MAGIC + b"5\nabcde", 5, "no end of its variables"),
        (MAGIC + b"3\n\n{}", 4, "CNI_COMMAND is not set"),
        (MAGIC + b"14\nCOMMAND=\xff\xfe\n\n{}", 6, "CNI_COMMAND is no UTF-8"),
        (MAGIC + b"25\nCOMMAND=ADD\nCOMMAND=DEL\n\n", 4, "CNI_COMMAND is given twice"),
    ],
)
def test_what_is_wrong_is_said_at_once(data: bytes, code: int, said: str) -> None:
    with pytest.raises(CniError, match=said) as caught:
        Incoming().feed(data)
    assert caught.value.code == code


def test_limits_are_those_of_the_wire() -> None:
    big = Call(command="ADD", stdin=b"x" * MOST_STDIN)
    assert parse(big.encode()) == big
    with pytest.raises(CniError, match="standard input"):
        parse(Call(command="ADD", stdin=b"x" * (MOST_STDIN + 1)).encode())
    with pytest.raises(CniError, match="variables"):
        parse(Call(command="ADD", args="x" * MOST_HEADER).encode())
    with pytest.raises(CniError, match="cut off"):
        parse(ADD.encode()[:-1])


def test_a_newer_plugin_may_say_more() -> None:
    body = b"COMMAND=ADD\nSHOESIZE=43\nnonsense\n\n{}"
    assert parse(MAGIC + b"%d\n" % len(body) + body) == Call(command="ADD", stdin=b"{}")

"""What the plugin on the host and the agent say to each other, as bytes. Pure; `cni/README.md` describes the same.

    NETLOOM-CNI/1 <length of what follows>\\n
    COMMAND=ADD\\n
    CONTAINERID=...\\n         and NETNS, IFNAME, ARGS, PATH: the CNI_* variables that are set
    \\n
    <standard input, as it came>

The answer is `NETLOOM-CNI/1 <exit status> <length>\\n` and what is to be printed. A request that was written down for
later is the same bytes in a file.
"""

import msgspec

from netloom_reconcilers.node.endpoints.errors import BAD_ENVIRONMENT, IO_FAILURE, UNDECODABLE, CniError

MAGIC = b"NETLOOM-CNI/1 "
FIELDS = ("COMMAND", "CONTAINERID", "NETNS", "IFNAME", "ARGS", "PATH")
MOST_STDIN = 4 << 20
"""Bytes. What runtimes send has some thousand."""
MOST_HEADER = 64 << 10
"""Bytes of all variables. Linux lets one have 128 KiB, and PATH_MAX is 4 KiB."""
_MOST_DIGITS = 8


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime called the plugin with: the CNI_* variables ("" where one is not set), and standard input."""

    command: str
    containerid: str = ""
    netns: str = ""
    ifname: str = ""
    args: str = ""
    path: str = ""
    stdin: bytes = b""

    @property
    def attachment(self) -> tuple[str, str]:
        """What it is about: container and interface."""
        return self.containerid, self.ifname

    def encode(self) -> bytes:
        """The request, as the plugin sends it and writes it down."""
        said = {name: getattr(self, name.lower()) for name in FIELDS}
        lines = [f"{name}={text}\n".encode() for name, text in said.items() if text]
        body = b"".join([*lines, b"\n", self.stdin])
        return MAGIC + b"%d\n" % len(body) + body


class Incoming:
    """A request that arrives in pieces."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._body = self._end = 0

    def feed(self, data: bytes) -> Call | None:
        """The call, once it is whole; what comes behind it is not looked at. Raises CniError where it can never be
        one, as soon as that shows."""
        self._data += data
        if not self._end:
            self._read_first_line()
        if not self._end or len(self._data) < self._end:
            return None
        return _parse(bytes(self._data[self._body : self._end]))

    def _read_first_line(self) -> None:
        start = bytes(self._data[: len(MAGIC)])
        if not MAGIC.startswith(start):
            raise CniError(IO_FAILURE, "what was sent to the agent is no request of its plugin, or of another version.")
        line_end = self._data.find(b"\n", 0, len(MAGIC) + _MOST_DIGITS + 1)
        if line_end < 0:
            if len(self._data) > len(MAGIC) + _MOST_DIGITS:
                raise CniError(IO_FAILURE, "the request does not say how long it is.")
            return
        length = bytes(self._data[len(MAGIC) : line_end])
        if not length.isdigit():
            raise CniError(IO_FAILURE, "the request does not say how long it is.")
        if int(length) > MOST_HEADER + MOST_STDIN:
            raise CniError(IO_FAILURE, f"the request has {int(length)} bytes, more than {MOST_HEADER + MOST_STDIN}.")
        self._body = line_end + 1
        self._end = self._body + int(length)


def parse(data: bytes) -> Call:
    """A request that is whole, as in a file. Raises CniError."""
    incoming = Incoming()
    call = incoming.feed(data)
    if call is None:
        raise CniError(IO_FAILURE, "the request is cut off.")
    return call


def answer(status: int, output: bytes) -> bytes:
    """An answer to the plugin: the exit status, and what it prints."""
    return MAGIC + b"%d %d\n" % (status, len(output)) + output


def _parse(body: bytes) -> Call:
    head, separator, stdin = body.partition(b"\n\n") if not body.startswith(b"\n") else (b"", b"\n", body[1:])
    if not separator or len(head) > MOST_HEADER:
        raise CniError(IO_FAILURE, "the request has no end of its variables.")
    if len(stdin) > MOST_STDIN:
        raise CniError(IO_FAILURE, f"standard input has {len(stdin)} bytes, more than {MOST_STDIN}.")
    said: dict[str, str] = {}
    for line in head.split(b"\n"):
        name, equals, value = line.partition(b"=")
        key = name.decode(errors="replace")
        if not equals or key not in FIELDS:
            continue  # a plugin that is newer than this agent may send more
        if key.lower() in said:
            raise CniError(BAD_ENVIRONMENT, f"CNI_{key} is given twice.")
        try:
            said[key.lower()] = value.decode()
        except UnicodeDecodeError:
            raise CniError(UNDECODABLE, f"CNI_{key} is no UTF-8.") from None
    if not said.get("command"):
        raise CniError(BAD_ENVIRONMENT, "CNI_COMMAND is not set.")
    return Call(**said, stdin=stdin)

"""The CNI server's socket: pieces, descriptors, hang-ups, strangers. No descriptor is ever left."""

import array
import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from netloom_reconcilers.node.addresses.server import SocketUnusable
from netloom_reconcilers.node.endpoints import connection
from netloom_reconcilers.node.endpoints.connection import Reply, Sandbox
from netloom_reconcilers.node.endpoints.errors import CniError
from netloom_reconcilers.node.endpoints.framing import MAGIC, Call
from netloom_reconcilers.node.endpoints.server import MOST_CALLERS, CniServer
from tests.runtime.scripted import until

ADD = Call(command="ADD", containerid="c1", netns="/run/netns/x", ifname="eth0", stdin=b'{"cniVersion":"1.0.0"}')

DEL = Call(command="DEL", containerid="c1", netns="/run/netns/x", ifname="eth0", stdin=b'{"cniVersion":"1.0.0"}')


def descriptors() -> int:
    """That this process has."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the one that lists is counted as well, each time


class Host:
    """Who calls: a plugin, spoken for by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unshared = _namespace()
        self.netns, self.inside = self._unshared

    def close(self) -> None:
        for each in self._unshared:
            os.close(each)

    async def connect(self) -> socket.socket:
        caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        caller.setblocking(False)
        await asyncio.get_running_loop().sock_connect(caller, str(self.path))
        return caller

    async def ask(self, call: Call | bytes, *passed: int) -> tuple[int, bytes]:
        """Status and output of one call."""
        caller = await self.connect()
        with contextlib.closing(caller):
            send(caller, call if isinstance(call, bytes) else call.encode(), *passed)
            return parse(await self.answer(caller))

    async def answer(self, caller: socket.socket) -> bytes:
        got = b""
        async with asyncio.timeout(10):
            while piece := await asyncio.get_running_loop().sock_recv(caller, 65536):
                got += piece
        return got


def send(caller: socket.socket, data: bytes, *passed: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", passed))] if passed else []
    assert caller.sendmsg([data], rights) == len(data)


def parse(got: bytes) -> tuple[int, bytes]:
    head, _, output = got.partition(b"\n")
    assert head.startswith(MAGIC), got
    status, length = head.removeprefix(MAGIC).split()
    assert len(output) == int(length)
    return int(status), output


def _namespace() -> tuple[int, int]:
    """A network namespace, and an rtnetlink socket in it, made by a thread that ends with that."""
    import ctypes
    from concurrent.futures import ThreadPoolExecutor

    def make() -> tuple[int, int]:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x40000000):
            raise OSError(ctypes.get_errno(), "a network namespace cannot be made")
        netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        return netns, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0).detach()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


class Handler:
    """What the server hands calls to: remembers them; `hold` keeps them waiting."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.sandboxes: list[tuple[int, int] | None] = []
        self.hold: asyncio.Event | None = None
        self.cancelled = self.unheard = 0
        self.raises: Exception | None = None

    async def __call__(self, call: Call, sandbox: Sandbox | None) -> Reply:
        self.calls.append(call)
        self.sandboxes.append((os.fstat(sandbox.netns).st_ino, sandbox.inside) if sandbox else None)
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.raises is not None:
            raise self.raises

        async def unheard() -> None:
            self.unheard += 1

        return Reply(0, b"{}", unheard)


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
async def host(tmp_path: Path, handler: Handler) -> AsyncIterator[Host]:
    """With a server; when it has ended, as many descriptors are open as before."""
    asyncio.get_running_loop()
    before = descriptors()
    server = CniServer(handler)
    async with server.listening(tmp_path / "cni.sock"):
        host = Host(tmp_path / "cni.sock")
        host.server = server  # type: ignore[attr-defined]
        try:
            yield host
        finally:
            host.close()
    assert not (tmp_path / "cni.sock").exists()
    assert server.callers == 0
    assert descriptors() == before


def server_of(host: Host) -> CniServer:
    server: Any = host
    return server.server  # type: ignore[no-any-return]


async def test_a_call_and_its_answer(host: Host, handler: Handler) -> None:
    assert (host.path.stat().st_mode & 0o777) == 0o600
    assert await host.ask(ADD, host.netns, host.inside) == (0, b"{}")
    assert handler.calls == [ADD]
    (sandbox,) = handler.sandboxes
    assert sandbox is not None
    assert sandbox[0] == os.fstat(host.netns).st_ino
    assert await host.ask(Call(command="STATUS", stdin=b"{}")) == (0, b"{}")
    assert handler.sandboxes[1] is None
    await until(lambda: server_of(host).callers == 0)


async def test_bytes_come_in_pieces_and_descriptors_with_any_of_them(host: Host, handler: Handler) -> None:
    sent = ADD.encode()
    caller = await host.connect()
    with contextlib.closing(caller):
        for at in range(0, len(sent), 7):
            send(caller, sent[at : at + 7], *((host.netns,) if at == 0 else (host.inside,) if at == 7 else ()))
            await asyncio.sleep(0)
        assert parse(await host.answer(caller)) == (0, b"{}")
    assert handler.calls == [ADD]


async def test_a_big_configuration_passes(host: Host, handler: Handler) -> None:
    caller = await host.connect()
    big = Call(command="ADD", stdin=b"x" * (4 << 20))
    with contextlib.closing(caller):
        await asyncio.get_running_loop().sock_sendall(caller, big.encode())
        assert parse(await host.answer(caller)) == (0, b"{}")
    assert handler.calls == [big]


async def test_wrong_descriptors_are_refused(host: Host, handler: Handler) -> None:
    mine = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    uts = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    wrong: dict[tuple[int, ...], tuple[int, str]] = {
        (mine, host.inside): (4, "the node's own network namespace"),
        (uts, host.inside): (4, "CNI_NETNS is no network namespace"),
        (null, host.inside): (4, "CNI_NETNS is no network namespace"),
        (host.netns, null): (5, "no rtnetlink socket"),
        (host.netns,): (5, "1 descriptor came"),
        (host.netns, host.inside, null): (5, "no switch of IPv6"),
        (host.netns, host.inside, null, null): (5, "more than 3 descriptors"),
        tuple([null] * 40): (5, "more than 3 descriptors"),
    }
    try:
        for passed, (code, said) in wrong.items():
            status, output = await host.ask(ADD, *passed)
            told = msgspec.json.decode(output)
            assert (status, told["code"]) == (1, code), told
            assert said in told["details"]
    finally:
        for each in (mine, uts, null):
            os.close(each)
    assert handler.calls == []


async def test_a_deletion_never_fails_for_its_descriptors(host: Host, handler: Handler) -> None:
    """As of a runtime that has the plugin go on in the node's own namespace (CNI_NETNS_OVERRIDE)."""
    mine = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    before = descriptors()
    for passed in ((mine, host.inside), (null,), (null,) * 40, (host.netns, host.inside)):
        assert await host.ask(DEL, *passed) == (0, b"{}")
    assert handler.sandboxes == [None] * 4
    assert descriptors() == before
    for each in (mine, null):
        os.close(each)


async def test_an_agent_without_free_descriptors_serves_deletions(host: Host, handler: Handler) -> None:
    adding, deleting = await host.connect(), await host.connect()
    await until(lambda: server_of(host).callers == 2)
    with no_free_descriptors():
        send(adding, ADD.encode(), host.netns, host.inside)
        status, output = parse(await host.answer(adding))
        send(deleting, DEL.encode(), host.netns, host.inside)
        assert parse(await host.answer(deleting)) == (0, b"{}")
    told = msgspec.json.decode(output)
    assert (status, told["code"]) == (1, 11)
    assert "LimitNOFILE" in told["details"]
    assert handler.calls == [DEL]
    for each in (adding, deleting):
        each.close()


@contextlib.contextmanager
def no_free_descriptors() -> Iterator[None]:
    """All below the limit are in use."""
    before, filling = resource.getrlimit(resource.RLIMIT_NOFILE), list[int]()
    most = max(int(each) for each in os.listdir("/proc/self/fd"))  # noqa: PTH208
    while not filling or filling[-1] < most:
        filling.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    resource.setrlimit(resource.RLIMIT_NOFILE, (filling[-1] + 1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for each in filling:
            os.close(each)


async def test_the_switch_of_ipv6_comes_along_where_it_is_off(host: Host, handler: Handler) -> None:
    with open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "rb") as switch:  # noqa: PTH123
        assert await host.ask(ADD, host.netns, host.inside, switch.fileno()) == (0, b"{}")


async def test_nonsense_gets_an_answer_and_no_call(host: Host, handler: Handler) -> None:
    status, output = await host.ask(b"GET / HTTP/1.1\r\n\r\n", host.netns, host.inside)
    assert (status, msgspec.json.decode(output)["code"]) == (1, 5)
    assert handler.calls == []


async def test_who_hangs_up_ends_its_call(host: Host, handler: Handler) -> None:
    handler.hold = asyncio.Event()
    caller = await host.connect()
    send(caller, ADD.encode(), host.netns, host.inside)
    await until(lambda: len(handler.calls) == 1)
    caller.close()
    await until(lambda: handler.cancelled == 1)
    await until(lambda: server_of(host).callers == 0)


async def test_who_is_gone_before_it_is_answered_is_unheard(host: Host, handler: Handler) -> None:
    """Between the work's end and the answer: the socket cannot be written to any more."""
    gone = asyncio.Event()
    handler.hold = gone
    caller = await host.connect()
    send(caller, ADD.encode(), host.netns, host.inside)
    await until(lambda: len(handler.calls) == 1)
    gone.set()
    caller.close()
    await until(lambda: server_of(host).callers == 0)
    assert handler.unheard + handler.cancelled == 1


async def test_who_says_nothing_is_let_go(host: Host, handler: Handler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 0.01)
    silent = await host.connect()
    half = await host.connect()
    send(half, ADD.encode()[:30], host.netns, host.inside)
    assert await host.answer(silent) == b""
    assert await host.answer(half) == b""
    silent.close()
    half.close()
    assert handler.calls == []


async def test_a_fault_of_the_agent_is_told_as_passing(host: Host, handler: Handler) -> None:
    handler.raises = KeyError("oops")
    status, output = await host.ask(ADD, host.netns, host.inside)
    assert (status, msgspec.json.decode(output)["code"]) == (1, 11)
    handler.raises = CniError(7, "no.")
    assert msgspec.json.decode((await host.ask(ADD, host.netns, host.inside))[1])["code"] == 7


async def test_the_end_of_the_agent_ends_all_calls(tmp_path: Path, handler: Handler) -> None:
    handler.hold = asyncio.Event()
    before = descriptors()
    server = CniServer(handler)
    async with server.listening(tmp_path / "cni.sock"):
        host = Host(tmp_path / "cni.sock")
        callers = [await host.connect() for _ in range(20)]
        for each in callers:
            send(each, ADD.encode(), host.netns, host.inside)
        await until(lambda: len(handler.calls) == 20)
    assert handler.cancelled == 20
    for each in callers:
        assert await host.answer(each) == b""
        each.close()
    host.close()
    assert descriptors() == before


async def test_many_callers_wait_for_their_turn(host: Host, handler: Handler) -> None:
    handler.hold = asyncio.Event()
    callers = [await host.connect() for _ in range(MOST_CALLERS + 20)]
    for each in callers:
        send(each, Call(command="STATUS", stdin=b"{}").encode())
    await until(lambda: len(handler.calls) == MOST_CALLERS)
    assert server_of(host).callers == MOST_CALLERS
    handler.hold.set()
    answers = [parse(await host.answer(each)) for each in callers]
    assert answers == [(0, b"{}")] * len(callers)
    for each in callers:
        each.close()


async def test_nobody_but_root_is_answered(host: Host, handler: Handler) -> None:
    """Also where the mode of the socket means nothing."""
    host.path.chmod(0o666)
    for folder in (host.path.parent, *host.path.parents):
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 1:
            folder.chmod(folder.stat().st_mode | 0o11)
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(bytes.fromhex(sys.argv[2])); print(s.recv(99))"
    )
    command = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-I", "-c", script]
    done = await asyncio.to_thread(
        subprocess.run, [*command, str(host.path), ADD.encode().hex()], capture_output=True, text=True, timeout=30
    )
    assert done.stdout.strip() in ("b''", "") or "Connection reset" in done.stderr, done
    assert server_of(host).refused == 1
    assert handler.calls == []


async def test_two_agents_do_not_share_a_socket(host: Host, handler: Handler) -> None:
    with pytest.raises(SocketUnusable, match="--cni-socket"):
        async with CniServer(handler).listening(host.path):
            pass
    assert await host.ask(ADD, host.netns, host.inside) == (0, b"{}")

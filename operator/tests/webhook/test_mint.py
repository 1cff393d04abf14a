"""Certificates made by child processes: what goes wrong there, and what is left of them."""

import asyncio
import contextlib
import sys
from pathlib import Path

import pytest

from netloom.webhook import certificates
from netloom.webhook.certificates import CA, BadCertificate, BadSecret, Validity
from netloom.webhook.mint import Mint, MintFailed
from netloom.webhook.tls import ServingTLS
from tests.runtime.scripted import until
from tests.webhook.conftest import NOW
from tests.webhook.test_certificates import handshake

pytestmark = pytest.mark.timeout(60)

NEW_CA = ("a CA was not made", certificates.new_ca, NOW)


def script(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


def children() -> set[str]:
    """Processes that this one has, ended or not, as far as nobody waited for them."""
    return set(Path("/proc/thread-self/children").read_text().split())


@pytest.mark.slow
async def test_what_the_child_makes_is_what_the_rule_asks_for():
    mint = Mint()
    ca = await mint.call("", certificates.new_ca, NOW)
    assert (ca.created, ca.expires) == (NOW, NOW + certificates.CA_LIFE)
    serving = await mint.call("", certificates.issue, ca, ["guard.test", "127.0.0.1"], NOW)
    assert (serving.expires, serving.signer) == (NOW + certificates.SERVING_LIFE, ca.certificate)
    presented = ServingTLS()
    presented.present(serving.certificate, serving.key)
    for host in ("guard.test", "127.0.0.1"):
        handshake(presented, ca.certificate, host)
    assert await mint.call("", certificates.parse, certificates.dump([ca]), "ns/s") == (ca,)
    valid = await mint.call("", certificates.validity, serving.certificate)
    assert valid == (Validity(serving.begins, serving.expires),)
    assert mint.children == 4


@pytest.mark.slow
async def test_errors_come_through_as_they_are(ca: CA):
    data = certificates.dump([ca]) | {"password": "eA=="}
    with pytest.raises(
        BadSecret, match=r"^Secret ns/s: data\['password'\] is nothing that the guard put there; delete"
    ):
        await Mint().call("", certificates.parse, data, "ns/s")
    with pytest.raises(BadCertificate, match=r"^not a certificate in PEM"):
        await Mint().call("", certificates.validity, "nonsense")
    with pytest.raises(MintFailed, match=r"^a serving certificate was not issued: a serving certificate needs a name"):
        await Mint().call("a serving certificate was not issued", certificates.issue, ca, [], NOW)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (script("import nothing_of_that_name"), r"ended with status 1: ModuleNotFoundError: No module named 'nothing_"),
        (script("import os; os.kill(os.getpid(), 9)"), "ended with status -9: $"),
        (script("print('hello')"), r"answered nonsense \(Memo value not found"),
        (script("import pickle, sys; sys.stdout.buffer.write(pickle.dumps(1))"), r"answered nonsense \(.*int"),
        (script(""), r"answered nonsense \(Ran out of input\)$"),
        (("/nowhere/python",), r"no process to do it could be started: .*No such file or directory"),
    ],
)
async def test_a_child_that_fails_is_a_sentence(command: tuple[str, ...], sentence: str):
    before = children()
    with pytest.raises(MintFailed, match=f"^a CA was not made: .*{sentence}"):
        await Mint(command).call(*NEW_CA)
    assert children() <= before


async def test_a_child_that_hangs_is_killed():
    before = children()
    with pytest.raises(MintFailed, match=r"^a CA was not made: .* had not ended after 0\.2 s, and was killed$"):
        await Mint(script("import time; time.sleep(600)"), deadline=0.2).call(*NEW_CA)
    await until(lambda: children() <= before, "it is gone")


async def test_cancellation_kills_the_child():
    before = children()
    task = asyncio.create_task(Mint(script("import time; time.sleep(600)")).call(*NEW_CA))
    await until(lambda: children() - before, "it runs")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    await until(lambda: children() <= before, "it is gone")


async def test_keys_are_on_no_command_line_and_in_no_environment(ca: CA):
    """The child looks at what others may see of it, and ends well if it is nothing of the key that it was sent."""
    look = (
        "import pathlib, pickle, sys; secret = pickle.load(sys.stdin.buffer).args[0].key.splitlines()[1]; "
        "me = pathlib.Path('/proc/self'); "
        "seen = (me / 'cmdline').read_text() + (me / 'environ').read_text(); "
        "assert secret not in seen, 'seen'; sys.exit('not seen')"
    )
    with pytest.raises(MintFailed, match=r"ended with status 1: not seen$"):
        await Mint(script(look)).call("", certificates.issue, ca, ["guard.test"], NOW)

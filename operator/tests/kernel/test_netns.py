"""Namespaces of tests: who lives keeps what is his, and nothing stays of who was killed."""

import subprocess
import sys

from tests.kernel.netns import Lab, Namespace

IN_OTHER_PIDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c")
"""As in another container that shares the names: this process's id says nothing there."""


def there(namespace: Namespace | str) -> bool:
    name = namespace if isinstance(namespace, str) else namespace.name
    return name in subprocess.check_output(["ip", "netns", "list"], text=True).split()


def run(script: str) -> str:
    script = f"from tests.kernel.netns import Lab, prepare\nprepare()\n{script}"
    return subprocess.run([*IN_OTHER_PIDS, script], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()


def test_who_lives_keeps_what_is_his_and_nothing_stays_of_who_was_killed(lab: Lab) -> None:
    ours = lab.namespace("ours")
    killed = run("import os; print(Lab().namespace('theirs').name, flush=True); os._exit(9)")
    assert (there(ours), there(killed)) == (True, True)
    assert run("print(Lab().namespace('next').name)") != killed
    assert (there(ours), there(killed)) == (True, False)

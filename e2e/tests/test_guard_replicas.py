"""Two guards behind one address, as the Deployment runs them: both answer, and one goes while the other stays."""

from __future__ import annotations

import base64
import datetime as dt
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netloom.webhook import certificates
from netloom.webhook.names import CA_SECRET, NAME, Scope
from netloom_e2e.client import ApiFailure
from netloom_e2e.clocks import JUMPS, WallClock
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.guard import Guard, Guards
from netloom_e2e.lab import wait_for
from netloom_e2e.operators import free_port
from netloom_e2e.relay import Balancer

LAG_SECONDS = 1.0
"""After which the address knows that a guard is going. A guard waits for longer than that before it goes."""
WRITERS = 4
MANY = 200


class Writes:
    """Guarded writes without a pause, as dry runs, by WRITERS at a time."""

    def __init__(self, plane: ControlPlane) -> None:
        self.answers: list[str] = []
        """Of each what was said; "" if it was allowed."""
        self._plane = plane
        self._stop = threading.Event()

    def more(self) -> None:
        """Waits until MANY more were answered."""
        enough = len(self.answers) + MANY
        wait_for("writes are answered", lambda: len(self.answers) >= enough, deadline=60)

    def wait_allowed(self) -> None:
        """Until the last MANY, none of them from before the call, were all allowed."""
        self.more()
        wait_for("writes are allowed", lambda: not any(self.answers[-MANY:]), deadline=60)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        with ThreadPoolExecutor(WRITERS) as pool:
            writers = [pool.submit(self._write) for _ in range(WRITERS)]
            try:
                yield
            finally:
                self._stop.set()
        for writer in writers:
            writer.result()

    def _write(self) -> None:
        path = "/api/v1/namespaces/kube-system/configmaps?dryRun=All"
        body = {"metadata": {"name": "cilium-config"}, "data": {"ipam": "cluster-pool"}}
        while not self._stop.is_set():
            try:
                self._plane.client.request("POST", path, body)
            except ApiFailure as failure:
                self.answers.append(str(failure))
            else:
                self.answers.append("")


class Replicas:
    """Guards with ports of their own, and the address that stands for those of them that are ready."""

    def __init__(self, guards: Guards, balancer: Balancer) -> None:
        self._guards = guards
        self._balancer = balancer
        self._running: dict[int, Guard] = {}

    def start(self, clock: WallClock | None = None) -> Guard:
        """One more, which is ready; where a clock is given, it goes by that."""
        port = free_port()
        guard = self._running[port] = self._guards.start(port=port, env=clock.env if clock else None)
        wait_for("the guard is ready", guard.ready, deadline=30)
        self._balancer.share({port: each.ready for port, each in self._running.items()})
        return guard


@pytest.fixture
def replicas(control_plane: ControlPlane) -> Iterator[Replicas]:
    guards = Guards(control_plane, Scope(guarded="cilium"))
    with Balancer(LAG_SECONDS).running() as balancer:
        guards.url = f"https://127.0.0.1:{balancer.port}"
        guards.install()
        try:
            yield Replicas(guards, balancer)
        finally:
            guards.kill()
            guards.uninstall()


def asked(guard: Guard) -> bool:
    return guard.metric("netloom_guard_reviews_total") > 0


def test_a_rolling_update_refuses_no_write(control_plane: ControlPlane, replicas: Replicas) -> None:
    writes = Writes(control_plane)
    first, second = replicas.start(), replicas.start()
    with writes.going_on():
        writes.wait_allowed()
        wait_for("both are asked", lambda: asked(first) and asked(second), deadline=30)
        began = len(writes.answers)
        first.stop()
        third = replicas.start()
        writes.more()
        second.stop()
        replicas.start()
        writes.more()
        assert asked(third)
        assert [answer for answer in writes.answers[began:] if answer] == []

        third.kill()
        writes.wait_allowed()
    assert not any(answer for answer in writes.answers if "failed calling webhook" not in answer)


CONFIGURATION = f"/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{NAME}"


def bundles(plane: ControlPlane) -> set[str]:
    """The caBundles of all webhooks, as PEM."""
    hooks = plane.client.request("GET", CONFIGURATION)["webhooks"]
    return {base64.b64decode(hook["clientConfig"].get("caBundle", "")).decode() for hook in hooks}


def add_to_bundles(plane: ControlPlane, certificate: str) -> None:
    """A foreign CA beside the guards' own: writes go on, and the guards have something to put right."""
    configuration = plane.client.request("GET", CONFIGURATION)
    for hook in configuration["webhooks"]:
        own = base64.b64decode(hook["clientConfig"]["caBundle"]).decode()
        hook["clientConfig"]["caBundle"] = base64.b64encode((own + certificate).encode()).decode()
    plane.client.request("PUT", CONFIGURATION, configuration)


def secret_of(plane: ControlPlane, scope: Scope) -> dict[str, Any]:
    path = f"/api/v1/namespaces/{scope.namespace}/secrets/{CA_SECRET}"
    return dict(plane.client.request("GET", path)["data"])


def test_no_jump_of_a_clock_refuses_a_write(control_plane: ControlPlane, replicas: Replicas, tmp_path: Path) -> None:
    """The clock of one guard, then the other's as well; meanwhile the guards look at what they keep, and write."""
    one, other = WallClock.made(tmp_path / "one"), WallClock.made(tmp_path / "other")
    guards = [replicas.start(one), replicas.start(other)]
    foreign = certificates.new_ca(dt.datetime.now(dt.UTC)).certificate
    writes = Writes(control_plane)

    def put_right() -> None:
        add_to_bundles(control_plane, foreign)
        wait_for("the caBundle is put right", lambda: bundles(control_plane) == right, deadline=30)

    with writes.going_on():
        writes.wait_allowed()
        secret, right, began = secret_of(control_plane, Scope()), bundles(control_plane), len(writes.answers)
        for by in JUMPS:
            with one.jumped(by):
                put_right()
                with other.jumped(by):
                    put_right()
                    writes.more()
        writes.more()
        assert [answer for answer in writes.answers[began:] if answer] == []
    assert secret_of(control_plane, Scope()) == secret
    for guard in guards:
        assert guard.ready()
        assert guard.metric("netloom_component_restarts_total") == 0
        assert "Traceback" not in guard.process.log.read_text()


def test_a_ca_of_the_future_heals_by_itself(control_plane: ControlPlane, replicas: Replicas) -> None:
    """What a version left that went by its own clock, 400 days ahead: guards that nobody believes."""
    future = certificates.new_ca(dt.datetime.now(dt.UTC) + dt.timedelta(days=400))
    path = f"/api/v1/namespaces/{Scope().namespace}/secrets"
    body = {"metadata": {"name": CA_SECRET}, "data": certificates.dump([future])}
    control_plane.client.request("DELETE", f"{path}/{CA_SECRET}")
    control_plane.client.request("POST", path, body)
    guard = replicas.start()
    writes = Writes(control_plane)
    with writes.going_on():
        writes.wait_allowed()
    assert asked(guard)
    assert len(secret_of(control_plane, Scope())) == 4, "beside it stands one that is valid now"

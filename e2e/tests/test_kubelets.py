"""Pods on a real cluster: kubelets, containerd, Services and DNS; first of the test bed itself, without Netloom."""

import os
from collections.abc import Iterator

import pytest

from netloom_e2e import kubelets
from netloom_e2e.kubelets import KubeletCluster
from netloom_e2e.lab import Pod


@pytest.fixture(scope="module")
def bed() -> Iterator[KubeletCluster]:
    kubelets.prepare()
    with KubeletCluster(kubelets.prefix()) as cluster:
        print(cluster.seconds)
        yield cluster


PODS = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: all}
spec:
  selector: {matchLabels: {app: all}}
  template:
    metadata: {labels: {app: all}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: agnhost
          image: ${agnhost}
          imagePullPolicy: Never
          args: [netexec, --http-port=80, --udp-port=81]
---
apiVersion: v1
kind: Service
metadata: {name: all}
spec:
  selector: {app: all}
  ports:
    - {name: http, port: 80}
    - {name: udp, port: 81, protocol: UDP}
"""


def test_x(bed: KubeletCluster) -> None:
    bed.apply(PODS)
    import time

    t = time.monotonic()

    def names():
        return [
            p["metadata"]["name"] for p in bed.plane.client.request("GET", "/api/v1/namespaces/default/pods")["items"]
        ]

    bed.wait("3", lambda: len(names()) == 3)
    pods = [bed.pod(n) for n in names()]
    print("pods", time.monotonic() - t)
    for a in pods:
        for b in pods:
            if a is not b:
                assert a.ping(b.address).lost == 0
    print({n: x.resident() for n, x in bed.nodes.items()})
    print(bed.plane.kubectl("get", "pods,svc,nodes", "-A", "-o", "wide").stdout)
    print(bed.plane.kubectl("exec", names()[0], "--", "/agnhost", "connect", "all:80", check=False))
    print(
        bed.plane.kubectl(
            "exec", names()[0], "--", "wget", "-qO-", "http://all.default.svc.cluster.local/hostname", check=False
        )
    )
    print(bed.plane.kubectl("exec", names()[0], "--", "nslookup", "all.default.svc.cluster.local", check=False))
    print(bed.plane.kubectl("logs", names()[0], check=False))

"""The command line on an API server in which faults can be injected."""

from tests.runtime.conftest import api, kubeconfig, server

__all__ = ["api", "kubeconfig", "server"]

"""Netloom: the node-networking control plane of a Kubernetes cluster."""

__version__ = "0.1.0"

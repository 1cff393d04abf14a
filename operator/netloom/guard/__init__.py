"""What the guard refuses, and why. Pure: a request and what is live go in, a verdict comes out; no await, no I/O.

The webhook (`netloom.webhook`) carries requests here; the caches tell `ClusterState` what is in use as it changes, so
that no decision has to look at thousands of nodes.
"""

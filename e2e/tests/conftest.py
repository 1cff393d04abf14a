from netloom_e2e.fixtures import (
    cluster,
    control_plane,
    control_plane_binaries,
    crds_installed,
    helm_binary,
    kubectl,
    operators,
)

__all__ = [
    "cluster",
    "control_plane",
    "control_plane_binaries",
    "crds_installed",
    "helm_binary",
    "kubectl",
    "operators",
]

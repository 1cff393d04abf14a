from netloom_e2e.fixtures import control_plane, control_plane_binaries, crds_installed, kubectl

__all__ = ["control_plane", "control_plane_binaries", "crds_installed", "kubectl"]

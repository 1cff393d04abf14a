"""What in the DaemonSet or the Deployment of Cilium overrules its ConfigMap, or puts another one in its place.

Cilium's programs read their options with viper: a flag goes before an environment variable `CILIUM_...`, and this
before the files of `--config-dir`, one for each key. For an operator that folder is the ConfigMap, mounted; for an
agent, what the container `config` (`cilium build-config`) put together before, out of the sources of its `--source`.
(Source: pkg/option InitConfig, cilium-dbg/cmd/build-config.go and pkg/option/resolver of cilium/cilium.)

The patterns are as both Python and RE2 take them: the policy asks the same of the same text (`webhook.side_doors`).
"""

import re
from collections.abc import Iterator

from netloom.api.cilium import CONFIG_NAME, Container, ContainersSpec, EnvVar
from netloom.guard.cilium import GUARDED_KEYS, IPAM

CONFIG_DIR = "/tmp/cilium/config-map"
_KEYS = "|".join(GUARDED_KEYS)
FLAG = rf"(?:^|\s)--(?:{_KEYS})(?:[=\s]\S*|$)"
"""A guarded key as a flag, of whatever container: nothing but Cilium has such."""
BUILD_CONFIG = "build-config"
CILIUM = rf"(?:^|[\s/])(?:cilium-agent|cilium-operator|{BUILD_CONFIG})"
"""In the name or the command of a container that runs one of Cilium's programs ..."""
FOLDER = r"(?:^|\s)--config(?:-dir)?(?:[=\s]\S*|$)"
"""... and so reads its files from where this says."""
SOURCE = r"(?:^|\s)--source[=\s]\S*"
OPEN = rf"(?:^|\s)--allow-config-keys[=\s](?:\S*,)?(?:{_KEYS})(?:,|\s|$)"
LIMITED = r"(?:^|\s)--allow-config-keys[=\s]\S"
"""Other sources than the first may set only keys that are named so: none that is guarded, if OPEN is not found."""
MOUNTED = r"^[/.]*tmp[/.]+cilium[/.]+config-map"
"""CONFIG_DIR and what is in it, however a mount's path is written."""
ENVIRONMENT = tuple(
    "CILIUM_" + key.upper().replace("-", "_")
    for key in (*GUARDED_KEYS, "config", "config-dir", "source", "allow-config-keys")
)

ASSIGNED = rf"\b(?:{'|'.join(ENVIRONMENT)})=[^\s;&|)]*"
"""Such a variable, as a shell is told to set it."""
QUOTES = ("'", '"')
"""What a shell takes away from its words."""
NEEDED: dict[str, tuple[str, ...]] = {
    FLAG: ("--ipam", "--cluster-pool-"),
    FOLDER: ("--config",),
    SOURCE: (BUILD_CONFIG,),
    ASSIGNED: ("CILIUM_",),
}
"""What a text has in it, one of these, where such a pattern is found: to look for that first is cheap, and the API
server refuses what takes it too long (a sidecar with a script of 50 kB did)."""


def first_source(namespace: str) -> str:
    """A `--source` that begins with the guarded ConfigMap."""
    return rf"^--source (?:{_config_map(namespace)})(?:,\S*)?$"


def known_sources(namespace: str) -> str:
    """A `--source` of nothing but what is guarded."""
    known = rf"(?:{_config_map(namespace)}|cilium-node-config(?::(?:{_own(namespace)}(?:/\S*)?)?)?)"
    return rf"^--source {known}(?:,{known})*$"


def overrides(pod: ContainersSpec, namespace: str, mode: str) -> list[str]:
    """Each as `CONTAINER: WHAT`. mode: the one in force, which may be said anywhere."""
    shown = []
    for container in (*pod.init_containers, *pod.containers):
        found = [*_flags(container, namespace, mode), *_environment(container, mode), *_mounts(container, pod)]
        shown += [f"{container.name}: {each}" for each in found]
    return shown


def _flags(container: Container, namespace: str, mode: str) -> Iterator[str]:
    text = " ".join((*container.command, *container.args))
    for quote in QUOTES:
        text = text.replace(quote, "")
    yield from (flag for flag in _found(FLAG, text) if flag != f"--{IPAM} {mode}")
    if _runs_cilium(container):
        yield from (flag for flag in _found(FOLDER, text) if flag != f"--config-dir {CONFIG_DIR}")
    assigned = f"{ENVIRONMENT[0]} {mode}"
    yield from (each for each in _found(ASSIGNED, text) if each != assigned)
    if BUILD_CONFIG in text:
        limited = re.search(LIMITED, text) and not re.search(OPEN, text.lower())
        allowed = (known_sources(namespace), *((first_source(namespace),) if limited else ()))
        yield from (flag for flag in _found(SOURCE, text) if not any(re.search(each, flag) for each in allowed))


def _found(pattern: str, text: str) -> list[str]:
    return [each.strip().replace("=", " ", 1) for each in re.findall(pattern, text)]


def _environment(container: Container, mode: str) -> Iterator[str]:
    for variable in container.env:
        if variable.name in ENVIRONMENT and not _guarded(variable, mode):
            yield f"env {variable.name} {'of another object' if variable.value_from else variable.value}"
    if container.env_from and _runs_cilium(container):
        yield "envFrom"


def _runs_cilium(container: Container) -> bool:
    return re.search(CILIUM, " ".join((container.name, *container.command, *container.args))) is not None


def _guarded(variable: EnvVar, mode: str) -> bool:
    """Whether a variable repeats the mode in force, or what the guarded ConfigMap says."""
    reference = (variable.value_from or {}).get("configMapKeyRef")
    if isinstance(reference, dict):
        return reference.get("name") == CONFIG_NAME and reference.get("key") in GUARDED_KEYS
    return variable.value_from is None and (variable.name, variable.value) == (ENVIRONMENT[0], mode)


def _mounts(container: Container, pod: ContainersSpec) -> Iterator[str]:
    guarded = [
        each.name
        for each in pod.volumes
        if each.config_map and each.config_map.name == CONFIG_NAME and not each.config_map.items
    ]
    for mount in container.volume_mounts:
        if re.search(MOUNTED, mount.mount_path) and mount.name not in guarded:
            yield f"volume {mount.name} at {mount.mount_path}"


def _config_map(namespace: str) -> str:
    return rf"config-map(?::(?:(?:{_own(namespace)}/)?{CONFIG_NAME})?)?"


def _own(namespace: str) -> str:
    return rf"(?:{re.escape(namespace)}|\$\(CILIUM_K8S_NAMESPACE\))"

"""The Helm chart of this tree, and what Helm makes of it without a cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from netloom.runtime.yaml_documents import documents
from netloom_e2e import binaries

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "chart" / "netloom"
CI = CHART / "ci"
MONITORING = "monitoring.coreos.com/v1"
"""Kinds of Prometheus' operator, which a cluster may have."""

SOME_IMAGE = "netloom"
"""The `image.repository` of a release whose pods nobody runs."""

Manifest = dict[str, Any]


class ChartError(Exception):
    """Helm's refusal, in Helm's words."""


def helm(*arguments: str | Path) -> str:
    """What Helm prints. It finds no cluster, and nothing of its user's. Raises ChartError."""
    command = [str(binaries.helm()), *map(str, arguments)]
    nowhere = {f"HELM_{kind}_HOME": "/nonexistent" for kind in ("CACHE", "CONFIG", "DATA")}
    environment = os.environ | nowhere | {"KUBECONFIG": "/nonexistent"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    if done.returncode:
        raise ChartError(f"{done.stdout}{done.stderr}")
    return done.stdout


def template(
    *values: Path | Mapping[str, Any], namespace: str = "netloom-system", options: tuple[str, ...] = ()
) -> str:
    """The text of all manifests, as where Helm sees a cluster. values: files, or what would be in one, but for the
    image. Raises ChartError."""
    arguments: list[str | Path] = ["template", "netloom", CHART, f"--namespace={namespace}", *options]
    arguments += [f"--api-versions={MONITORING}", "--set=cleanup.withoutCluster=true"]
    if not any(isinstance(each, Path) for each in values):
        arguments.append(f'--set-json=image.repository="{SOME_IMAGE}"')
    for each in values:
        if isinstance(each, Path):
            arguments += ["--values", each]
        else:
            arguments += [f"--set-json={key}={json.dumps(value)}" for key, value in each.items()]
    return helm(*arguments)


def rendered(*values: Path | Mapping[str, Any], **options: Any) -> list[Manifest]:
    """The manifests; as `template`."""
    return [each for each in documents(template(*values, **options)) if each]


def older(before: Path, folder: Path) -> Path:
    """A chart as it would have been before networks had `forwarding`, and before there were prefilters; put into a
    folder. before: the one of another commit, whose definitions of objects may well be those of this tree."""
    chart = folder / "netloom"
    shutil.copytree(before, chart)
    (chart / "crds" / "netloomprefilters.yaml").unlink()
    file = chart / "crds" / "netloomnetworks.yaml"
    definition = yaml.safe_load(file.read_text())
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"]["forwarding"]
    file.write_text(yaml.safe_dump(definition))
    for path in ("templates/network.yaml", "files/known.yaml"):
        template = chart / path
        text = template.read_text()
        template.write_text("".join(line for line in text.splitlines(keepends=True) if "forwarding" not in line))
    values = chart / "values.yaml"
    values.write_text(re.sub(r"^forwarding:\n( +.*\n)+", "", values.read_text(), flags=re.MULTILINE))
    return chart

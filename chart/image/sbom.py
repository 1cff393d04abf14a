"""Prints what is in an image as a CycloneDX 1.5 document: Netloom, Python packages, Debian packages.

`sbom.py PYPROJECT FOLDER STATUS`: FOLDER holds installed Python packages, STATUS is dpkg's file of the image. Nothing
of the time or the machine of the build is in it: equal images have equal lists.
"""

import json
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import quote


def document(root: dict[str, object], components: list[dict[str, object]]) -> dict[str, object]:
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": root},
        "components": sorted(components, key=lambda component: str(component["purl"])),
    }


def netloom(pyproject: str) -> dict[str, object]:
    project = tomllib.loads(pyproject)["project"]
    return {
        "type": "application",
        "bom-ref": f"pkg:pypi/{project['name']}@{project['version']}",
        "name": project["name"],
        "version": project["version"],
        "licenses": [{"license": {"id": project["license"]}}],
    }


def python_packages(folder: Path) -> list[dict[str, object]]:
    """By the metadata that wheels bring."""
    return [
        _component(each.metadata["Name"], each.version, f"pkg:pypi/{_lower(each.metadata['Name'])}@{each.version}")
        for each in distributions(path=[str(folder)])
    ]


def debian_packages(status: str) -> list[dict[str, object]]:
    """Of dpkg's status file: what is installed."""
    found = []
    for paragraph in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status", "").endswith(" installed"):
            name, version, arch = fields["Package"], fields["Version"], fields["Architecture"]
            source = fields.get("Source", name).split(" ")[0]
            purl = f"pkg:deb/debian/{name}@{quote(version)}?arch={arch}&upstream={source}"
            found.append(_component(name, version, purl))
    return found


def _component(name: str, version: str, purl: str) -> dict[str, object]:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _lower(name: str) -> str:
    return name.lower().replace("_", "-")


if __name__ == "__main__":
    libraries = python_packages(Path(sys.argv[2])) + debian_packages(Path(sys.argv[3]).read_text())
    json.dump(document(netloom(Path(sys.argv[1]).read_text()), libraries), sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")

#!/usr/bin/env python3
"""Print the lower bound of each dependency in pyproject.toml as a pip constraint: `name>=1.2` becomes `name==1.2`.

Exact pins (the extra `bench`) are left out. Transitive dependencies are left to pip. Needs Python 3.11 alone.
"""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,-]+\])?(?P<operator>>=|==)(?P<version>[\w.]+)")


def lower_bounds(project: dict[str, Any]) -> list[str]:
    """Constraints, sorted by name.

    Parameters
    ----------
    project : dict
        The table `project` of pyproject.toml.

    Raises
    ------
    ValueError
        If a requirement is neither `name>=version` nor `name==version`, or if a name has two lower bounds.
    """
    found: dict[str, str] = {}
    for requirements in [project["dependencies"], *project["optional-dependencies"].values()]:
        for requirement in requirements:
            match = REQUIREMENT.fullmatch(requirement)
            if match is None:
                raise ValueError(
                    f"got {requirement!r}, expected name>=version. Give it a lower bound and nothing else."
                )
            name, version = match["name"].lower(), match["version"]
            if match["operator"] == ">=" and found.setdefault(name, version) != version:
                raise ValueError(f"{name}: got lower bounds {found[name]} and {version}. Make them equal.")
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    pyproject = Path(__file__).resolve().parents[1] / "pyproject.toml"
    try:
        print(*lower_bounds(tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]), sep="\n")
    except ValueError as error:
        sys.exit(f"{pyproject.name}: {error}")

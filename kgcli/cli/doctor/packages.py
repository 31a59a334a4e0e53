"""Installed packages: versions, sizes, requirements that are not met, and pairs that are known to clash."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement

OWN = "kgcli"
# Packages of which both must not be installed, and why.
CLASHES = {
    ("opencv-python", "opencv-python-headless"): "both install the module cv2, each over the other's files",
    ("opencv-contrib-python", "opencv-python-headless"): "both install the module cv2, each over the other's files",
    ("pillow-simd", "pillow"): "both install the module PIL, each over the other's files",
    ("xformers", "diffusers"): "diffusers imports xformers where it is installed, and fails if it was built for "
    "another torch; kgcli does not use it",
    ("flash-attn", "transformers"): "transformers imports flash-attn where it is installed, and fails if it was built "
    "for another torch; kgcli does not use it",
    ("apex", "transformers"): "transformers uses the norms of NVIDIA's apex where it is installed; results then differ",
}


def installed(name: str) -> Distribution | None:
    """Return an installed distribution, or None."""
    try:
        return distribution(name)
    except (PackageNotFoundError, ValueError):
        return None


def requirements(found: Distribution) -> Iterator[Requirement]:
    """Yield the requirements of a distribution that apply here, without those of its extras."""
    for text in found.requires or ():
        try:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                yield requirement
        except (InvalidRequirement, UndefinedEnvironmentName):  # another package's metadata, which pip took as well
            continue


def closure() -> dict[str, Distribution]:
    """Return kgcli and everything it needs, by name."""
    found: dict[str, Distribution] = {}
    waiting = [OWN]
    while waiting:
        name = normal(waiting.pop())
        one = None if name in found else installed(name)
        if one is not None:
            found[name] = one
            waiting += [requirement.name for requirement in requirements(one)]
    return found


def faults(packages: dict[str, Distribution]) -> list[str]:
    """Return a line for each requirement of the packages that is not met."""
    lines = []
    for name, one in sorted(packages.items()):
        for requirement in requirements(one):
            found = packages.get(normal(requirement.name))
            if found is None:
                lines.append(f"{requirement.name} is missing, {name} needs it")
            elif not requirement.specifier.contains(found.version, prereleases=True):
                lines.append(f"{requirement.name} is {found.version}, {name} needs {requirement.specifier}")
    return lines


def clashes() -> list[str]:
    """Return a line for each pair of installed packages that is known to clash."""
    return [
        f"{one} and {other} are both installed: {why}"
        for (one, other), why in CLASHES.items()
        if installed(one) is not None and installed(other) is not None
    ]


def size_of(one: Distribution) -> int:
    """Return the bytes of a distribution's files, by its record."""
    total = 0
    for file in one.files or ():
        if file.size is not None:
            total += file.size
        else:
            path = Path(str(file.locate()))
            total += path.stat().st_size if path.is_file() else 0
    return total


def normal(name: str) -> str:
    """Return the canonical form of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()

"""Python and the packages: which are here, and whether they are what the package asks for by its metadata."""

import platform
from collections.abc import Callable, Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from server.check.finding import Finding

SECTION = "versions"
PACKAGE = "facet-ml"
SHOWN = ("torch", "torchvision", "open-clip-torch", "facenet-pytorch", "numpy", "pillow", "aiohttp")
OPTIONAL = ("openvino", "nncf", "torch-tensorrt", "intel-extension-for-pytorch")


def installed(name: str) -> str | None:
    """Return the version of a package, None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions(version_of: Callable[[str], str | None] = installed) -> Iterator[Finding]:
    """Yield what is here, and each required package that is not or has another version than it must."""
    needs: list[Requirement] = []
    wanted = SpecifierSet()
    if version_of(PACKAGE) is not None:  # the images run it from a folder, so that nothing is known of it
        needs = [Requirement(text) for text in metadata.requires(PACKAGE) or ()]
        wanted = SpecifierSet(metadata.metadata(PACKAGE)["Requires-Python"] or "")
    yield python(platform.python_version(), wanted)
    here = {name: version for name in (PACKAGE, *SHOWN, *OPTIONAL) if (version := version_of(name)) is not None}
    yield Finding(SECTION, "packages", ", ".join(f"{name} {version}" for name, version in here.items()))
    for need in needs:
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            yield from _unmet(need, version_of(need.name))


def python(version: str, wanted: SpecifierSet) -> Finding:
    """Return how the version of Python is."""
    if wanted.contains(version, prereleases=True):
        return Finding(SECTION, "Python", version)
    advice = "Make the environment anew with one of these: make clean venv PYTHON=python3.11"
    return Finding(SECTION, "Python", f"{version}, and {wanted} is needed", "to do", advice)


def _unmet(need: Requirement, version: str | None) -> Iterator[Finding]:
    if version is not None and need.specifier.contains(version, prereleases=True):
        return
    how = "not installed" if version is None else f"{version}, and {need.specifier} is needed"
    command = f"pip install --constraint constraints.txt '{need.name}{need.specifier}'"
    yield Finding(SECTION, need.name, how, "to do", f"Run `{command}` in the folder of the checkout.")

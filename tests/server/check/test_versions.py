"""Packages that are missing, too old, or as they must be."""

import pytest
from packaging.specifiers import SpecifierSet

from server.check.versions import installed, python, versions


def test_the_tested_environment_is_well() -> None:
    found = list(versions())
    assert {finding.level for finding in found} == {"ok"}
    assert any("torch 2." in finding.says for finding in found)


def test_what_is_missing_or_too_old_is_told_with_the_command() -> None:
    changed = {"pillow": None, "numpy": "1.26.4"}
    found = versions(lambda name: changed[name] if name in changed else installed(name))
    to_do = {finding.name: finding for finding in found if finding.level == "to do"}
    assert to_do.keys() == {"pillow", "numpy"}
    assert to_do["pillow"].says == "not installed"
    assert to_do["numpy"].says.startswith("1.26.4, and")
    assert "pip install --constraint constraints.txt 'numpy<3,>=2'" in to_do["numpy"].advice


def test_a_checkout_that_is_not_installed_is_no_fault() -> None:
    found = list(versions(lambda name: None if name == "facet-ml" else "1.0"))
    assert {finding.level for finding in found} == {"ok"}


@pytest.mark.parametrize(("version", "level"), [("3.10.2", "to do"), ("3.11.0", "ok"), ("3.14.0", "to do")])
def test_python_is_held_against_what_is_needed(version: str, level: str) -> None:
    assert python(version, SpecifierSet(">=3.11,<3.14")).level == level

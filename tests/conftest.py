"""What all tests share: an environment without settings of the person who runs them."""

import os

import pytest

from server.settings import PREFIX


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes the screenshots of docs/ anew."""
    parser.addoption("--screenshots", metavar="FOLDER", help="write screenshots of the page into this folder")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith((PREFIX, "IMMICH_")):
            monkeypatch.delenv(name)

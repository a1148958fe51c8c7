"""What all tests share: an environment without settings of the person who runs them."""

import os

import pytest

from server.settings import PREFIX


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith((PREFIX, "IMMICH_")):
            monkeypatch.delenv(name)

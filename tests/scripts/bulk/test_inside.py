"""The server without HTTP: what it has in common with the one behind a socket."""

from typing import get_args

import pytest

from engines import catalog
from engines.model import Kind
from scripts.bulk import inside
from server.routes import SHELF
from server.shelf import Part
from tests.server.fakes import FakeEngines, fake_app


@pytest.mark.parametrize("kind", get_args(Kind))
async def test_a_batch_may_be_as_heavy_as_one_of_the_server(kind: Kind) -> None:
    part = Part(kind, catalog.clip("demo") if kind in ("visual", "textual") else catalog.face("demo"))
    served = fake_app(FakeEngines())[SHELF]._limits(part)
    assert inside._limits(part).batch_weight == served.batch_weight


async def test_pictures_are_weighed_in_pixels_and_the_heaviest_of_a_kind_stands_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.loading.DETECTION_BATCH_PIXELS", 7)
    monkeypatch.setattr("server.loading.GPU_DECODED_PIXELS", 8)
    parts = [Part("detection", catalog.face("demo")), Part("visual", catalog.clip("demo"))]
    shelf = fake_app(FakeEngines())[SHELF]
    assert [inside._limits(part).batch_weight for part in parts] == [7, 8]
    assert [shelf._limits(part).batch_weight for part in parts] == [7, 8]

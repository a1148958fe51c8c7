"""The trial of mutated files: a few of each format through a live server, and what it makes of wrong answers."""

from typing import Any

import pytest

from scripts.endure import images
from scripts.endure.images import CLIP, _Right, rows
from scripts.endure.row import Options
from scripts.endure.specimens import KINDS


async def test_a_live_server_stands_mutated_files_of_every_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "COUNT_SHORT", 20)
    *lines, kept = await rows(Options(short=True))
    assert kept.held, kept
    assert kept.tried == 20 * len(KINDS)
    assert [line.what for line in lines] == [f"mutated {kind} files" for kind in KINDS]
    for line in lines:
        assert line.held, line
        assert line.tried == 20
        read, refused, beside = [int(word) for word in line.seen.split() if word.isdecimal()]
        assert read + refused == 20
        assert beside > 0


VECTOR = "[0.6,0.8]"
FACE = {"boundingBox": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}, "score": 0.9, "embedding": VECTOR}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ({"clip": VECTOR, "facial-recognition": [FACE]}, True),
        ({"clip": "[0.60000001,0.79999999]", "facial-recognition": [FACE]}, True),
        ({"clip": "[0.8,0.6]", "facial-recognition": [FACE]}, False),
        ({"clip": "[0.7,0.8]", "facial-recognition": [FACE]}, False),
        ({"clip": VECTOR, "facial-recognition": []}, False),
        ({"clip": VECTOR}, False),
        ({"clip": VECTOR, "facial-recognition": [{**FACE, "embedding": "[0.8,0.6]"}]}, False),
        ({"clip": VECTOR, "facial-recognition": [{**FACE, "boundingBox": {"x1": 0}}]}, False),
        ({"detail": "no"}, False),
    ],
)
def test_a_right_request_must_get_what_it_got_alone(answer: Any, right: bool) -> None:
    alone = {"clip": VECTOR, "facial-recognition": [FACE]}
    assert _Right(CLIP, "image", b"", alone).is_answered_by(answer) is right

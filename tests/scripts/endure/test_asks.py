"""Right requests: each input's own answer is right, that of another one is wrong."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from scripts.endure import asks
from scripts.endure.asks import learn, pictures, plans, texts
from scripts.endure.live import Client, Reply
from scripts.load.answers import WrongAnswer
from tests.server.fakes import unit


class Answering(Client):
    """Answers each body with vectors of its own, and one face where faces are asked for; `status` is of all."""

    def __init__(self, status: int = 200) -> None:
        super().__init__(port=0)
        self.status = status

    async def post(self, body: bytes, content_type: str, path: str = "/predict") -> Reply:
        content = body.split(b"\r\n\r\n", 2)[2]  # without the boundary, which differs each time
        seed = content[: content.rindex(b"\r\n--")]
        answer: dict[str, object] = {}
        if b'"clip"' in body:
            answer["clip"] = json.dumps(unit(seed, length=256).tolist())
        if b'"facial-recognition"' in body:
            box = dict.fromkeys(("x1", "y1", "x2", "y2"), 10)
            face = {"boundingBox": box, "score": 1.0, "embedding": json.dumps(unit(seed, 1, length=512).tolist())}
            answer["facial-recognition"] = [face]
        return Reply(self.status, json.dumps(answer).encode(), 0.01, {})


async def test_an_input_s_own_answer_is_right_and_that_of_another_is_wrong() -> None:
    client = Answering()
    kinds = await learn(client)
    assert sum(kind.share for kind in kinds) == pytest.approx(1)
    for kind in kinds:
        answers = [(await client.post(*body)).body for body in kind.bodies]
        for answer, check in zip(answers, kind.checks, strict=True):
            check(answer)
        with pytest.raises(WrongAnswer):
            kind.checks[0](answers[1])


async def test_an_input_that_is_not_answered_alone_ends_it() -> None:
    with pytest.raises(WrongAnswer, match="pictures: input 0 got 503 alone"):
        await learn(Answering(status=503))


def test_pictures_come_in_all_sizes_and_formats() -> None:
    opened = [Image.open(io.BytesIO(content)) for content in pictures()]
    assert {max(image.size) for image in opened} == set(asks.SIDES)
    assert {image.format for image in opened} == {"JPEG", "PNG", "WEBP"}


def test_texts_are_of_one_letter_and_of_thousands_of_words() -> None:
    lengths = np.array([len(text.decode().split()) for text in texts()])
    assert lengths.min() == 1
    assert lengths.max() > 1000
    assert len(set(texts())) == len(texts())


def test_every_kind_has_several_inputs() -> None:
    assert all(len(plan.contents) >= 4 for plan in plans())

"""Right requests of many kinds, and whether their answers are right: those that the same server gave to each alone.

Knows what is sent, and how near an answer must come: as near as batches come to single items in the tests of the
engines. Does not know when anything is sent.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from engines import catalog
from scripts.bench.sentences import searches
from scripts.endure.live import Client
from scripts.load import answers, inputs
from scripts.load.answers import WrongAnswer

LEAST = 0.9999  # cosine of an answer to that of the same input alone
SIDES = (160, 320, 640, 1440)  # pixels of the longer side
FORMATS: tuple[tuple[str, dict[str, Any]], ...] = (("PNG", {"compress_level": 1}), ("WEBP", {"quality": 80}))
MODEL = {"modelName": catalog.DEMO}
CLIP = {"clip": {"visual": MODEL}}
TEXT = {"clip": {"textual": MODEL}}
FACES = {"facial-recognition": {"detection": MODEL, "recognition": MODEL}}

Check = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """Inputs of one kind, with who checks the answer to each; `share` is how often it is sent, among all kinds."""

    name: str
    share: float
    bodies: Sequence[tuple[bytes, str]]
    checks: Sequence[Check]


@dataclass(frozen=True, slots=True)
class _Plan:
    name: str
    share: float
    entries: dict[str, Any]
    field: Literal["image", "text"]
    contents: Sequence[bytes]


async def learn(client: Client) -> list[Kind]:
    """Return all kinds, after asking for each input alone; raises WrongAnswer where one is not answered at all."""
    return [await _learnt(client, plan) for plan in plans()]


def plans() -> list[_Plan]:
    """Return what is sent of each kind."""
    people = list(inputs.people(6, 480))
    return [
        _Plan("pictures", 0.45, CLIP, "image", pictures()),
        _Plan("texts", 0.40, TEXT, "text", texts()),
        _Plan("faces", 0.10, FACES, "image", people),
        _Plan("pictures with their faces", 0.05, CLIP | FACES, "image", people[:4]),
    ]


def pictures() -> list[bytes]:
    """Return photos of several sizes as JPEG, and some in other formats."""
    found = [photo for side in SIDES for photo in inputs.photos(6, side)]
    for name, options in FORMATS:
        for photo in found[:3]:
            file = io.BytesIO()
            with Image.open(io.BytesIO(photo)) as image:
                image.save(file, name, **options)
            found.append(file.getvalue())
    return found


def texts() -> list[bytes]:
    """Return texts as people type them, shorter ones, and much longer ones than any model reads."""
    usual = searches(40)
    long = [" ".join(usual[:count]) for count in (4, 16, 40)]
    return [text.encode() for text in (*usual, "x", "猫", "🙂 " * 50, *long, " ".join(usual) * 20)]


async def _learnt(client: Client, plan: _Plan) -> Kind:
    bodies = [inputs.form(plan.entries, plan.field, content) for content in plan.contents]
    replies = []
    for number, body in enumerate(bodies):
        reply = await client.post(*body)
        if reply.status != 200:
            raise WrongAnswer(f"{plan.name}: input {number} got {reply.status} alone: {reply.body[:200]!r}")
        replies.append(reply.body)
    return Kind(plan.name, plan.share, bodies, _checks(plan.entries, replies))


def _checks(entries: dict[str, Any], replies: Sequence[bytes]) -> list[Check]:
    """Return for each input a function that raises WrongAnswer unless it is given the answer of that input."""
    clip_dim, face_dim = catalog.clip(catalog.DEMO).dim, catalog.face(catalog.DEMO).dim
    vectors = people = None
    if "clip" in entries:
        vectors = answers.Vectors([answers.clip_vector(reply, clip_dim) for reply in replies], LEAST)
    if "facial-recognition" in entries:
        people = answers.People([answers.faces(reply, face_dim) for reply in replies], LEAST)

    def check(number: int) -> Check:
        def held_against_its_own(answer: bytes) -> None:
            if vectors is not None:
                vectors.check(answers.clip_vector(answer, clip_dim), number)
            if people is not None:
                people.check(answers.faces(answer, face_dim), number)

        return held_against_its_own

    return [check(number) for number in range(len(replies))]

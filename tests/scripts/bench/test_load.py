"""The load on a stub: every body different, every answer counted and held against the right one."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from scripts.bench import load
from scripts.bench.load import FACES, Flow, Plan

RIGHT = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
PHOTOS = (b"first photo", b"second photo")


class Stub:
    """A server that notes what it is sent; answers with the vector of the photo or text, `status` otherwise."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.entries: list[object] = []
        self.bodies: list[bytes] = []
        self.busy = self.busiest = 0

    async def predict(self, request: web.Request) -> web.Response:
        form = await request.post()
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        await asyncio.sleep(0)  # lets the others in
        self.busy -= 1
        image = form.get("image")
        body = image.file.read() if isinstance(image, web.FileField) else str(form["text"]).encode()
        self.entries.append(json.loads(str(form["entries"])))
        self.bodies.append(body)
        vector = RIGHT[int(body.startswith(b"second"))] * 3
        return web.Response(status=self.status, body=orjson.dumps({"clip": json.dumps(vector.tolist())}))

    @asynccontextmanager
    async def plan(self, folder: Path, *, pictures: int = 0, texts: int = 0, faces: int = 0) -> AsyncIterator[Plan]:
        """Serve, and yield the plan of a short load."""
        photos = [folder / f"{number}.jpg" for number in range(len(PHOTOS))]
        for path, photo in zip(photos, PHOTOS, strict=True):
            path.write_bytes(photo)
        np.save(folder / "right.npy", RIGHT)
        app = web.Application()
        app.add_routes([web.post("/predict", self.predict)])
        async with TestServer(app, host="127.0.0.1") as server:
            assert server.port is not None
            yield Plan(
                port=server.port,
                pid=os.getpid(),
                model="some",
                seconds=0.1,
                warm=0.02,
                pictures=pictures,
                texts=texts,
                faces=faces,
                photos=[str(path) for path in photos],
                lines=["first text", "second text"],
                vectors={kind: str(folder / "right.npy") for kind in ("pictures", "texts")},
            )


async def test_every_picture_is_another_and_every_answer_is_checked(tmp_path: Path) -> None:
    stub = Stub()
    async with stub.plan(tmp_path, pictures=3) as plan:
        found = await load.run(plan)
    assert len({hashlib.sha256(body).digest() for body in stub.bodies}) == len(stub.bodies) > 3
    assert {body[:-16] for body in stub.bodies} == set(PHOTOS)
    assert stub.entries[0] == {"clip": {"visual": {"modelName": "some"}}}
    assert stub.busiest <= 3
    pictures = found["pictures"]
    assert 0 < pictures["count"] <= len(stub.bodies)
    assert pictures["per_s"] == pytest.approx(pictures["count"] / found["seconds"], abs=6 / found["seconds"])
    assert 0 < pictures["p50_s"] <= pictures["p99_s"]
    assert pictures["lowest_cosine"] == pytest.approx(1.0)
    assert found["server_busy_s"] >= 0


async def test_texts_and_faces_are_asked_for_beside_pictures(tmp_path: Path) -> None:
    stub = Stub()
    async with stub.plan(tmp_path, pictures=1, texts=1, faces=1) as plan:
        found = await load.run(plan)
    assert {"pictures", "texts", "faces"} <= found.keys()
    asked = [entry for number, entry in enumerate(stub.entries) if entry not in stub.entries[:number]]
    face = {"modelName": FACES}
    assert {"clip": {"textual": {"modelName": "some"}}} in asked
    assert {"facial-recognition": {"detection": face, "recognition": face}} in asked
    assert found["faces"]["lowest_cosine"] is None


async def test_an_answer_that_is_none_ends_the_load(tmp_path: Path) -> None:
    async with Stub(status=500).plan(tmp_path, pictures=2) as plan:
        with pytest.raises(RuntimeError, match=r"the server answered HTTP/1\.1 500"):
            await load.run(plan)


async def test_the_process_reads_a_plan_and_prints_what_came_of_it(tmp_path: Path) -> None:
    async with Stub().plan(tmp_path, texts=2) as plan:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "scripts.bench.load"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        out, _ = await process.communicate(orjson.dumps(asdict(plan)))
    assert process.returncode == 0
    assert orjson.loads(out)["texts"]["lowest_cosine"] == pytest.approx(1.0)


def test_latencies_are_those_of_answers_in_time() -> None:
    flow = Flow(lambda number: [b""], ended=[1.0, 2.0, 3.0, 9.0], taken=[0.5, 0.1, 0.3, 2.0])
    found = load.summary(flow, 1.5, 3.5, "")
    assert (found["count"], found["per_s"]) == (2, pytest.approx(1.0))
    assert [found["p50_s"], found["p99_s"]] == pytest.approx([0.2, 0.298])


@pytest.mark.parametrize("began", [0.0, 0.3, 0.99, 1.01, 1.7])
def test_the_rate_does_not_depend_on_when_batches_end(began: float) -> None:
    """Eight callers, whose requests are answered all together once a second."""
    ended = [float(second) for second in range(1, 8) for _ in range(8)]
    found = load.summary(Flow(lambda number: [b""], ended=ended, taken=[1.0] * len(ended)), began, began + 2.5, "")
    assert found["per_s"] == pytest.approx(8)


def test_one_wrong_answer_is_the_lowest_cosine() -> None:
    answers = [(number, orjson.dumps({"clip": "[0.0, 2.0]"})) for number in (1, 3, 2)]
    assert load.lowest_cosine(answers[:2], RIGHT) == pytest.approx(1.0)
    assert load.lowest_cosine(answers, RIGHT) == pytest.approx(0.0)

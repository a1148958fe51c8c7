"""The application over a real socket, with fake models: checks in order, answers of their own, hang-ups, limits."""

import asyncio
import io
import itertools
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import aiohttp
import numpy as np
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from PIL import Image

from engines.errors import ArtefactBroken, BuildFailed, EngineError, EngineMissing, OutOfMemory, WeightsMissing
from server.app import create_app
from server.routes import DOOR, PRELOAD, SHELF
from server.settings import Settings
from server.shelf import Part
from tests.server.fakes import FakeEngines, FakeItem, FakeModel, fake_app, serving, unit

CLIP = {"clip": {"visual": {"modelName": "demo"}}}
TEXT = {"clip": {"textual": {"modelName": "demo"}}}
FACES = {"facial-recognition": {"detection": {"modelName": "demo"}, "recognition": {"modelName": "demo"}}}


def png(width: int = 64, height: int = 48, colour: tuple[int, int, int] = (200, 30, 40)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


def form(entries: Any, image: bytes | None = None, text: str | None = None) -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field("entries", orjson.dumps(entries).decode())
    if image is not None:
        data.add_field("image", image, filename="blob", content_type="application/octet-stream")
    if text is not None:
        data.add_field("text", text)
    return data


async def until_waiting(app: Any, count: int) -> None:
    """Let the loop turn until `count` items wait in the queues."""
    async with asyncio.timeout(20):
        while sum(loaded.queue.items for loaded in app[SHELF].loaded()) != count:  # noqa: ASYNC110 - a state, no event
            await asyncio.sleep(0.001)


async def until_inside(app: Any, count: int) -> None:
    """Let the loop turn until `count` requests are inside."""
    async with asyncio.timeout(20):
        while app[DOOR].inside != count:  # noqa: ASYNC110 - a state, no event
            await asyncio.sleep(0.001)


async def test_a_photo_comes_back_with_vector_and_faces() -> None:
    engines = FakeEngines()
    async with serving(fake_app(engines)) as client:
        response = await client.post("/predict", data=form({**CLIP, **FACES}, png(64, 48)))
        assert response.status == 200
        assert response.content_type == "application/json"
        body = await response.json()
    assert (body["imageWidth"], body["imageHeight"]) == (64, 48)
    assert np.linalg.norm(orjson.loads(body["clip"])) == pytest.approx(1, abs=1e-3)
    assert [face["score"] for face in body["facial-recognition"]] == pytest.approx([0.95, 0.8])
    assert body["facial-recognition"][0]["boundingBox"] == {"x1": -1, "y1": 2, "x2": 30, "y2": 40}
    assert len(orjson.loads(body["facial-recognition"][1]["embedding"])) == 512


async def test_each_of_many_gets_its_own_answer() -> None:
    engines = FakeEngines()
    async with serving(fake_app(engines)) as client:

        async def ask(number: int) -> None:
            if number % 3:
                response = await client.post("/predict", data=form(TEXT, text=f"text {number}"))
                expected = unit(("text", f"text {number}", None))
            else:
                picture = Image.new("RGB", (20 + number % 7, 20), (number % 256, number // 256, 3))
                response = await client.post("/predict", data=form(CLIP, png(*picture.size, picture.getpixel((0, 0)))))  # type: ignore[arg-type]  # an RGB pixel is three numbers
                expected = unit(("image", picture.size, picture.resize((8, 8)).tobytes()))
            assert orjson.loads((await response.json())["clip"]) == pytest.approx(expected.tolist())

        await asyncio.gather(*(ask(number) for number in range(600)))


async def test_thresholds_of_two_requests_do_not_disturb_each_other() -> None:
    engines = FakeEngines()
    async with serving(fake_app(engines)) as client:

        async def faces(min_score: float) -> int:
            wanted = {"facial-recognition": {"detection": {"modelName": "demo", "options": {"minScore": min_score}}}}
            body = await (await client.post("/predict", data=form(wanted, png()))).json()
            assert all(set(face) == {"boundingBox", "score"} for face in body["facial-recognition"])
            return len(body["facial-recognition"])

        asked = [0.5, 0.7, 0.9, 0.99] * 20
        found = await asyncio.gather(*(faces(score) for score in asked))
    assert found == [{0.5: 3, 0.7: 2, 0.9: 1, 0.99: 0}[score] for score in asked]


async def test_no_face_asks_nothing_of_the_recogniser() -> None:
    engines = FakeEngines()
    async with serving(fake_app(engines)) as client:
        body = await (await client.post("/predict", data=form(FACES, png(colour=(0, 0, 0))))).json()
    assert body["facial-recognition"] == []
    assert engines.models["recognition", "demo"].batches == []


TRICKY_ORDER = [
    # what is wrong, from the first check to the last: the first wins
    ({"dance": {}}, b"no image", 422),
    ({"ocr": {"detection": {"modelName": "x"}}, "clip": {"visual": {"modelName": "nobody"}}}, b"no image", 501),
    ({"clip": {"visual": {"modelName": "nobody"}, "textual": {"modelName": "demo"}}}, b"no image", 422),
    ({"clip": {"visual": {"modelName": "demo"}, "textual": {"modelName": "demo"}}}, b"no image", 400),
    (CLIP, b"no image", 400),
    (CLIP, png()[:60], 400),
    (CLIP, png(), 503),
]


@pytest.mark.parametrize(("entries", "image", "status"), TRICKY_ORDER)
async def test_checks_come_in_the_order_of_the_contract(entries: Any, image: bytes, status: int) -> None:
    engines = FakeEngines()
    engines.error = WeightsMissing("demo.safetensors is not in /cache: run python -m scripts.fetch_weights demo")
    async with serving(fake_app(engines)) as client:
        response = await client.post("/predict", data=form(entries, image))
        assert response.status == status
        detail = (await response.json())["detail"]
    if status == 503:
        assert "scripts.fetch_weights" in detail


async def test_reason_phrases_are_ours_and_details_say_what_to_do() -> None:
    async with serving(fake_app(FakeEngines())) as client:
        asked = {"clip": {"visual": {"modelName": "ViT-B-33__openai\r\nX-Evil: 1"}}}
        response = await client.post("/predict", data=form(asked, png()))
        assert (response.status, response.reason) == (422, "Unknown model")
        assert "ViT-B-32__openai" in (await response.json())["detail"]
        assert "X-Evil" not in response.headers
        response = await client.post("/predict", data=form(CLIP))
        assert (response.status, response.reason) == (400, "Either image or text must be provided")


async def test_unknown_paths_and_methods_are_told_in_json() -> None:
    async with serving(fake_app(FakeEngines())) as client:
        missing, wrong = await client.get("/nowhere"), await client.get("/predict")
        assert (missing.status, wrong.status) == (404, 405)
        assert wrong.headers["Allow"] == "POST"
        assert {*(await missing.json()), *(await wrong.json())} == {"detail"}


async def test_the_simple_routes() -> None:
    async with serving(fake_app(FakeEngines())) as client:
        assert await (await client.get("/")).json() == {"message": "Immich ML"}
        ping = await client.get("/ping")
        assert (await ping.read(), ping.content_type) == (b"pong", "text/plain")
        assert (await client.get("/health/live")).status == 200


async def test_an_unforeseen_failure_is_a_500_for_that_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    engines = FakeEngines()
    async with serving(fake_app(engines)) as client:
        await client.post("/predict", data=form(TEXT, text="first"))
        engines.models["textual", "demo"].fail = lambda item: item[1] == "bad"
        asked = [client.post("/predict", data=form(TEXT, text=text)) for text in ("good", "bad", "fine")]
        responses = await asyncio.gather(*asked)
        assert [response.status for response in responses] == [200, 500, 200]
        assert "log" in (await responses[1].json())["detail"]
    assert "the fake was told to fail" in caplog.text


async def test_a_full_queue_answers_503_with_retry_after() -> None:
    engines = FakeEngines()
    app = fake_app(engines, queue_items=2)
    async with serving(app) as client:
        await client.post("/predict", data=form(TEXT, text="warm"))
        model = engines.models["textual", "demo"]
        model.gate.clear()
        running = asyncio.create_task(client.post("/predict", data=form(TEXT, text="0")))
        for _ in range(2):  # the warm one and this one
            assert await asyncio.to_thread(model.running.acquire, timeout=20)
        waiting = [asyncio.create_task(client.post("/predict", data=form(TEXT, text=str(i)))) for i in (1, 2)]
        await until_waiting(app, 2)
        refused = await client.post("/predict", data=form(TEXT, text="3"))
        assert (refused.status, refused.reason) == (503, "Queue full")
        assert int(refused.headers["Retry-After"]) >= 1
        model.gate.set()
        assert [(await task).status for task in (running, *waiting)] == [200, 200, 200]


async def test_a_client_that_hangs_up_in_the_queue_costs_nothing_more() -> None:
    engines = FakeEngines()
    app = fake_app(engines)
    async with serving(app) as client:
        await client.post("/predict", data=form(TEXT, text="warm"))
        model = engines.models["textual", "demo"]
        model.gate.clear()
        running = asyncio.create_task(client.post("/predict", data=form(TEXT, text="runs")))
        for _ in range(2):
            assert await asyncio.to_thread(model.running.acquire, timeout=20)
        leaving = [asyncio.create_task(client.post("/predict", data=form(TEXT, text=f"x{i}"))) for i in range(5)]
        staying = asyncio.create_task(client.post("/predict", data=form(TEXT, text="stays")))
        await until_waiting(app, 6)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        async with asyncio.timeout(20):
            while app[DOOR].inside != 2:  # noqa: ASYNC110 - a state, no event
                await asyncio.sleep(0.001)
        model.gate.set()
        assert ((await running).status, (await staying).status) == (200, 200)
    assert model.batches == [1, 1, 1], "the five that hung up were dropped at the cut"


async def test_ping_answers_while_a_model_loads_and_a_batch_runs() -> None:
    engines = FakeEngines()
    async with serving(fake_app(engines)) as client:
        await client.post("/predict", data=form(CLIP, png()))
        model = engines.models["visual", "demo"]
        model.gate.clear()
        engines.gate.clear()
        running = asyncio.create_task(client.post("/predict", data=form(CLIP, png())))
        loading = asyncio.create_task(client.post("/predict", data=form(TEXT, text="x")))
        for _ in range(2):
            assert await asyncio.to_thread(model.running.acquire, timeout=20)
        seconds = []
        for _ in range(50):
            started = time.perf_counter()
            assert await (await client.get("/ping")).text() == "pong"
            seconds.append(time.perf_counter() - started)
        assert not loading.done()
        assert not running.done()
        engines.gate.set()
        model.gate.set()
        assert ((await loading).status, (await running).status) == (200, 200)
    assert statistics.median(seconds) < 0.05


async def test_pictures_wait_for_room_to_be_decoded_and_nobody_is_refused() -> None:
    engines = FakeEngines()
    app = fake_app(engines, max_decoded_pixels=64 * 48 * 2)
    async with serving(app) as client:
        asked = [client.post("/predict", data=form(FACES, png(64, 48, (i, 1, 1)))) for i in range(40)]
        assert {response.status for response in await asyncio.gather(*asked)} == {200}
    assert max(engines.models["detection", "demo"].batches) <= 2


async def test_limits_on_pixels_are_checked_by_the_header() -> None:
    async with serving(fake_app(FakeEngines(), max_pixels=1000)) as client:
        assert (await client.post("/predict", data=form(CLIP, png(64, 48)))).status == 413
        assert (await client.post("/predict", data=form(CLIP, png(20, 20)))).status == 200


async def test_ocr_can_be_answered_as_empty() -> None:
    async with serving(fake_app(FakeEngines(), ocr="empty")) as client:
        wanted = {"ocr": {"detection": {"modelName": "x"}, "recognition": {"modelName": "x"}}, **CLIP}
        body = await (await client.post("/predict", data=form(wanted, png()))).json()
    assert set(body) == {"ocr", "clip", "imageWidth", "imageHeight"}
    assert body["ocr"]["text"] == []


async def test_face_names_of_other_servers_are_served_by_the_alias_or_refused() -> None:
    wanted = {"facial-recognition": {kind: {"modelName": "buffalo_l"} for kind in ("detection", "recognition")}}
    engines = FakeEngines()
    async with serving(fake_app(engines)) as client:
        assert (await client.post("/predict", data=form(wanted, png()))).status == 200
    assert ("recognition", "facenet-vggface2") in engines.models
    async with serving(fake_app(FakeEngines(), face_alias="")) as client:
        refused = await client.post("/predict", data=form(wanted, png()))
        assert refused.status == 422
        assert "MACHINE_LEARNING_FACE_ALIAS" in (await refused.json())["detail"]


async def test_ready_tells_of_preloading_and_of_dead_threads(caplog: pytest.LogCaptureFixture) -> None:
    engines = FakeEngines()
    engines.gate.clear()
    app = fake_app(engines, MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL=("demo",))
    async with serving(app) as client:
        response = await client.get("/health/ready")
        assert (response.status, (await response.json())["status"]) == (503, "loading the preloaded models")
        engines.gate.set()
        await app[PRELOAD]
        assert (await client.get("/health/ready")).status == 200

        def die(item: Any) -> bool:
            raise SystemExit("out of the thread")

        engines.models["textual", "demo"].fail = die
        assert (await client.post("/predict", data=form(TEXT, text="x"))).status == 503
        response = await client.get("/health/ready")
        assert response.status == 503
        assert "died" in (await response.json())["status"]
    assert "died" in caplog.text


async def test_ready_tells_of_a_failed_preload_and_of_libraries_that_are_missing() -> None:
    engines = FakeEngines()
    engines.error = WeightsMissing("no weights in /cache")
    async with serving(fake_app(engines, MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL=("demo",))) as client:
        async with asyncio.timeout(20):
            while True:
                response = await client.get("/health/ready")
                status = (await response.json())["status"]
                assert response.status == 503
                if "no weights in /cache" in status:
                    break
    assert "demo (textual) could not be preloaded" in status
    engines = FakeEngines()
    engines.broken = ImportError("no module named torch")
    async with serving(fake_app(engines)) as client:
        async with asyncio.timeout(20):
            while (response := await client.get("/health/ready")).status == 200 or "loading" in await response.text():
                pass
        assert "no module named torch" in (await response.json())["status"]


async def test_one_client_with_many_pictures_does_not_starve_another_with_few() -> None:
    engines = FakeEngines()
    app = fake_app(engines, request_threads=1, max_decoded_pixels=64 * 48)
    order: list[str] = []

    async def ask(client: Any, who: str, number: int) -> None:
        response = await client.post("/predict", data=form(FACES, png(colour=(number, 1, 1))))
        assert response.status == 200
        order.append(who)

    async with serving(app) as many:
        # The same server, from another address of this machine: another client.
        connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
        async with aiohttp.ClientSession(many.make_url("/"), connector=connector) as few:
            await many.post("/predict", data=form(FACES, png()))
            model = engines.models["detection", "demo"]
            model.gate.clear()
            asked = [asyncio.create_task(ask(many, "many", number)) for number in range(60)]
            await until_inside(app, 60)
            asked += [asyncio.create_task(ask(few, "few", number)) for number in range(3)]
            await until_inside(app, 63)
            model.gate.set()
            await asyncio.gather(*asked)
    assert order.index("few", order.index("few") + 1) < 20
    assert [i for i, who in enumerate(order) if who == "few"][-1] < 25


async def test_a_client_that_fills_the_queue_turns_away_itself_alone() -> None:
    engines = FakeEngines()
    app = fake_app(engines, queue_items=4)

    async def ask(client: Any, number: int) -> int:
        response = await client.post("/predict", data=form(CLIP, png(colour=(number, 1, 1))))
        return int(response.status)

    async with serving(app) as many:
        connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))  # another client
        async with aiohttp.ClientSession(many.make_url("/"), connector=connector) as few:
            await ask(many, 0)
            model = engines.models["visual", "demo"]
            model.gate.clear()
            on_device = asyncio.create_task(ask(many, 1))
            for _ in range(2):  # the first one and this one
                assert await asyncio.to_thread(model.running.acquire, timeout=20)
            asked = [asyncio.create_task(ask(many, number)) for number in range(2, 6)]
            await until_waiting(app, 4)
            assert await ask(many, 6) == 503
            asked += [asyncio.create_task(ask(few, number)) for number in range(2)]
            await until_waiting(app, 6)
            model.gate.set()
            assert {await task for task in (on_device, *asked)} == {200}


async def test_models_lists_what_is_known_and_what_is_loaded() -> None:
    async with serving(fake_app(FakeEngines(), clip_resize="crop")) as client:
        await client.post("/predict", data=form(TEXT, text="x"))
        body = await (await client.get("/models")).json()
    assert [(one["name"], one["kind"], one["untrained"]) for one in body["loaded"]] == [("demo", "textual", True)]
    known = {one["name"]: one for one in itertools.chain(*body["known"].values())}
    assert known["ViT-B-16-SigLIP2__webli"] == {
        "name": "ViT-B-16-SigLIP2__webli",
        "dimension": 768,
        "size": 224,
        "resize": "crop",
        "untrained": False,
    }
    assert next(one for one in body["known"]["facial-recognition"] if one["name"] == "demo")["untrained"] is True


@pytest.mark.parametrize("error", [EngineMissing, BuildFailed, ArtefactBroken, OutOfMemory])
async def test_an_engine_that_is_not_there_is_503_with_the_sentence(error: type[EngineError]) -> None:
    engines = FakeEngines()
    engines.error = error("no engine of openvino is built: run python -m scripts.build_engines demo")
    async with serving(fake_app(engines)) as client:
        response = await client.post("/predict", data=form(TEXT, text="x"))
        assert (response.status, response.reason) == (503, "Engine not available")
        assert "scripts.build_engines demo" in (await response.json())["detail"]
        assert (await client.post("/predict", data=form(CLIP, b"no image"))).status == 400


async def test_a_device_that_is_not_there_is_told_without_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    engines = FakeEngines()
    engines.broken = EngineMissing("the settings want cuda, and there is none")
    app = fake_app(engines)
    async with serving(app) as client:
        await app[PRELOAD]
        response = await client.get("/health/ready")
        assert response.status == 503
        assert (await response.json())["status"].startswith("no model can be loaded: the settings want cuda")
    assert [record.exc_info for record in caplog.records if "settings want cuda" in record.message] == [None]


async def until_built(client: TestClient[web.Request, web.Application]) -> dict[str, Any]:
    """Ask /models until no build is under way any longer; return what is loaded."""
    async with asyncio.timeout(30):
        while True:
            (loaded,) = (await (await client.get("/models")).json())["loaded"]
            if loaded["build"] not in ("waiting", "running"):
                return dict(loaded)


async def test_models_tells_of_engines_and_builds_and_a_build_leaves_readiness_alone() -> None:
    engines = FakeEngines()
    code = "import sys; sys.exit('no compiler' if sys.stdin.read() == '' else 0)"
    settings = Settings(build="background")
    app = create_app(settings, engines.load, engines.release, build=lambda part: [sys.executable, "-c", code])
    async with serving(app) as client:
        assert (await client.post("/predict", data=form(TEXT, text="x"))).status == 200
        loaded = await until_built(client)
        assert (loaded["device"], loaded["backend"], loaded["precision"]) == ("cpu", "fake", "float32")
        assert (loaded["reason"], loaded["built"]) == ("a fake", False)
        assert loaded["build"] == "failed: exit code 1: no compiler"
        assert (await client.get("/health/ready")).status == 200


async def test_an_engine_built_in_the_background_is_swapped_in() -> None:
    engines = FakeEngines()
    load = engines.load

    def load_built_next(part: Part) -> tuple[FakeModel, ...]:
        (model,) = load(part)
        built = len(engines.loads) > 1
        model.info = replace(model.info, backend="openvino" if built else "eager", built=built)
        return (model,)

    app = create_app(
        Settings(build="background"), load_built_next, engines.release, build=lambda part: [sys.executable, "-c", ""]
    )
    async with serving(app) as client:
        assert (await client.post("/predict", data=form(TEXT, text="x"))).status == 200
        async with asyncio.timeout(30):
            while not (loaded := await until_built(client))["built"]:
                pass
        assert (loaded["backend"], loaded["build"]) == ("openvino", None)
        body = await (await client.post("/predict", data=form(TEXT, text="x"))).json()
        assert orjson.loads(body["clip"]) == pytest.approx(unit(("text", "x", None)).tolist())


@pytest.mark.parametrize("settings", [{"build": "never"}, {"build": "background", "engine": "eager"}])
async def test_nothing_is_built_where_nothing_is_wanted(settings: dict[str, Any]) -> None:
    engines = FakeEngines()

    def no_build(part: Part) -> list[str]:
        raise AssertionError("nothing was to be built")

    app = create_app(Settings(**settings), engines.load, engines.release, build=no_build)
    async with serving(app) as client:
        assert (await client.post("/predict", data=form(TEXT, text="x"))).status == 200
        assert (await until_built(client))["build"] is None


async def test_the_weight_of_a_detection_is_its_pixels() -> None:
    engines = FakeEngines()
    seen: list[FakeItem] = []

    def note(item: FakeItem) -> bool:
        seen.append(item)
        return False

    async with serving(fake_app(engines)) as client:
        await client.post("/predict", data=form(FACES, png()))
        engines.models["detection", "demo"].fail = note
        await client.post("/predict", data=form(FACES, png(30, 20)))
    assert [item.weight for item in seen] == [600]


async def test_the_log_says_once_that_faces_live_in_another_space(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    wanted = {"facial-recognition": {kind: {"modelName": "buffalo_l"} for kind in ("detection", "recognition")}}
    async with serving(fake_app(FakeEngines())) as client:
        for _ in range(3):
            await client.post("/predict", data=form(wanted, png()))
    told = [record for record in caplog.records if "run face detection on all photos again" in record.message]
    assert len(told) == 1
    assert "facenet-vggface2" in told[0].message

"""Requests as seen from outside: ids, phases in the answer, lines in the log, what is never written down."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engines.errors import WeightsMissing
from tests.server.fakes import FakeEngines, fake_app, serving
from tests.server.test_app import CLIP, FACES, TEXT, form, png, until_inside, until_waiting


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "server.access"]


def fields(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = record.__dict__["fields"]
    return found


@pytest.mark.parametrize("given", ["a", "0123-abc.DEF_xyz", "Root=1-67891233-abcdef012345678912345678", "x" * 128])
async def test_a_sane_id_is_kept(given: str) -> None:
    async with serving(fake_app(FakeEngines())) as client:
        response = await client.get("/ping", headers={"X-Request-ID": given})
        assert response.headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "<script>", '"', "ä"])
async def test_any_other_id_is_made_anew(given: str | None) -> None:
    async with serving(fake_app(FakeEngines())) as client:
        headers = {} if given is None else {"X-Request-ID": given}
        ids = {(await client.get("/ping", headers=headers)).headers["X-Request-ID"] for _ in range(5)}
    assert len(ids) == 5
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in ids)


async def test_errors_carry_the_id_too() -> None:
    async with serving(fake_app(FakeEngines())) as client:
        for response in (await client.get("/nowhere"), await client.post("/predict", data=form(CLIP, b"no"))):
            assert response.status >= 400
            assert response.headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("data", "phases"),
    [
        ({"entries": TEXT, "text": "hello"}, ["read", "prepare", "wait", "run", "write"]),
        ({"entries": CLIP, "image": png()}, ["read", "decode", "prepare", "wait", "run", "write"]),
        ({"entries": FACES, "image": png()}, ["read", "decode", "prepare", "wait", "run", "write"]),
    ],
)
async def test_an_answer_says_where_its_time_went(data: dict[str, Any], phases: list[str]) -> None:
    async with serving(fake_app(FakeEngines())) as client:
        response = await client.post("/predict", data=form(**data))
        assert response.status == 200
        parts = dict(part.split(";dur=") for part in response.headers["Server-Timing"].split(", "))
    assert list(parts) == [*phases, "total"]
    assert all(0 <= float(value) <= float(parts["total"]) + 0.1 for value in parts.values())


async def test_time_in_the_queue_is_waiting_and_time_on_the_device_is_running() -> None:
    engines = FakeEngines()
    app = fake_app(engines)
    async with serving(app) as client:
        await client.post("/predict", data=form(TEXT, text="warm"))
        model = engines.models["textual", "demo"]
        model.gate.clear()
        first = asyncio.create_task(client.post("/predict", data=form(TEXT, text="1")))
        for _ in range(2):
            assert await asyncio.to_thread(model.running.acquire, timeout=20)
        second = asyncio.create_task(client.post("/predict", data=form(TEXT, text="2")))
        await until_inside(app, 2)
        await asyncio.sleep(0.2)  # the time that is measured
        model.gate.set()
        timings = [
            dict(part.split(";dur=") for part in (await task).headers["Server-Timing"].split(", "))
            for task in (first, second)
        ]
    assert float(timings[0]["run"]) >= 200
    assert float(timings[0]["wait"]) < 150
    assert float(timings[1]["wait"]) >= 150
    assert float(timings[1]["run"]) < 150


async def test_a_failed_request_leaves_one_line_with_sizes_and_type_and_no_content(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = b"%PDF-1.7 my secret letter"
    async with serving(fake_app(FakeEngines())) as client:
        response = await client.post("/predict", data=form(CLIP, secret, text="secret words"))
    (line,) = lines(caplog)
    message = line.getMessage()
    assert message.startswith("400 POST /predict after ")
    assert "image 25 bytes" in message
    assert "text 12 bytes" in message
    assert "the image looks like a PDF" in message
    assert "secret" not in caplog.text
    told = fields(line)
    assert (told["status"], told["route"], told["image_looks_like"]) == (400, "/predict", "a PDF")
    assert told["field_bytes"]["image"] == 25
    assert response.status == 400


async def test_a_body_that_is_no_form_is_told_by_its_size(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(fake_app(FakeEngines())) as client:
        await client.post("/predict", data=b"x" * 1234, headers={"Content-Type": "text/plain"})
        await client.get("/nowhere/secret")
    first, second = (line.getMessage() for line in lines(caplog))
    assert "a body of 1,234 bytes" in first
    assert second.startswith("404 GET other after ")
    assert "no body" in second
    assert "secret" not in second


async def test_a_body_without_a_length_is_told_by_what_came(caplog: pytest.LogCaptureFixture) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        yield b"x" * 234

    caplog.set_level(logging.INFO)
    async with serving(fake_app(FakeEngines())) as client:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        assert (await client.post("/predict", data=chunks(), headers=headers)).status == 422
    (line,) = lines(caplog)
    assert "(a body of 1,234 bytes)" in line.getMessage()
    assert fields(line)["body_bytes"] == 1234


async def test_what_is_right_but_not_now_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    engines = FakeEngines()
    engines.error = WeightsMissing("no weights")
    async with serving(fake_app(engines)) as client:
        assert (await client.post("/predict", data=form(TEXT, text="x"))).status == 503
    (line,) = lines(caplog)
    assert (line.levelno, line.exc_info) == (logging.WARNING, None)


async def test_an_unforeseen_failure_leaves_one_line_with_one_traceback(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engines = FakeEngines()
    async with serving(fake_app(engines)) as client:
        await client.post("/predict", data=form(TEXT, text="warm"))
        engines.models["textual", "demo"].fail = lambda item: item[1] == "bad"
        caplog.clear()
        assert (await client.post("/predict", data=form(TEXT, text="bad"))).status == 500
    (line,) = [record for record in caplog.records if record.name.startswith("server")]
    assert re.match(
        r"500 POST /predict after \d\.\d{3} s: RuntimeError: the fake was told to fail \(entries .*, text 3 bytes\)$",
        line.getMessage(),
    )
    assert line.levelno == logging.ERROR
    assert caplog.text.count("Traceback") == 1
    assert "tests/server/fakes.py" in caplog.text, "the traceback leads to where it arose"


async def test_what_succeeds_and_is_quick_leaves_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(fake_app(FakeEngines())) as client:
        assert (await client.post("/predict", data=form(CLIP, png()))).status == 200
        assert (await client.get("/health/ready")).status == 200
    assert lines(caplog) == []


async def test_a_slow_request_leaves_a_line_with_its_phases(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(fake_app(FakeEngines(), slow_request_s=0.000001)) as client:
        assert (await client.post("/predict", data=form(TEXT, text="secret"))).status == 200
    (line,) = lines(caplog)
    assert re.match(
        r"slow: 200 POST /predict took \d+\.\d s: read .*, run .* \(entries \d+ bytes, text 6 ", line.message
    )
    assert set(fields(line)["phases"]) == {"read", "prepare", "wait", "run", "write"}
    assert "secret" not in line.message


async def test_who_hangs_up_on_a_slow_request_leaves_its_line_and_its_time_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engines = FakeEngines()
    app = fake_app(engines, slow_request_s=0.1)
    async with serving(app) as client:
        await client.post("/predict", data=form(TEXT, text="warm"))
        model = engines.models["textual", "demo"]
        model.gate.clear()
        runs = asyncio.create_task(client.post("/predict", data=form(TEXT, text="runs")))
        for _ in range(2):
            assert await asyncio.to_thread(model.running.acquire, timeout=20)
        waits = asyncio.create_task(client.post("/predict", data=form(TEXT, text="waits")))
        await until_waiting(app, 1)
        await asyncio.sleep(0.2)  # the time that is measured
        caplog.clear()
        for leaving in (waits, runs):
            leaving.cancel()
        await asyncio.gather(waits, runs, return_exceptions=True)
        await until_inside(app, 0)
        told = {fields(line)["field_bytes"]["text"]: line for line in lines(caplog)}
        model.gate.set()
        text = await (await client.get("/metrics")).text()
    assert sorted(told) == [4, 5], "one line for each"
    pattern = (
        r"slow: POST /predict, whose client hung up after \d+\.\d s: read .*wait 0\.\d+.* \(entries \d+ bytes, text "
    )
    assert all(re.match(pattern, line.getMessage()) for line in told.values())
    assert fields(told[5])["phases"]["wait"] >= 0.2
    assert "run" not in fields(told[5])["phases"]
    assert fields(told[4])["phases"]["run"] >= 0.2
    assert fields(told[4])["status"] is None
    sums = dict(re.findall(r'^facet_phase_seconds_sum\{phase="(wait|run)"\} (.*)$', text, re.MULTILINE))
    assert all(float(value) >= 0.2 for value in sums.values()), sums
    assert len(sums) == 2


async def test_a_picture_whose_client_leaves_has_all_its_time(caplog: pytest.LogCaptureFixture) -> None:
    """Its vector waits while its faces are looked for: only the latter is awaited when the client leaves."""
    engines = FakeEngines()
    app = fake_app(engines, slow_request_s=0.1)
    async with serving(app) as client:
        await client.post("/predict", data=form({**CLIP, **FACES}, png()))
        gates = [engines.models[key].gate for key in (("visual", "demo"), ("detection", "demo"))]
        for gate in gates:
            gate.clear()
        leaving = asyncio.create_task(client.post("/predict", data=form({**CLIP, **FACES}, png())))
        await until_waiting(app, 1)
        await asyncio.sleep(0.2)  # the time that is measured
        caplog.clear()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await until_inside(app, 0)
        for gate in gates:
            gate.set()
    (line,) = lines(caplog)
    assert fields(line)["phases"].keys() == {"read", "decode", "prepare", "wait", "run"}
    assert min(fields(line)["phases"][phase] for phase in ("wait", "run")) >= 0.2


async def test_a_quick_client_that_hangs_up_leaves_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engines = FakeEngines()
    app = fake_app(engines, slow_request_s=60)
    async with serving(app) as client:
        await client.post("/predict", data=form(TEXT, text="warm"))
        engines.models["textual", "demo"].gate.clear()
        leaving = asyncio.create_task(client.post("/predict", data=form(TEXT, text="x")))
        await until_inside(app, 1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await until_inside(app, 0)
        engines.models["textual", "demo"].gate.set()
    assert lines(caplog) == []


async def test_a_wrong_method_is_counted_at_the_route_that_has_others(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(fake_app(FakeEngines())) as client:
        for method, path in (("GET", "/predict"), ("DELETE", "/predict"), ("POST", "/app/main.js"), ("GET", "/secret")):
            assert (await client.request(method, path)).status in (404, 405)
        text = await (await client.get("/metrics")).text()
    counted = re.findall(r'^facet_requests_total\{route="(.*)",status="(.*)"\} (.*)$', text, re.MULTILINE)
    assert set(counted) == {("/predict", "405", "2.0"), ("/app/{file}", "405", "1.0"), ("other", "404", "1.0")}
    assert [line.getMessage().split(" after ")[0] for line in lines(caplog)] == [
        "405 GET /predict",
        "405 DELETE /predict",
        "405 POST /app/{file}",
        "404 GET other",
    ]


async def test_slow_requests_are_not_told_where_that_is_not_wanted(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(fake_app(FakeEngines(), slow_request_s=0)) as client:
        await client.post("/predict", data=form(TEXT, text="x"))
    assert lines(caplog) == []


async def test_a_client_that_hangs_up_is_counted_and_strange_paths_are_no_labels() -> None:
    engines = FakeEngines()
    app = fake_app(engines)
    async with serving(app) as client:
        await client.post("/predict", data=form(TEXT, text="warm"))
        engines.models["textual", "demo"].gate.clear()
        leaving = asyncio.create_task(client.post("/predict", data=form(TEXT, text="x")))
        await until_inside(app, 1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await until_inside(app, 0)
        engines.models["textual", "demo"].gate.set()
        for path in ("/a", "/b", "/c"):
            await client.get(path)
        text = await (await client.get("/metrics")).text()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["facet_requests_cancelled_total", "/predict"] == 1
    assert samples["facet_requests_total", "/predict", "200"] == 1
    assert samples["facet_requests_total", "other", "404"] == 3

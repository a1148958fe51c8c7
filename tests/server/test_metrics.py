"""What is counted over a real socket: every metric that the page lists, no other, and the right figures."""

import asyncio
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metric_families
from prometheus_client.parser import text_string_to_metric_families

from engines import progress
from engines.errors import WeightsMissing
from server.app import create_app
from server.metrics import METRICS, Metrics, QueueMetrics
from server.routes import DOOR, PRELOAD, SHELF
from server.settings import Settings
from server.shelf import Part
from tests.server.fakes import FakeEngines, FakeModel, fake_app, serving
from tests.server.test_app import CLIP, FACES, TEXT, form, png, until_inside, until_waiting
from tests.server.test_builds import Engines as BuildingEngines

Samples = dict[tuple[str, ...], float]


LABELS = {metric.name.removesuffix("_total"): metric.labels for metric in METRICS}


def parsed(text: str) -> Samples:
    """Return each value by its name and its labels' values, in the order in which they are declared."""
    return {
        (
            sample.name,
            *(sample.labels[label] for label in (*LABELS.get(family.name, ()), "le") if label in sample.labels),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scraped(client: TestClient) -> Samples:  # type: ignore[type-arg]  # any application
    response = await client.get("/metrics")
    assert response.status == 200
    assert response.content_type == "text/plain"
    return parsed(await response.text())


async def test_names_and_units_are_those_of_prometheus() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"facet_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.type == "counter"), metric.name
        assert metric.help[0].isupper()
        assert metric.help.endswith(".")
    assert len({metric.name for metric in METRICS}) == len(METRICS)


async def test_what_is_written_is_what_is_listed() -> None:
    engines = FakeEngines()
    async with serving(fake_app(engines)) as client:
        assert (await client.post("/predict", data=form({**CLIP, **FACES}, png()))).status == 200
        text = await (await client.get("/metrics")).text()
    found = {family.name: family for family in text_string_to_metric_families(text)}
    ours = {name for name in found if not name.startswith("process_")}
    # The parser takes `_total` off the names of counters.
    assert ours == {metric.name.removesuffix("_total") for metric in METRICS}
    for metric in METRICS:
        family = found[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.type, metric.help)
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        if family.samples:
            assert labels == set(metric.labels), metric.name
    assert "process_resident_memory_bytes" in found


async def test_a_photo_is_counted_in_all_its_parts() -> None:
    app = fake_app(FakeEngines())
    async with serving(app) as client:
        for _ in range(3):
            assert (await client.post("/predict", data=form({**CLIP, **FACES}, png(64, 48)))).status == 200
        await client.post("/predict", data=form(CLIP, b"no picture"))
        samples = await scraped(client)
    assert samples["facet_requests_total", "/predict", "200"] == 3
    assert samples["facet_requests_total", "/predict", "400"] == 1
    assert samples["facet_request_seconds_count", "/predict"] == 4
    assert samples["facet_decoded_pixels_total",] == 3 * 64 * 48
    for phase, count in {"read": 4, "decode": 4, "prepare": 3, "wait": 4, "run": 3, "write": 3}.items():
        assert samples["facet_phase_seconds_count", phase] == count, phase
    assert samples["facet_batches_total", "demo", "visual", "all"] == 3
    assert samples["facet_batch_items_sum", "demo", "recognition"] == 6, "two faces on each"
    assert samples["facet_batch_seconds_count", "demo", "detection"] == 3
    assert samples["facet_queue_items", "demo", "visual", "bulk"] == 0
    assert samples["facet_model_bytes", "demo", "visual", "cpu", "fake", "float32"] == 1000
    assert samples["facet_model_loads_total", "demo", "visual", "loaded"] == 1
    assert samples["facet_ready",] == 1
    assert samples["facet_requests_inside",] == 0
    assert samples["facet_gpu_memory_bytes", "fake:0", "used"] == 60


async def test_what_waits_runs_is_refused_fails_and_hangs_up() -> None:
    engines = FakeEngines()
    app = fake_app(engines, queue_items=3)
    async with serving(app) as client:
        await client.post("/predict", data=form(TEXT, text="warm"))
        model = engines.models["textual", "demo"]
        model.gate.clear()
        model.fail = lambda item: item[1] == "bad"
        running = asyncio.create_task(client.post("/predict", data=form(TEXT, text="runs")))
        for _ in range(2):
            assert await asyncio.to_thread(model.running.acquire, timeout=20)
        waiting = [asyncio.create_task(client.post("/predict", data=form(TEXT, text=text))) for text in ("a", "bad")]
        leaving = asyncio.create_task(client.post("/predict", data=form(TEXT, text="leaves")))
        await until_waiting(app, 3)
        samples = await scraped(client)
        assert samples["facet_queue_items", "demo", "textual", "interactive"] == 3
        assert samples["facet_queue_weight", "demo", "textual", "interactive"] == 3
        assert samples["facet_requests_inside",] == 4
        assert (await client.post("/predict", data=form(TEXT, text="too many"))).status == 503
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await until_inside(app, 3)
        model.gate.set()
        assert [(await task).status for task in (running, *waiting)] == [200, 200, 500]
        samples = await scraped(client)
    assert samples["facet_items_refused_total", "demo", "textual", "items"] == 1
    assert samples["facet_items_dropped_total", "demo", "textual", "given_up"] == 1
    assert samples["facet_items_failed_total", "demo", "textual", "RuntimeError"] == 1
    assert samples["facet_requests_cancelled_total", "/predict"] == 1


async def test_the_end_of_the_server_is_not_taken_for_clients_who_hang_up() -> None:
    engines = FakeEngines()
    app = fake_app(engines)
    async with serving(app) as client:
        await client.post("/predict", data=form(TEXT, text="warm"))
        model = engines.models["textual", "demo"]
        model.gate.clear()
        running = asyncio.create_task(client.post("/predict", data=form(TEXT, text="runs")))
        for _ in range(2):
            assert await asyncio.to_thread(model.running.acquire, timeout=20)
        waiting = asyncio.create_task(client.post("/predict", data=form(TEXT, text="waits")))
        await until_waiting(app, 1)
        app[DOOR].close_in(0)
        assert (await waiting).status == 503
        samples = await scraped(client)
        model.gate.set()
        assert (await running).status == 503
    assert samples["facet_items_dropped_total", "demo", "textual", "given_up"] == 1
    assert ("facet_requests_cancelled_total", "/predict") not in samples


async def test_two_detectors_of_one_network_are_told_apart_by_the_names_that_are_asked_for() -> None:
    class Shared(FakeEngines):
        """Detectors that call themselves by their network, as engines/ does."""

        def load(self, part: Part) -> tuple[FakeModel, ...]:
            (model,) = super().load(part)
            if part.kind == "detection":
                model.info = replace(model.info, name="mtcnn")
            return (model,)

    app = fake_app(Shared())
    names = {"demo", "facenet-vggface2"}
    async with serving(app) as client:
        for name in sorted(names):
            faces = {"facial-recognition": {"detection": {"modelName": name}}}
            assert (await client.post("/predict", data=form(faces, png()))).status == 200
        samples = await scraped(client)
        loaded = (await (await client.get("/models")).json())["loaded"]
    for metric in ("facet_queue_items", "facet_queue_weight", "facet_model_bytes", "facet_batch_items_count"):
        found = [key for key in samples if key[0] == metric]
        assert {key[1] for key in found} == names, metric
        assert {key[2] for key in found} == {"detection"}
    assert {(one["name"], one["kind"]) for one in loaded} == {(name, "detection") for name in names}


async def test_a_required_engine_is_one_load_and_what_is_swapped_in_is_none(tmp_path: Path) -> None:
    for when in ("require", "background"):
        (tmp_path / when).mkdir()
        (tmp_path / when / "go").touch()
        engines = BuildingEngines(tmp_path / when)
        settings = Settings(build=when)
        app = create_app(settings, engines.load, engines.release, build=engines.command)
        async with serving(app) as client:
            await client.post("/predict", data=form(TEXT, text="x"))
            async with asyncio.timeout(30):
                while not app[SHELF].loaded()[0].model.info.built:  # noqa: ASYNC110 - another process is at work
                    await asyncio.sleep(0.005)
            samples = await scraped(client)
        assert len(engines.loads) == 2
        assert samples["facet_model_loads_total", "demo", "textual", "loaded"] == 1, when
        assert samples["facet_engine_swaps_total", "demo", "textual"] == (when == "background")


async def test_a_load_that_fails_is_counted_and_readiness_says_no() -> None:
    engines = FakeEngines()
    engines.error = WeightsMissing("no weights")
    app = fake_app(engines, MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL=("demo",))
    async with serving(app) as client:
        assert (await client.post("/predict", data=form(TEXT, text="x"))).status == 503
        samples = await scraped(client)
    assert samples["facet_model_loads_total", "demo", "textual", "failed"] >= 1
    assert samples["facet_ready",] == 0


async def test_a_change_of_engines_is_counted_and_shown() -> None:
    engines = FakeEngines()
    app = fake_app(engines)
    async with serving(app) as client:
        await app[PRELOAD]
        await client.post("/predict", data=form(TEXT, text="x"))
        (loaded,) = app[SHELF].loaded()
        for device in ("cpu", "xpu"):
            model = FakeModel("textual", "demo", size=500)
            model.info = replace(model.info, backend="faster", device=device)
            assert await app[SHELF].swap(loaded.part, [model])
        samples = await scraped(client)
    assert samples["facet_engine_swaps_total", "demo", "textual"] == 2
    assert samples["facet_model_bytes", "demo", "textual", "xpu", "faster", "float32"] == 500
    assert ("facet_model_bytes", "demo", "textual", "cpu", "fake", "float32") not in samples


async def test_downloads_of_the_thread_that_loads_are_counted() -> None:
    class Fetching(FakeEngines):
        def load(self, part: Part) -> tuple[FakeModel, ...]:
            progress.received(1000)
            progress.received(24)
            progress.fetched(ok=True)
            progress.fetched(ok=part.kind != "visual")
            return super().load(part)

    async with serving(fake_app(Fetching())) as client:
        await client.post("/predict", data=form(CLIP, png()))
        samples = await scraped(client)
    assert samples["facet_download_bytes_total",] == 1024
    assert samples["facet_downloads_total", "fetched"] == 1
    assert samples["facet_downloads_total", "failed"] == 1


async def test_open_metrics_are_written_to_whoever_asks_for_them() -> None:
    async with serving(fake_app(FakeEngines())) as client:
        response = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert response.content_type == "application/openmetrics-text"
        families = open_metric_families(await response.text())  # type: ignore[no-untyped-call]
        names = {family.name for family in families}
    assert "facet_requests" in names


async def test_two_applications_count_for_themselves() -> None:
    async with serving(fake_app(FakeEngines())) as first, serving(fake_app(FakeEngines())) as second:
        await first.get("/ping")
        assert ("facet_requests_total", "/ping", "200") in await scraped(first)
        assert ("facet_requests_total", "/ping", "200") not in await scraped(second)


def test_every_reason_stands_there_from_the_start() -> None:
    metrics = Metrics()
    QueueMetrics(metrics, "demo", "visual")
    reasons = defaultdict(set)
    for name, *labels in parsed(metrics.exposition("")[0].decode()):
        if labels[:2] == ["demo", "visual"] and len(labels) == 3:
            reasons[name].add(labels[2])
    assert reasons["facet_batches_total"] == {"full", "weight", "bucket", "all"}
    assert reasons["facet_items_dropped_total"] == {"given_up", "unloaded", "closed"}
    assert reasons["facet_items_refused_total"] == {"items", "weight", "seconds"}


@pytest.mark.parametrize("name", ["facet_engine_swaps_total", "facet_downloads_total", "facet_proofs_total"])
async def test_what_has_not_happened_yet_is_zero(name: str) -> None:
    async with serving(fake_app(FakeEngines())) as client:
        await client.post("/predict", data=form(TEXT, text="x"))
        samples = await scraped(client)
    values = [value for key, value in samples.items() if key[0] == name]
    assert values
    assert set(values) == {0.0}

"""Traces as they arrive: a collector of OTLP over HTTP receives what a served application sends."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from server import tracing
from server.app import create_app
from server.settings import Settings
from server.shelf import in_thread
from server.tracing import TracingMissing
from tests.server.fakes import FakeEngines, serving
from tests.server.test_app import CLIP, FACES, TEXT, form, png, until_inside

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"


class Collector:
    """What came in."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[ExportTraceServiceRequest] = []

    async def receive(self, request: web.Request) -> web.Response:
        self.requests.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response(content_type="application/x-protobuf")

    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.receive)
    async with TestServer(app) as server:
        collector.url = str(server.make_url("/"))
        yield collector


def traced_app(engines: FakeEngines, tracer: tracing.Tracing) -> web.Application:
    return create_app(Settings(), engines.load, engines.release, engines.warm_up, tracing=tracer)


async def test_a_request_is_a_span_with_its_phases_inside() -> None:
    async with collecting() as collector:
        tracer = tracing.set_up(collector.url)
        async with serving(traced_app(FakeEngines(), tracer)) as client:
            headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "X-Request-ID": "of-this-test"}
            response = await client.post("/predict", data=form({**CLIP, **FACES}, png()), headers=headers)
            assert response.status == 200
        await in_thread(tracer.close, "close")
    spans = collector.spans()
    whole = next(span for span in spans if span.name == "POST /predict")
    assert whole.trace_id.hex() == TRACE_ID
    assert whole.parent_span_id.hex() == SPAN_ID
    assert whole.kind == Span.SPAN_KIND_SERVER
    assert {"of-this-test"} == {value.value.string_value for value in whole.attributes if value.key == "request.id"}
    inner = [span for span in spans if span is not whole]
    assert {span.name for span in inner} == {"read", "decode", "prepare", "wait", "run", "write"}
    slack = 5_000_000  # ns: two clocks are compared
    for span in inner:
        assert span.trace_id == whole.trace_id
        assert span.parent_span_id == whole.span_id
        assert whole.start_time_unix_nano - slack <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= whole.end_time_unix_nano + slack
    # Two faces ride in one batch: its time is there once.
    times = [(span.name, span.start_time_unix_nano, span.end_time_unix_nano) for span in inner]
    assert len(times) == len(set(times))
    (resource,) = {request.resource_spans[0].resource.SerializeToString() for request in collector.requests}
    assert b"service.name" in resource
    assert b"facet" in resource


async def test_requests_that_fail_or_whose_client_leaves_are_spans_too() -> None:
    engines = FakeEngines()
    async with collecting() as collector:
        tracer = tracing.set_up(collector.url)
        app = traced_app(engines, tracer)
        async with serving(app) as client:
            assert (await client.post("/predict", data=form(CLIP, b"no picture"))).status == 400
            await client.post("/predict", data=form(TEXT, text="warm"))
            model = engines.models["textual", "demo"]
            model.gate.clear()
            leaving = asyncio.create_task(client.post("/predict", data=form(TEXT, text="x")))
            for _ in range(2):
                assert await asyncio.to_thread(model.running.acquire, timeout=20)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            await until_inside(app, 0)
            model.gate.set()
        await in_thread(tracer.close, "close")
    spans = collector.spans()
    statuses = [
        value.value.int_value
        for span in spans
        for value in span.attributes
        if value.key in ("http.status_code", "http.response.status_code")
    ]
    assert sorted(statuses) == [200, 400]
    assert sum(span.name == "POST /predict" for span in spans) == 3
    (left,) = [
        span
        for span in spans
        if span.name == "POST /predict"
        and not {value.key for value in span.attributes} & {"http.status_code", "http.response.status_code"}
    ]
    inside = {span.name for span in spans if span.parent_span_id == left.span_id}
    assert {"wait", "run"} <= inside, "what had not ended when the client left"
    assert b"no picture" not in b"".join(request.SerializeToString() for request in collector.requests)


async def test_other_applications_are_not_traced() -> None:
    async with collecting() as collector:
        tracer = tracing.set_up(collector.url)
        async with serving(web.Application()) as client:
            await client.get("/")
        await in_thread(tracer.close, "close")
    assert collector.spans() == []
    assert web.Application.__name__ == "Application"


@pytest.mark.parametrize(
    "endpoint", ["localhost:4318", "grpc://localhost:4317", "true", "http://", "http://[::1", "http://here:port"]
)
def test_what_is_no_url_is_refused_with_a_sentence(endpoint: str) -> None:
    with pytest.raises(TracingMissing, match="give the URL of a collector, such as http://localhost:4318"):
        tracing.set_up(endpoint)


def test_without_the_extra_the_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingMissing, match=r"pip install 'facet-ml\[tracing\]'"):
        tracing.set_up("http://localhost:4318")

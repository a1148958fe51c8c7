"""Traces of OpenTelemetry: a span for each request, and within it one for each time it was in a phase.

Knows OpenTelemetry and its exporter, which are an extra, and nothing of them is imported before a setting asks for it.
Spans of phases are made from the request's stopwatch once the answer is there, so that nothing on the way knows of
them. What else there is to set, from headers to sampling, the SDK takes from its own OTEL_* variables.
"""

import importlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from server.access import VISIT
from server.stopwatch import Stopwatch

LIBRARIES = (  # all that is imported below
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.instrumentation.aiohttp_server",
    "opentelemetry.sdk.resources",
    "opentelemetry.sdk.trace",
    "opentelemetry.sdk.trace.export",
)
EXTRA = "install the extra: pip install 'facet-ml[tracing]', or leave MACHINE_LEARNING_TRACING out"


class TracingMissing(Exception):
    """Traces cannot be made; `str()` says what to do."""


@dataclass(frozen=True, slots=True)
class Tracing:
    """The middlewares that make spans, the outermost first, and what sends the last of them at the end."""

    middlewares: tuple[Middleware, ...]
    close: Callable[[], None]


def check(endpoint: str) -> None:
    """Raise TracingMissing if no span could be sent to `endpoint`: it is no URL, or the extra is not installed."""
    if not _is_url(endpoint):
        raise TracingMissing(
            f"MACHINE_LEARNING_TRACING is {endpoint!r}: give the URL of a collector, such as http://localhost:4318"
        )
    try:
        for name in LIBRARIES:
            importlib.import_module(name)
    except ImportError as error:
        raise TracingMissing(f"OpenTelemetry cannot be imported ({error}): {EXTRA}") from error


def _is_url(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of an address in brackets, or of a port
        return False


def set_up(endpoint: str) -> Tracing:
    """Return what sends spans to `endpoint`, the URL of a collector without /v1/traces; raises TracingMissing."""
    check(endpoint)
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation import aiohttp_server
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # The name is a default: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before it.
    resource = Resource.create({SERVICE_NAME: "facet"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    # To instrument sets up the globals of its module, which its middleware needs; and it puts a class of its own in the
    # place of web.Application, which would trace every application of the process, so that is taken back at once.
    instrumentor = aiohttp_server.AioHttpServerInstrumentor()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that class inherits, which aiohttp discourages
        instrumentor.instrument(tracer_provider=provider)
    instrumentor.uninstrument()
    requests = aiohttp_server.create_aiohttp_middleware(tracer_provider=provider)
    return Tracing((requests, phases(provider.get_tracer("facet"), trace.get_current_span)), provider.shutdown)


def phases(tracer: Any, current_span: Callable[[], Any]) -> Middleware:
    """Return the middleware that makes the spans of the phases; it stands inside that of the request's span."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        finally:
            visit, span = request.get(VISIT), current_span()
            if visit is not None and span.is_recording():  # not left out by a rule or by sampling
                span.set_attribute("request.id", visit.id)  # as in the log
                _make_spans(tracer, visit.watch)

    return middleware


def _make_spans(tracer: Any, watch: Stopwatch) -> None:
    now = time.time_ns() - time.perf_counter_ns()  # the moment that perf_counter counts from
    # The crops of a picture's faces ride in one batch and have the same times: once is enough.
    for phase, began, ended in sorted(set(watch.so_far()), key=lambda interval: interval[1]):
        span = tracer.start_span(phase, start_time=now + round(began * 1e9))
        span.end(end_time=now + round(ended * 1e9))

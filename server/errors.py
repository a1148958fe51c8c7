"""The tree of errors, and the one middleware that turns them into answers.

Every error that a client is told is one of these. `reason` is a fixed phrase of ours: it goes into the status line,
where real clients look first, so it never carries anything of the request. The message is a sentence that tells what
to do.

RequestError
 ├─ BadForm             422  the form or its entries are not what the protocol asks for
 ├─ UnknownModelName    422  a model name that is not in the catalogue, or belongs to another task
 ├─ BadInput            400  the input does not fit the task, or cannot be decoded
 │   └─ NoInput         400  neither image nor text
 ├─ NotAllowed          401  no API key, or a wrong one
 ├─ SlowBody            408  no byte of the body came for too long, or too few
 ├─ TooLarge            413  the body or the picture is over a limit
 ├─ NotServed           501  a task that this server does not have
 └─ Unavailable         503  right, but not now
     ├─ NoWeights            weights neither in the cache folder nor to be had
     ├─ NoEngine             the engine or the device that the settings want is not there
     ├─ QueueFull            with Retry-After
     ├─ NotComputed          its model was unloaded, or the thread of its device died twice under it
     ├─ Busy                 too many connections, with Retry-After
     ├─ Overdue              not answered within the time limit of a request, with Retry-After
     └─ ShuttingDown         with Retry-After
"""

import math
from http import HTTPStatus

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from engines.errors import (
    ArtefactBroken,
    BuildFailed,
    EngineMissing,
    ImageError,
    ImageTooLarge,
    OutOfMemory,
    UnknownModel,
    WeightsBroken,
    WeightsMissing,
)
from server.batcher import Closed
from server.headers import HEADERS
from server.queue import Full

DETAIL = web.ResponseKey("detail", str)  # what the client of a failed request is told
UNFORESEEN = web.ResponseKey("unforeseen", Exception)  # what the log is told in its place


class RequestError(Exception):
    """Base of what a client is told."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    reason = "Internal Server Error"
    retry_after: float | None = None  # seconds
    challenge = ""  # what WWW-Authenticate asks for


class BadForm(RequestError):
    """The form or its entries are not what the protocol asks for."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    reason = "Invalid request"


class UnknownModelName(RequestError):
    """A model name that is not in the catalogue, or belongs to another task."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    reason = "Unknown model"


class BadInput(RequestError):
    """The input does not fit the task, or cannot be decoded."""

    status = HTTPStatus.BAD_REQUEST
    reason = "Invalid input"


class NoInput(BadInput):
    """Neither image nor text came."""

    reason = "Either image or text must be provided"


class NotAllowed(RequestError):
    """No API key, or a wrong one."""

    status = HTTPStatus.UNAUTHORIZED
    reason = "API key required"

    def __init__(self, message: str, challenge: str) -> None:
        super().__init__(message)
        self.challenge = challenge


class SlowBody(RequestError):
    """No byte of the body came for too long, or too few."""

    status = HTTPStatus.REQUEST_TIMEOUT
    reason = "Request body too slow"


class TooLarge(RequestError):
    """The body or the picture is over a limit."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    reason = "Input too large"


class NotServed(RequestError):
    """A task that this server does not have."""

    status = HTTPStatus.NOT_IMPLEMENTED
    reason = "Task not available on this server"


class Unavailable(RequestError):
    """The request is right but cannot be served now."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    reason = "Unavailable"


class NoWeights(Unavailable):
    """Weights are neither in the cache folder nor to be had."""

    reason = "Model weights not available"


class NoEngine(Unavailable):
    """The engine or the device that the settings want is not there."""

    reason = "Engine not available"


class QueueFull(Unavailable):
    """More waits than could be answered in time."""

    reason = "Queue full"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotComputed(Unavailable):
    """The model was unloaded or the thread of its device died before the request's turn came."""

    reason = "Not computed"
    retry_after = 5.0


class Busy(Unavailable):
    """There are too many connections."""

    reason = "Too many connections"
    retry_after = 5.0


class Overdue(Unavailable):
    """The request was not answered within its time limit."""

    reason = "Not answered in time"
    retry_after = 30.0


class ShuttingDown(Unavailable):
    """The server is about to end."""

    reason = "Shutting down"
    retry_after = 5.0


def from_below(error: Exception) -> RequestError | None:
    """Return what a client is told of an error that arose in the engines or the queues; None for an unforeseen one."""
    match error:
        case RequestError():
            return error
        case ImageTooLarge():
            return TooLarge(str(error))
        case ImageError():
            return BadInput(str(error))
        case UnknownModel():
            return UnknownModelName(str(error))
        case WeightsMissing() | WeightsBroken():
            return NoWeights(str(error))
        case EngineMissing() | BuildFailed() | ArtefactBroken() | OutOfMemory():
            return NoEngine(str(error))
        case Full():
            return QueueFull(f"Too much is waiting: {error}.", error.retry_after)
        case Closed():
            return NotComputed(f"Not computed: {error}. Send the request again.")
    return None


def answer(status: int, reason: str | None, detail: str, headers: dict[str, str] | None = None) -> web.Response:
    """Return a JSON answer with `detail` for people and `reason` for the status line."""
    response = web.Response(
        status=status,
        reason=reason,
        body=orjson.dumps({"detail": detail}),
        content_type="application/json",
        headers=headers,
    )
    response[DETAIL] = detail
    return response


def written(status: HTTPStatus, detail: str) -> bytes:
    """Return a last JSON answer as it goes over the wire, for where there is no request yet that could be answered."""
    body = orjson.dumps({"detail": detail})
    headers = {
        **HEADERS,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{lines}\r\n".encode() + body


@web.middleware
async def errors_to_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error of a handler into a JSON answer; an unforeseen one goes with it, for its line in the log."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return answer(error.status, error.reason, f"{error.reason}: the routes are listed in the README.", allow)
    except Exception as error:  # noqa: BLE001 - the outermost boundary: no client ends without an answer
        told = from_below(error)
        if told is None:
            response = answer(500, None, "The server failed on this request; its log has the reason.")
            response[UNFORESEEN] = error
            return response
        headers = {"Retry-After": str(math.ceil(told.retry_after))} if told.retry_after is not None else {}
        if told.challenge:
            headers["WWW-Authenticate"] = told.challenge
        return answer(told.status, told.reason, str(told), headers)

"""The tree of errors, and the one middleware that turns them into answers.

Every error that a client can see is one of these. `reason` is a fixed phrase of ours (it goes into the status line, so
it never carries anything of the request); the message is a sentence that tells what to do.

RequestError
 ├─ BadForm               422  the form or its entries are not what the protocol asks for
 ├─ UnknownModelError     422  a model name that is not in the catalogue
 ├─ BadInput              400  the input does not fit the task, or cannot be decoded
 ├─ TooLarge              413  the body or the picture is over a limit
 ├─ NotServed             501  a task that this server does not have
 └─ Unavailable           503  right, but not now
     ├─ WeightsUnavailable     weights neither in the cache nor to be had
     ├─ QueueFull              Retry-After
     └─ ShuttingDown           Retry-After
"""

import logging
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler

from server.wire import json_bytes

log = logging.getLogger(__name__)


class RequestError(Exception):
    """Base of what a client is told; `status` and `reason` are fixed by class."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    reason = "Internal Server Error"

    def headers(self) -> dict[str, str]:
        """Return the extra headers of the answer."""
        return {}

"""The body of a request as it comes: counted, timed, and waited for until there is room for it.

Knows bytes and seconds. Does not know what the bytes mean: wire.py reads forms from them. Each body reserves what it
announces before it is read, so that those that are under way always have the room to end, however many others wait.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass

from aiohttp import web

from server.budget import Budget
from server.errors import BadForm, SlowBody, TooLarge

# Bodies up to this size are not counted: a search must not wait behind photos that fill the room.
SMALL_BYTES = 64_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a form may be: sizes in bytes, `text` of all fields together but the picture; see settings.py for the rest.

    `bytes_per_s` is the least average speed once `idle_s` seconds have passed, 0 for none.
    """

    body: int
    parts: int = 64
    part: int = 100_000_000
    text: int = 1 << 20
    idle_s: float = 30.0
    bytes_per_s: int = 0


def room(request: web.Request, bodies: Budget, limits: Limits, flow: Hashable) -> AbstractAsyncContextManager[None]:
    """Wait for room for the body of a request, and hold it for the time of the block.

    Raises TooLarge for a body that is announced as one of more than `limits.body` bytes.
    """
    size = request.content_length if request.content_length is not None else limits.body
    if size > limits.body:
        raise too_large(limits.body)
    return bodies.hold(size, flow) if size > SMALL_BYTES else nullcontext()


async def chunks(request: web.Request, limits: Limits) -> AsyncIterator[bytes]:
    """Yield a body as it comes.

    Raises TooLarge for more than `limits.body` bytes, SlowBody where none came for `idle_s` seconds or too few came
    ever since, BadForm where it ends early or is not framed as its headers say.
    """
    clock = asyncio.get_running_loop().time
    started = clock()
    read = 0
    while True:
        try:
            async with asyncio.timeout(limits.idle_s):
                chunk = await request.content.readany()
        except TimeoutError as error:
            raise SlowBody(f"No byte of the body came for {limits.idle_s:g} s: send it faster.") from error
        except web.RequestPayloadError as error:
            raise BadForm("The body does not come as its headers say: send the request again.") from error
        if not chunk:
            return
        read += len(chunk)
        if read > limits.body:
            raise too_large(limits.body)
        seconds = clock() - started
        if seconds > limits.idle_s and read < limits.bytes_per_s * seconds and not request.content.at_eof():
            raise SlowBody(
                f"The body came at {read / seconds:.0f} bytes/s, less than {limits.bytes_per_s}: send it faster."
            )
        yield chunk


def too_large(limit: int) -> TooLarge:
    """Return the error of a body that is over `limit` bytes."""
    return TooLarge(f"The body is over {limit} bytes: send a smaller picture or raise MACHINE_LEARNING_MAX_BODY_MB.")

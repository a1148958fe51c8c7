"""A server with faults as a process, and callers that hold every answer against that of the quiet server.

Knows how requests are sent and what may come back. Does not know which faults there are (process.py), nor what each
trial does with them.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson

from scripts.bench.record import ROOT
from scripts.endure.faults.process import POISON

TEXTS = [
    f"a {colour} {shape}" for colour in ("red", "green", "blue", "white") for shape in ("circle", "square", "star")
]
STARTS_S = 120.0
ENDS_S = 60.0
ANSWER_S = 60.0  # that the slowest answer may take: longer is lost
LEAST_COSINE = 0.9999
CALLERS = 32


@dataclass
class Tally:
    """What callers got: `lost` are connections that ended without an answer."""

    right: int = 0
    wrong: int = 0
    lost: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def sent(self) -> int:
        """All that was sent."""
        return sum(self.statuses.values()) + self.lost

    def words(self) -> str:
        """Return the statuses in words."""
        return ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items()))


class Live:
    """A server that runs as `process`; `folder` takes its faults."""

    def __init__(self, process: "subprocess.Popen[bytes]", folder: Path, port: int, log: Path) -> None:
        self.process = process
        self.folder = folder
        self.port = port
        self.log = log
        self.quiet: list[Any] = []  # the vectors of TEXTS on the quiet server
        self.session = aiohttp.ClientSession(
            f"http://127.0.0.1:{port}",
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=ANSWER_S),
        )

    def fault(self, name: str) -> Path:
        """Let a fault begin; deleting what is returned ends it."""
        path = self.folder / name
        path.touch()
        return path

    async def text(self, text: str, model: str = "demo") -> tuple[int, Any]:
        """Ask for the vector of a text; return the status and the vector, None for an error. Raises ClientError."""
        data = {"entries": orjson.dumps({"clip": {"textual": {"modelName": model}}}).decode(), "text": text}
        return await self._ask(data)

    async def faces(self, picture: bytes) -> int:
        """Ask for the faces of a picture; return the status."""
        form = aiohttp.FormData()
        form.add_field("entries", '{"facial-recognition":{"detection":{"modelName":"demo"}}}')
        form.add_field("image", picture, filename="blob", content_type="application/octet-stream")
        async with self.session.post("/predict", data=form) as answer:
            await answer.read()
            return answer.status

    async def _ask(self, data: Any) -> tuple[int, Any]:
        async with self.session.post("/predict", data=data) as answer:
            body = await answer.read()
            if answer.status != 200:
                return answer.status, None
            return answer.status, np.asarray(orjson.loads(orjson.loads(body)["clip"]))

    async def ready(self) -> tuple[int, str]:
        """Return the status of /health/ready, and all that it says."""
        async with self.session.get("/health/ready") as answer:
            return answer.status, (await answer.read()).decode()

    async def until_ready(self, says: str = "", status: int = 200) -> None:
        """Wait until /health/ready answers so and says something that contains `says`; raises TimeoutError."""
        async with asyncio.timeout(STARTS_S):
            while True:
                got, told = await self.ready()
                if got == status and says in told:
                    return
                await asyncio.sleep(0.02)

    async def ping_s(self) -> float:
        """Return the seconds that a ping takes on a connection of its own."""
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        if not answer.endswith(b"pong"):
            raise RuntimeError(f"a ping was answered {answer[:60]!r}")
        return time.perf_counter() - began

    async def call(self, tally: Tally, number: int) -> None:
        """Send one text and count what came back."""
        which = number % len(TEXTS)
        try:
            status, vector = await self.text(TEXTS[which])
        except (aiohttp.ClientConnectorError, ConnectionRefusedError):
            return  # the server takes no more connections: this was never accepted
        except (aiohttp.ClientError, TimeoutError):
            tally.lost += 1
            return
        tally.statuses[status] += 1
        if vector is not None:
            ok = float(vector @ self.quiet[which]) >= LEAST_COSINE
            tally.right += ok
            tally.wrong += not ok

    @asynccontextmanager
    async def load(self, callers: int = CALLERS) -> AsyncIterator[Tally]:
        """Keep `callers` sending text after text during the block; yield what they get."""
        tally, over = Tally(), False

        async def caller(number: int) -> None:
            while not over:
                before = tally.sent
                await self.call(tally, number)
                number += callers
                if tally.sent == before:
                    await asyncio.sleep(0.05)

        tasks = [asyncio.create_task(caller(number)) for number in range(callers)]
        try:
            yield tally
        finally:
            over = True
            await asyncio.gather(*tasks)

    async def answers(self, tally: Tally, more: int = 3 * CALLERS) -> None:
        """Wait until so many more answers have come; raises TimeoutError."""
        wanted = sum(tally.statuses.values()) + more
        async with asyncio.timeout(ANSWER_S):
            while sum(tally.statuses.values()) < wanted:  # noqa: ASYNC110 - a count, no event
                await asyncio.sleep(0.01)

    async def until_logged(self, says: str) -> None:
        """Wait until the log says something; raises TimeoutError."""
        async with asyncio.timeout(STARTS_S):
            while says not in self.log.read_text("utf-8", "replace"):  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.02)

    async def end(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal; return the exit code and the seconds until it was gone."""
        began = time.perf_counter()
        self.process.send_signal(number)
        code = await asyncio.to_thread(self.process.wait, ENDS_S)
        return code, time.perf_counter() - began


@asynccontextmanager
async def live(cache: Path | None = None, faults: tuple[str, ...] = (), **settings: str) -> AsyncIterator[Live]:
    """Run a server with the demo's text side loaded; `faults` are there from the start.

    Without `cache` its cache folder is a new one.
    """
    with tempfile.TemporaryDirectory(prefix="facet-faults-") as name:
        home = Path(name)
        (home / "faults").mkdir()
        for fault in faults:
            (home / "faults" / fault).touch()
        environment = {
            **os.environ,
            "IMMICH_HOST": "127.0.0.1",
            "IMMICH_PORT": "0",
            "MACHINE_LEARNING_CACHE_FOLDER": str(cache or home / "cache"),
            "MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL": "demo",
            "MACHINE_LEARNING_ENGINE": "eager",
            "MACHINE_LEARNING_PRECISION": "float32",
            "MACHINE_LEARNING_PROOF_S": "1",
            "MACHINE_LEARNING_MAX_CONNECTIONS": "6000",  # more than are opened here
            **settings,
        }
        log = home / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(  # noqa: S603, ASYNC220 - our own script, and it starts at once
                [sys.executable, "-m", "scripts.endure.faults.process", str(home / "faults")],
                env=environment,
                cwd=ROOT,
                stdout=file,
                stderr=file,
            )
        server: Live | None = None
        try:
            async with asyncio.timeout(STARTS_S):
                while not (found := re.search(r"listening on http://127.0.0.1:(\d+)", log.read_text("utf-8"))):
                    if process.poll() is not None:
                        raise RuntimeError(f"the server did not start: {log.read_text('utf-8')[-2000:]}")
                    await asyncio.sleep(0.02)
            server = Live(process, home / "faults", int(found[1]), log)
            await server.until_ready()
            server.quiet = [(await server.text(text))[1] for text in TEXTS]
            yield server
        finally:
            if server is not None:
                await server.session.close()
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            await asyncio.to_thread(process.wait)


async def poisoned(server: Live, times: int) -> int:
    """Send texts that make their batches fail; return how many of them were answered with an error of their own."""
    answers = await asyncio.gather(*(server.text(f"{POISON} {number}") for number in range(times)))
    return sum(status == 500 for status, _ in answers)

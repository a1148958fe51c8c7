"""One round of load on one server: hands a plan to the process of load.py and reads what came of it."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from scripts.bench.load import Plan
from scripts.bench.record import ROOT
from scripts.bench.served import TAIL, Served
from scripts.bench.turns import Ended

WARM_SHARE = 0.3  # of the seconds of a round, at least
WARM_S = 1.0


@dataclass(frozen=True, slots=True)
class Rate:
    """What callers of one kind got in one round: answers per second, latencies in seconds, the lowest cosine."""

    count: int
    per_s: float
    p50_s: float
    p99_s: float
    lowest_cosine: float | None


@dataclass(frozen=True, slots=True)
class Round:
    """One round: by kind what was got; and the processor seconds of the server and of the client per second."""

    pictures: Rate | None
    texts: Rate | None
    server_busy: float
    client_busy: float


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is sent: paths of photos and texts, with the files of their right answers, None for not looking."""

    photos: Sequence[Path] = ()
    photo_vectors: Path | None = None
    texts: Sequence[str] = ()
    text_vectors: Path | None = None


def drive(
    server: Served,
    model: str,
    seconds: float,
    inputs: Inputs,
    *,
    pictures: int = 0,
    texts: int = 0,
    faces: int = 0,
) -> Round:
    """Load `server` with so many callers of pictures, of texts and of faces; raises Ended if a request failed."""
    vectors = {"pictures": inputs.photo_vectors, "texts": inputs.text_vectors}
    plan = Plan(
        port=server.port,
        pid=server.pid,
        model=model,
        seconds=seconds,
        warm=max(WARM_S, WARM_SHARE * seconds),
        pictures=pictures,
        texts=texts,
        faces=faces,
        photos=[str(path) for path in inputs.photos],
        lines=list(inputs.texts),
        vectors={kind: str(path) for kind, path in vectors.items() if path is not None},
    )
    command = [sys.executable, "-m", "scripts.bench.load"]
    done = subprocess.run(command, input=orjson.dumps(asdict(plan)), cwd=ROOT, capture_output=True, check=False)  # noqa: S603 - our own command
    if done.returncode:
        raise Ended(f"the load on port {server.port} broke off: {done.stderr.decode(errors='replace')[-TAIL:]}")
    server.wait_quiet()
    found = orjson.loads(done.stdout)
    return Round(
        pictures=Rate(**found["pictures"]) if pictures else None,
        texts=Rate(**found["texts"]) if texts else None,
        server_busy=found["server_busy_s"] / found["seconds"],
        client_busy=found["client_busy_s"] / found["seconds"],
    )

"""Servers as a user starts them: a process each, on a free port of this machine, ended by SIGTERM.

Knows processes, what they use of processor and memory, and how our engines are built for them. Does not know what is
sent to them (load.py).
"""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil

from scripts.bench.export import export
from scripts.bench.options import Options
from scripts.bench.record import ROOT
from scripts.bench.show import tell
from scripts.bench.turns import Ended

ATTEMPTS = 2
NOT_BUILT = "no compiled engine"  # in the reason of engines.choice for eager
READY_S = 300.0  # an eager model of full size takes a while on a busy machine
ENDS_S = 20.0
POLL_S = 0.05
QUIET_S = 0.2
QUIET_SHARE = 0.1  # of one core: a server that uses less has nothing left to do
QUIET_AT_MOST_S = 15.0
TAIL = 2000  # characters of a log


@dataclass(frozen=True, slots=True)
class Running:
    """What one side of a model runs on in our server: backend and precision, like "openvino bfloat16"; and why."""

    engine: str
    reason: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process holds, in megabytes of 10^6 bytes; `peak` is the most that was ever resident."""

    resident: float
    proportional: float
    unique: float
    peak: float


class Served:
    """A server that runs as process `pid` and listens on `port`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], port: int, log: Path) -> None:
        self.port = port
        self.started = time.perf_counter()
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self._process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=file, stderr=file)  # noqa: S603 - our own command
        self._watched = psutil.Process(self._process.pid)
        self._watched.cpu_percent()  # counts from here on

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    def get(self, path: str, timeout: float = 5.0) -> tuple[int, bytes] | None:
        """Return status and body of a GET, None if nobody listens yet; raises Ended if the server is gone."""
        if self._process.poll() is not None:
            raise Ended(f"the server ended with {self._process.returncode}: {self._tail()}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except ConnectionRefusedError:
            return None
        finally:
            connection.close()

    def wait_ready(self, seconds: float = READY_S) -> None:
        """Return when /health/ready answers 200; raises Ended if it does not within `seconds`."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            answer = self.get("/health/ready", timeout=seconds)
            if answer is not None and answer[0] == 200:
                return
            time.sleep(POLL_S)
        raise Ended(f"the server was not ready after {seconds:.0f} s: {self._tail()}")

    def engines(self) -> dict[str, Running]:
        """Return what our server has loaded, by kind."""
        answer = self.get("/models")
        assert answer is not None  # noqa: S101 - it was ready
        return {
            one["kind"]: Running(f"{one['backend']} {one['precision']}", one["reason"])
            for one in orjson.loads(answer[1])["loaded"]
        }

    def memory(self) -> Memory:
        """Return what it holds now."""
        full = self._watched.memory_full_info()
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
        return Memory(full.rss / 1e6, full.pss / 1e6, full.uss / 1e6, peak / 1e6)

    def wait_quiet(self) -> None:
        """Return when it computes no more, so that one server's rest does not slow the other's turn."""
        end = time.perf_counter() + QUIET_AT_MOST_S
        self._watched.cpu_percent()
        while time.perf_counter() < end:
            time.sleep(QUIET_S)
            if self._watched.cpu_percent() < 100 * QUIET_SHARE:
                return
        tell(f"the server on port {self.port} is still busy: this round may be a little slow")

    def close(self) -> None:
        """End it, by SIGTERM first."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(ENDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tail(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-TAIL:].strip()


def facet(options: Options, preload: Sequence[str] = (), **environment: str) -> contextlib.closing[Served]:
    """Start our server with what `options` ask for; `preload` are kinds of MACHINE_LEARNING_PRELOAD__CLIP__…."""
    port = free_port()
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MACHINE_LEARNING_PRELOAD")}
    variables = {
        **inherited,
        **options.environment(),
        **{f"MACHINE_LEARNING_PRELOAD__CLIP__{kind.upper()}": options.model for kind in preload},
        "IMMICH_HOST": "127.0.0.1",
        "IMMICH_PORT": str(port),
        **environment,
    }
    return contextlib.closing(Served([sys.executable, "-m", "server"], variables, port, _log(options, "facet")))


def baseline(options: Options, preload: Sequence[str] = ()) -> contextlib.closing[Served]:
    """Start the baseline server; `preload` are visual and textual."""
    port = free_port()
    command = [sys.executable, "-m", "scripts.bench.baseline", str(export(options.model, options.cache))]
    command += ["--port", str(port), "--preload", *preload]
    return contextlib.closing(Served(command, os.environ, port, _log(options, "baseline")))


@contextlib.contextmanager
def both(options: Options, preload: Sequence[str]) -> Iterator[dict[str, Served]]:
    """Start ours and the baseline, both ready with the same sides; they are called ours and baseline."""
    with built(options, preload) as ours, baseline(options, preload) as theirs:
        theirs.wait_ready()
        yield {"ours": ours, "baseline": theirs}


@contextlib.contextmanager
def built(options: Options, preload: Sequence[str]) -> Iterator[Served]:
    """Start our server, ready, on engines that were built; raises Ended if it does not take them.

    Where it takes others they are built again, once: the code may have changed between the build and the start.
    """
    for _ in range(ATTEMPTS):
        wanted = build(options)
        with facet(options, preload) as server:
            server.wait_ready()
            wrong = others(wanted, server.engines(), options)
            if not wrong:
                yield server
                return
        tell(f"the server does not run what was built: {wrong}")
    raise Ended(f"the server does not run what was built, so nothing is measured: {wrong}")


def others(wanted: Mapping[str, str], running: Mapping[str, Running], options: Options) -> str:
    """Return what runs on another engine than the `wanted` one that was built for its kind, "" if nothing does.

    Among what is built the server may take the fastest, and eager where that is faster, unless a precision is asked
    for. It may not say that nothing is built.
    """
    wrong = []
    for kind, one in running.items():
        asked = wanted.get(kind, one.engine)
        same_precision = one.engine.split()[1] == asked.split()[1] or options.precision == "auto"
        stale = one.engine.startswith("eager") and NOT_BUILT in one.reason and kind in wanted
        if stale or not same_precision:
            wrong.append(f"{kind} runs on {one.engine}, not {asked} ({one.reason})")
    return "; ".join(wrong)


def build(options: Options, *names: str) -> dict[str, str]:
    """Build engines as a user does, where they are missing: for the models asked for, or `names`.

    Returns backend and precision of what is built now by kind; a kind for which nothing could be built is not there.
    """
    if options.engine == "eager":
        return {}
    command = [sys.executable, "-m", "scripts.build_engines", *(names or options.models)]
    command += ["--precision", options.precision, "--backend", options.engine, "--device", options.device]
    tell(f"builds: {' '.join(command[1:])}")
    done = subprocess.run(  # noqa: S603 - our own command
        command, env=os.environ | options.environment(), cwd=ROOT, stdout=subprocess.PIPE, check=False
    )
    try:
        records = orjson.loads(done.stdout.splitlines()[-1])
    except (IndexError, orjson.JSONDecodeError) as error:
        raise Ended(f"no engines could be built: scripts.build_engines ended with {done.returncode}") from error
    return {one["kind"]: f"{one['backend']} {one['precision']}" for one in records if one["passed"]}


def free_port() -> int:
    """Return a port of this machine that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _log(options: Options, name: str) -> Path:
    return options.cache / "logs" / f"{name}.log"

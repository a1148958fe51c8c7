"""python -m scripts.fuzz_api: send random requests to a live server, and hold every answer against openapi.json.

Starts a server of its own with the demo models and without internet, so that names of other models are answered by 503,
and leaves requests and judgement to Schemathesis (fuzz_api.toml, fuzz_values.py).
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from scripts.bench.served import Served, free_port
from server.metrics import REQUESTS

ROOT = Path(__file__).parents[1]
CONFIG = Path(__file__).with_suffix(".toml")
REPORT = ROOT / "build" / "fuzz"
PRELOAD = ("CLIP", "FACIAL_RECOGNITION")
PREDICT = "/predict"


def main(arguments: list[str] | None = None) -> int:
    """Run for the seconds that were asked for; return 0 if all answers were as described, 1 otherwise."""
    parser = argparse.ArgumentParser(description="Send random requests to a live server; see that it answers as said.")
    parser.add_argument("--seconds", type=int, default=600, help="how long, about; default: %(default)s")
    parser.add_argument("--seed", type=int, help="the number that an earlier run ended with, to repeat it")
    parser.add_argument("--path", help="one route alone, for example /predict")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            **{f"MACHINE_LEARNING_PRELOAD__{what}": "demo" for what in PRELOAD},
            "HF_HUB_OFFLINE": "1",
            "IMMICH_HOST": "127.0.0.1",
            "IMMICH_PORT": str(port := free_port()),
            "MACHINE_LEARNING_CACHE_FOLDER": folder,
            "MACHINE_LEARNING_ENGINE": "eager",
            "MACHINE_LEARNING_PRECISION": "float32",
        }
        log = REPORT / "server.log"
        with contextlib.closing(Served([sys.executable, "-m", "server"], environment, port, log)) as server:
            server.wait_ready()
            code = subprocess.run(  # noqa: S603 - our own command
                command(port, options.seconds, options.seed, options.path), cwd=ROOT, check=False
            ).returncode
            told = ", ".join(f"{status}: {count}" for status, count in sorted(answers(server, PREDICT).items()))
            print(f"Answers of {PREDICT} by status: {told}")
    if code:
        print(f"The server's log is {log.relative_to(ROOT)}.")
    return 1 if code else 0


def answers(server: Served, route: str) -> dict[str, int]:
    """Return how many requests of a route the server has answered, by status."""
    got = server.get("/metrics")
    if got is None:
        return {}
    samples = [one for family in text_string_to_metric_families(got[1].decode()) for one in family.samples]
    own = [one for one in samples if one.name == REQUESTS.name and one.labels["route"] == route]
    return {one.labels["status"]: int(one.value) for one in own}


def command(port: int, seconds: int, seed: int | None = None, path: str | None = None) -> list[str]:
    """Return the command that tests a server on `port`."""
    run = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"]
    run += [f"http://127.0.0.1:{port}/openapi.json", "--max-time", str(seconds), "--no-color"]
    run += ["--seed", str(seed)] if seed is not None else []
    return run + (["--include-path", path] if path else [])


if __name__ == "__main__":
    sys.exit(main())

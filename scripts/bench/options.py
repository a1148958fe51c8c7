"""What a person asks of the bench, and the settings that follow from it.

Knows the command line. Does not know what is measured, nor how.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from engines.model import BackendName, Config, Precision
from server.loading import engine_config
from server.settings import Settings

BENCHES = {
    "decode": "bytes of a JPEG to pixels, against Pillow",
    "prepare": "pixels to the square that a network sees, against open_clip's transform",
    "engine": "networks by engine and batch, against eager float32",
    "queue": "what the queue costs a lone item, 64 callers and 10,000 that wait",
    "bulk": "a folder of photos into an index, against the full batches of its engine",
    "faces": "photos with 0 to 30 faces, against facenet-pytorch",
    "http": "pictures through the whole server, against the baseline server",
    "text": "search texts through the whole server, against the baseline server",
    "start": "the time until a server answers, and until it is ready",
    "memory": "what a server holds, by model and engine",
    "techniques": "what each technique gains on one picture and on one text",
}
MODEL = "ViT-B-32__openai"
CACHE = Path("~/.cache/facet-bench")


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for. `cache` keeps photos, built engines and the baseline's networks between runs.

    `seconds` is the time of one side in one round. `engine` and `precision` are as in the settings of the server.
    """

    cache: Path
    models: tuple[str, ...] = (MODEL,)
    seconds: float = 3.0
    rounds: int = 5
    engine: str = "auto"
    precision: str = "auto"
    device: str = "cpu"
    growth: bool = False

    @property
    def model(self) -> str:
        """The model, where one is measured."""
        return self.models[0]

    def settings(self, *, untrained: bool = True) -> Settings:
        """Return the settings for models in this process: those of the environment, with what is asked for here."""
        return Settings().model_copy(
            update={
                "cache_folder": self.cache,
                "untrained": untrained,
                "engine": self.engine,
                "precision": self.precision,
                "device": self.device,
            }
        )

    def config(self) -> Config:
        """Return the same for engines without a server."""
        return engine_config(self.settings())

    def environment(self) -> dict[str, str]:
        """Return the variables that tell a server the same."""
        return {
            "MACHINE_LEARNING_CACHE_FOLDER": str(self.cache),
            "MACHINE_LEARNING_UNTRAINED": "true",
            "MACHINE_LEARNING_ENGINE": self.engine,
            "MACHINE_LEARNING_PRECISION": self.precision,
            "MACHINE_LEARNING_DEVICE": self.device,
            "MACHINE_LEARNING_MODEL_TTL": "0",
        }


def parse(arguments: Sequence[str] | None = None) -> tuple[list[str], bool, Options]:
    """Return the names of the benches, whether to save, and the options; ends the program for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench",
        description="Measure Facet: the ceiling first, then ours and the baseline in turn. The last line is JSON.",
        epilog="\n".join(f"{name:14} {does}" for name, does in BENCHES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", help="what to measure (default: everything)")
    parser.add_argument("--seconds", type=float, default=3.0, help="time of each side in a round (default: 3)")
    parser.add_argument("--rounds", type=int, default=5, help="how often they take turns (default: 5)")
    parser.add_argument("--model", nargs="+", default=[MODEL], metavar="NAME", help=f"default: {MODEL}")
    parser.add_argument("--engine", choices=("auto", *get_args(BackendName)), default="auto", help="default: auto")
    parser.add_argument("--precision", choices=("auto", *get_args(Precision)), default="auto", help="default: auto")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--growth", action="store_true", help="http: concurrency 1, 2, 4, … 256")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"what is kept between runs (default: {CACHE})")
    parser.add_argument("--save", action="store_true", help="append to docs/results/")
    given = parser.parse_args(arguments)
    if unknown := set(given.what) - set(BENCHES):
        parser.error(f"cannot measure {', '.join(sorted(unknown))}: there is {', '.join(BENCHES)}")
    if given.seconds <= 0 or given.rounds < 1:
        parser.error("--seconds must be more than 0, and --rounds at least 1")
    options = Options(
        cache=given.cache.expanduser().absolute(),
        models=tuple(given.model),
        seconds=given.seconds,
        rounds=given.rounds,
        engine=given.engine,
        precision=given.precision,
        device=given.device,
        growth=given.growth,
    )
    return given.what or list(BENCHES), given.save, options

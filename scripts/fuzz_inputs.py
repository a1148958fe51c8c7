"""python -m scripts.fuzz_inputs forms | images: search for inputs that break the form reader or the way of a picture.

Atheris changes the seeds of tests/fuzz/seeds, keeps what reaches new code, and stops at the first input that a target
(fuzz_targets.py) does not stand, with the input in build/fuzz. The next run goes on from what this one kept.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from scripts.endure.mutations import CHANGES, with_checksums

ROOT = Path(__file__).parents[1]
SEEDS = ROOT / "tests" / "fuzz" / "seeds"
REPORT = ROOT / "build" / "fuzz"
WATCHED = {
    "forms": ["multipart", "server.wire"],
    "images": ["PIL", "engines.images", "engines.jpeg", "engines.pieces", "engines.preprocess"],
}
LONGEST_INPUT = {"forms": 4096, "images": 8192}  # bytes
MOST_MEMORY_MB = 2048
SLOWEST_S = 20
OURS = 0.3  # of the changes to pictures are those of mutations.py, the rest Atheris' own


def main(arguments: list[str] | None = None) -> int:
    """Fuzz for the seconds that were asked for; the process ends with 0 if nothing was found."""
    parser = argparse.ArgumentParser(
        description="Search for inputs that break the form reader or the way of a picture."
    )
    parser.add_argument("target", choices=sorted(WATCHED))
    parser.add_argument("--seconds", type=int, default=300, help="how long; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of what is random; 0 draws one, and says it")
    options = parser.parse_args(arguments)
    try:
        import atheris
    except ImportError:
        print(
            "Fuzzing takes Atheris, which is made for Linux on x86-64: make fuzz installs it.",
            file=sys.stderr,
        )
        return 2
    with atheris.instrument_imports(include=WATCHED[options.target]):
        from scripts import fuzz_targets
    target = fuzz_targets.Forms() if options.target == "forms" else fuzz_targets.picture
    flags = command(options.target, options.seconds, options.seed)

    def change(data: bytes, longest: int, seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        if not data or rng.random() >= OURS:
            data = atheris.Mutate(data, len(data))
        changed = bytearray(data)
        if changed and rng.random() < OURS:
            CHANGES[int(rng.integers(len(CHANGES)))](changed, rng, [data])
        return with_checksums(bytes(changed))[:longest]

    atheris.Setup(flags, target, custom_mutator=change if options.target == "images" else None)
    atheris.Fuzz()  # ends the process
    return 0


def command(target: str, seconds: int, seed: int) -> list[str]:
    """Return the arguments of libFuzzer; makes the folders that it writes to."""
    folder = REPORT / target
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    return [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-max_len={LONGEST_INPUT[target]}",
        f"-rss_limit_mb={MOST_MEMORY_MB}",
        f"-timeout={SLOWEST_S}",
        f"-artifact_prefix={folder}/",
        "-print_final_stats=1",
        str(corpus),
        str(SEEDS / target),
    ]


if __name__ == "__main__":
    sys.exit(main())

"""What each technique gains on a picture and on a text: the baseline's way first, then one piece after another ours.

Every piece is measured alone, in turn with all others, and a way is the sum of its pieces: what threads and HTTP add
stands in the other benches. Knows the pieces and their order.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from numpy.typing import NDArray

from engines import builder, catalog, images, models, preprocess, tokenizer
from engines.builder import THOROUGH
from engines.engine import Precision, Subject
from engines.errors import BuildFailed
from engines.store import Store
from scripts.bench import pictures
from scripts.bench.baseline import Rival
from scripts.bench.ceiling import Ceiling
from scripts.bench.engine import rate
from scripts.bench.export import export
from scripts.bench.options import Options
from scripts.bench.record import Row, row
from scripts.bench.sentences import searches
from scripts.bench.show import say, tell
from scripts.bench.turns import in_turn, pace

BATCH = 32
CUT = 16  # ids that the texts of the bench fit in
Pieces = dict[str, Callable[[], float]]  # by name, each returns the seconds of one input
Step = tuple[str, Mapping[str, str]]  # a technique, and the pieces that it puts in place of what


def measure(options: Options, ceiling: Ceiling) -> list[Row]:
    """Measure both ways."""
    return _of_pictures(options) + _of_texts(options)


def _of_pictures(options: Options) -> list[Row]:
    entry, config = catalog.clip(options.model), options.config()
    photo = pictures.photos(options.cache, 1)[0]
    rival = Rival(export(options.model, options.cache))
    image, pixels = rival.decode(photo), images.decode(photo, pictures.MAX_PIXELS)
    square = preprocess.prepare(pixels, entry.image_size, entry.resize)
    normalised = rival.normalise(rival.resize(image))
    seconds = options.seconds
    pieces: Pieces = {
        "decode": partial(pace, lambda: rival.decode(photo), seconds),
        "resize": partial(pace, lambda: rival.normalise(rival.resize(image)), seconds),
        "network": partial(pace, lambda: rival.visual(normalised), seconds),
        "our decode": partial(pace, lambda: images.decode(photo, pictures.MAX_PIXELS), seconds),
        "our resize": partial(pace, lambda: preprocess.prepare(pixels, entry.image_size, entry.resize), seconds),
    }
    subject = models.subject_of("visual", entry, config, models.devices(config)[0])
    for precision in ("float32", "bfloat16", "int8"):
        pieces |= _networks(subject, precision, options, {"alone": [square], "batched": [square] * BATCH})
    steps: list[Step] = [
        ("libjpeg-turbo into one array, not Pillow", {"decode": "our decode"}),
        ("torch's uint8 resize, not Pillow's", {"resize": "our resize"}),
        ("OpenVINO float32, not ONNX Runtime", {"network": "float32 alone"}),
        ("bfloat16", {"network": "bfloat16 alone"}),
        (f"batches of {BATCH}", {"network": "bfloat16 batched"}),
        ("int8, when asked for", {"network": "int8 batched"}),
    ]
    return waterfall("picture", ("decode", "resize", "network"), pieces, steps, options)


def _of_texts(options: Options) -> list[Row]:
    entry, config = catalog.clip(options.model), options.config()
    tokenize, _ = tokenizer.load(entry, config)
    text = searches(1)[0]
    ids = tokenize(text, None)
    rival = Rival(export(options.model, options.cache))
    pieces: Pieces = {
        "tokenise": partial(pace, lambda: rival.tokenizer.encode(text), options.seconds),
        "network": partial(pace, lambda: rival.textual(ids[None]), options.seconds),
        "our tokenise": partial(pace, lambda: tokenize(text, None), options.seconds),
    }
    subject = models.subject_of("textual", entry, config, models.devices(config)[0])
    inputs = {"in full": [ids], "cut": [ids[:CUT]], "batched": [ids[:CUT]] * BATCH}
    for precision in ("float32", "bfloat16", "int8"):
        pieces |= _networks(subject, precision, options, inputs)
    steps: list[Step] = [
        ("our tokenizer, with words kept", {"tokenise": "our tokenise"}),
        ("OpenVINO float32, not ONNX Runtime", {"network": "float32 in full"}),
        ("bfloat16", {"network": "bfloat16 in full"}),
        (f"cut to {CUT} ids, not at {entry.context_length}", {"network": "bfloat16 cut"}),
        (f"batches of {BATCH}", {"network": "bfloat16 batched"}),
        ("int8, when asked for", {"network": "int8 batched"}),
    ]
    return waterfall("text", ("tokenise", "network"), pieces, steps, options)


def _networks(
    subject: Subject, precision: Precision, options: Options, inputs: Mapping[str, Sequence[NDArray[Any]]]
) -> Pieces:
    """Return the pieces of OpenVINO's engine in `precision` by "precision name", none if it cannot be had."""

    def told(stage: str) -> None:
        tell(f"{subject.model} ({subject.kind}), openvino {precision}: {stage}")

    try:
        stored = builder.build(subject, "openvino", precision, Store(options.cache / "engines"), THOROUGH, tell=told)
    except BuildFailed as error:
        say(f"{subject.model} ({subject.kind}), openvino {precision}: {error}")
        return {}
    buckets = sorted(stored.manifest.timings)
    specs = subject.specs(precision, stored.manifest.layout, buckets)
    (engine,) = builder.load(subject, "openvino", specs, stored.folder)

    def piece(items: Sequence[NDArray[Any]]) -> Callable[[], float]:
        return lambda: 1 / rate(engine, items, buckets, options.seconds)

    return {f"{precision} {name}": piece(items) for name, items in inputs.items()}


def waterfall(case: str, way: Sequence[str], pieces: Pieces, steps: Sequence[Step], options: Options) -> list[Row]:
    """Return a row for each step that there are pieces for: the ms of the way with it, baseline: without it."""
    found = in_turn(f"techniques, {case}", pieces, options.rounds)
    now = {part: part for part in way}

    def total() -> list[float]:
        return [1000 * sum(taken) for taken in zip(*(found[piece] for piece in now.values()), strict=True)]

    before = total()
    tell_of = partial(row, "techniques", model=options.model)
    rows = [tell_of(f"{case}: the baseline's way", "ms", before, at=0)]
    for number, (technique, change) in enumerate(steps, 1):
        if not set(change.values()) <= pieces.keys():
            continue
        now |= change
        after = total()
        rows.append(tell_of(f"{case}: {technique}", "ms", after, before, at=number))
        before = after
    return rows

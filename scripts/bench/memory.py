"""What a server holds: empty, with one tower, with both, with faces; by engine, and the baseline beside.

Knows the order in which models are used, and which engines the store has. How memory is read stands in served.py.
"""

from collections.abc import Mapping
from dataclasses import replace

from engines.store import Store
from scripts.bench import pictures, served
from scripts.bench.ceiling import Ceiling
from scripts.bench.drive import Inputs, drive
from scripts.bench.options import Options
from scripts.bench.record import Row, row
from scripts.bench.sentences import searches
from scripts.bench.served import Memory, Served
from scripts.bench.show import say, tell

USED_S = 2.0  # of load on each model before its memory counts: buffers are allocated by the first batches
CALLERS = 8
GOAL_MB = 1200
STEPS = ("empty", "picture tower", "both towers", "both towers and faces")
TOWERS = ("visual", "textual")


def measure(options: Options, ceiling: Ceiling) -> list[Row]:
    """Start a server for each engine, and look at it after each model."""
    served.build(options)
    with served.baseline(options) as server:
        server.wait_ready()
        theirs = _steps(server, options, with_faces=False)
    rows = []
    for engine, precision in engines(options):
        name = f"{engine} {precision}"
        tell(f"memory: {name}")
        asked = replace(options, engine=engine, precision=precision)
        with served.facet(asked) as server:
            server.wait_ready()
            ours = _steps(server, asked, with_faces=True)
            ran = {kind: one.engine for kind, one in server.engines().items() if kind in TOWERS}
        if ran["visual"] == name:
            rows += _rows(ours, theirs, options.model, " and ".join(dict.fromkeys(ran.values())))
        else:
            say(f"memory: no {name}, which is not built: the picture tower ran on {ran['visual']}")
    return rows


def engines(options: Options) -> list[tuple[str, str]]:
    """Return engine and precision of all that is built for the picture tower, after eager float32."""
    keys = [stored.manifest.key for stored in Store(options.cache / "engines").all()]
    built = {(key.backend, key.precision) for key in keys if (key.model, key.kind) == (options.model, "visual")}
    return [("eager", "float32"), *sorted(built - {("eager", "float32")})]


def _steps(server: Served, options: Options, with_faces: bool) -> dict[str, Memory]:
    """Return what the server holds after each model that it was asked for."""
    inputs = Inputs(photos=pictures.photo_paths(options.cache), texts=searches(100))
    held = {STEPS[0]: server.memory()}
    drive(server, options.model, USED_S, inputs, pictures=CALLERS)
    held[STEPS[1]] = server.memory()
    drive(server, options.model, USED_S, inputs, texts=CALLERS)
    held[STEPS[2]] = server.memory()
    if with_faces:
        drive(server, options.model, USED_S, inputs, faces=CALLERS)
        held[STEPS[3]] = server.memory()
    return held


def _rows(ours: Mapping[str, Memory], theirs: Mapping[str, Memory], model: str, engine: str) -> list[Row]:
    rows = []
    for step, held in ours.items():
        other = theirs.get(step)
        for name in ("resident", "proportional", "unique", "peak"):
            goal = f"ours <= {GOAL_MB}" if (step, name) == ("both towers", "resident") else ""
            figures = [float(getattr(held, name))], [float(getattr(other, name))] if other else []
            rows.append(row("memory", f"{step}, {name}", "MB", *figures, model=model, engine=engine, goal=goal))
    return rows

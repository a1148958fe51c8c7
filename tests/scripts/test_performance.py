"""The performance page: what it says of made-up rows, and that the committed one says what the committed rows do."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from scripts.bench import record
from scripts.bench.record import Place, Row, row
from scripts.performance import plots
from scripts.performance.__main__ import PAGE, with_blocks, write
from scripts.performance.blocks import BLOCKS, NO_GPU
from scripts.performance.results import Result, load
from scripts.performance.summary import ASKED, NOT_YET, worst

MODEL = "ViT-B-32__openai"
ENGINE = "openvino bfloat16"
NOON = Place(
    *("2026-11-24T12:00:00+00:00", "abc1234", "x86_64 AMD EPYC", 2, "3.11.9"),
    *("2.12.1", "0.27.1", "2026.4.1", "1.32.0", "13.0.0", "2.4.6"),
)
LATER = replace(NOON, date="2026-11-25T09:30:00+00:00", commit="def5678+")
MAX_BYTES = 150_000


def of_http(callers: int, per_s: float, goal: str = "") -> list[Row]:
    """Return the rows of one concurrency, of three rounds; the baseline does 10 pictures/s."""
    tell_of = partial(row, "http", at=callers, model=MODEL, engine=ENGINE)
    rates = [per_s, 0.9 * per_s, 1.1 * per_s]
    return [
        tell_of("pictures", "pictures/s", rates, [10.0] * 3, ceiling=50.0, goal=goal),
        tell_of("p50", "ms", [1000 * callers / per_s], [100.0 * callers]),
        tell_of("p99", "ms", [1500 * callers / per_s], [140.0 * callers]),
        tell_of("lowest cosine to eager float32", "", [0.999612], goal="ours >= 0.999"),
    ]


def of_faces(faces: int, size: str, smallest: int, ratio: float) -> list[Row]:
    name = f"{faces} faces in {size}, from {smallest} pixels"
    return [
        row("faces", name, "photos/s", [8 * ratio], [8.0], at=faces, model="facenet-vggface2", goal="ratio >= 4"),
        row("faces", f"{name}: lowest overlap of boxes", "", [0.991], goal="ours >= 0.98"),
        row("faces", f"{name}: lowest cosine of embeddings", "", [0.999771], goal="ours >= 0.999"),
    ]


def of_techniques(ms: Sequence[float], names: Sequence[str] = ("the baseline's way", "bfloat16", "int8")) -> list[Row]:
    before: list[list[float]] = [[], *([each] for each in ms)]
    return [
        row("techniques", f"picture: {name}", "ms", [each], before[number], at=number, model=MODEL)
        for number, (name, each) in enumerate(zip(names, ms, strict=True))
    ]


EVERYTHING = [
    row("ceiling", "matrix product float32", "GFLOP/s", [151.0]),
    *of_http(1, 22.0),
    *of_http(8, 25.0, "ratio >= 2.2"),
    *of_http(32, 20.0, "ratio >= 2.2"),
    row("http", "beside 32 pictures: p50 of a text", "ms", [52.5], [853.0], at=32, model=MODEL, engine=ENGINE),
    row("http", "least throughput after the peak over the peak", "", [0.8], model=MODEL, goal="ours >= 0.95"),
    *of_techniques([90.0, 45.0, 30.0]),
    row("text", "texts", "texts/s", [208.0], [20.0], at=64, model=MODEL, engine=ENGINE, goal="ratio >= 5"),
    *of_faces(0, "1440x1080", 40, 4.5),
    *of_faces(5, "1440x1080", 40, 3.5),
    *of_faces(5, "4000x3000", 40, 5.0),
    row("decode", "1440x1080", "pictures/s", [304.0], [130.0], ceiling=320.0),
    row("prepare", "1440x1080, mean difference", "levels", [0.0021], goal="ours <= 0.01"),
    row("engine", "visual", "items/s", [41.5], [16.0], at=8, model=MODEL, engine=ENGINE, ceiling=46.0),
    row("start", "first /ping", "s", [0.61], [2.4], goal="ours <= 1"),
    row("memory", "both towers, resident", "MB", [813.0], [1015.0], model=MODEL, engine=ENGINE, goal="ours <= 1200"),
    row("memory", "both towers, peak", "MB", [902.0], [1213.0], model=MODEL, engine=ENGINE),
    row("queue", "each of those that wait: queued, cut, answered", "µs", [57.0], at=10_000, goal="ours <= 50"),
]


def page(folder: Path, *runs: tuple[Place, Sequence[Row]]) -> str:
    """Save the rows of some runs, write a page with empty blocks from them, and return it."""
    for place, rows in runs:
        record.save(rows, place, folder / "results")
    (folder / "results").mkdir(exist_ok=True)
    path = folder / PAGE.name
    path.write_text("".join(f"<!-- {name} -->\n<!-- end {name} -->\n" for name in BLOCKS), encoding="utf-8")
    write(path, folder / "results")
    return path.read_text(encoding="utf-8")


def block(text: str, name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end {name} -->", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_committed_page_says_what_the_committed_rows_do() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_blocks(text, load(record.RESULTS)) == text, "run python -m scripts.performance"


def test_the_committed_page_shows_every_committed_plot() -> None:
    shown = {PAGE.parent / link for link in re.findall(r"\]\(([^)]+\.svg)\)", PAGE.read_text(encoding="utf-8"))}
    assert shown == set((PAGE.parent / plots.FOLDER).glob("*.svg")), "run python -m scripts.performance"


def test_every_block_says_what_was_measured(tmp_path: Path) -> None:
    text = page(tmp_path, (NOON, EVERYTHING))
    for name, words in {
        "machines": "| 2026-11-24 12:00 UTC | x86_64 AMD EPYC, 2 cores | abc1234 | Python 3.11.9, torch 2.12.1,",
        "http": f"| {ENGINE} | 8 | 25.0 (22.5–27.5) | 10.0 | 2.50 (2.25–2.75) | 50% | 320 / 800 | 480 / 1,120 |",
        "techniques": "| int8 | 30.0 | 45.0 | 1.50 | 3.00 |",
        "text": f"| texts | {MODEL} | {ENGINE} | 64 | texts/s | 208 | 20.0 | 10.4 | ratio ≥ 5 | yes |",
        "faces": "| 5 | 4000x3000 | 40 pixels | 40.0 | 8.00 | 5.00 | ratio ≥ 4 | yes | 0.991 | 0.999771 |",
        "decode": "| 1440x1080 | pictures/s | 304 | 130 | 2.34 | 95% |",
        "prepare": "| 1440x1080, mean difference | levels | 0.0021 | ≤ 0.01 levels | yes |",
        "engine": f"| visual | {MODEL} | {ENGINE} | 8 | items/s | 41.5 | 16.0 | 2.59 | 90% |",
        "start": "| first /ping | s | 0.61 | 2.40 | 0.254 | ≤ 1 s | yes |",
        "memory": f"| {MODEL} | {ENGINE} | both towers | 813 / 1,015 | 902 / 1,213 |",
        "queue": "| each of those that wait: queued, cut, answered | µs | 57.0 | ≤ 50 µs | **no** |",
        "gpu": NO_GPU,
    }.items():
        assert words in block(text, name)
        assert name in ("machines", "gpu") or "Measured 2026-11-24 12:00 UTC on x86_64 AMD EPYC, 2 cores." in block(
            text, name
        )
    assert "| matrix product float32 | GFLOP/s | 151 |" in block(text, "machines")
    assert "| beside 32 pictures: p50 of a text |" in block(text, "http")


def test_the_summary_shows_the_worst_case_of_each_target(tmp_path: Path) -> None:
    lines = block(page(tmp_path, (NOON, EVERYTHING)), "summary").splitlines()
    pictures, faces, queue, start = (
        next(line for line in lines if line.startswith(f"| {asked}"))
        for asked in ("pictures/s", "photos/s", "what the queue", "longest wait")
    )
    assert f"| {MODEL} {ENGINE}, at 32, worst of 2 |" in pictures
    assert "| 2.00 (1.80–2.20) | ratio ≥ 2.2 | **no** |" in pictures
    assert "| facenet-vggface2, 5 faces in 1440x1080, from 40 pixels, worst of 3 |" in faces
    assert "| 3.50 | ratio ≥ 4 | **no** |" in faces
    assert "| 57.0 |  |  | ≤ 50 µs | **no** |" in queue
    assert start.endswith(f"| {NOT_YET} |")


def test_a_target_that_nobody_named_is_not_lost(tmp_path: Path) -> None:
    text = page(tmp_path, (NOON, [row("http", "a new one", "ms", [7.0], goal="ours <= 5")]))
    assert "| http: a new one | ms | 7.00 | ≤ 5 ms | **no** |" in block(text, "summary")


@pytest.mark.parametrize("goal", ["ratio >= 2", "ratio <= 2"])
def test_what_could_not_be_compared_is_the_worst(goal: str) -> None:
    results = [
        Result(NOON, row("http", "pictures", "pictures/s", [20.0], baseline, goal=goal)) for baseline in ([10.0], [])
    ]
    assert worst(results) is results[1]


def test_the_newest_row_of_each_case_counts(tmp_path: Path) -> None:
    text = page(tmp_path, (LATER, of_http(8, 30.0)), (NOON, [*of_http(8, 25.0), *of_http(1, 22.0)]))
    http = block(text, "http")
    assert "| 8 | 30.0 (27.0–33.0) |" in http
    assert "| 8 | 25.0" not in http
    assert "| 1 | 22.0" in http
    assert "Measured 2026-11-25 09:30 UTC, 2026-11-24 12:00 UTC on x86_64 AMD EPYC, 2 cores." in http
    assert "def5678+" in block(text, "machines")


def test_a_waterfall_is_of_one_run(tmp_path: Path) -> None:
    text = page(tmp_path, (NOON, of_techniques([90.0, 45.0, 30.0])), (LATER, of_techniques([80.0, 40.0], ["a", "b"])))
    assert "| b | 40.0 | 80.0 | 2.00 | 2.00 |" in block(text, "techniques")
    assert "int8" not in block(text, "techniques")


def test_a_curve_is_of_the_run_with_the_most_points(tmp_path: Path) -> None:
    text = page(tmp_path, (NOON, [*of_http(1, 22.0), *of_http(8, 25.0)]), (LATER, of_http(8, 30.0)))
    assert "The plot: Measured 2026-11-24 12:00 UTC" in block(text, "http")
    (shown,) = plots.served(load(tmp_path / "results")).values()
    assert [(one.row.at, one.row.ours) for one in shown if one.row.case == "pictures"] == [(1, 22), (8, 25)]


def test_the_command_of_a_run_measures_the_same(tmp_path: Path) -> None:
    int8 = [replace(one, engine="openvino int8", model="ViT-L-14__openai") for one in of_http(8, 30.0)]
    text = block(page(tmp_path, (NOON, EVERYTHING), (LATER, int8)), "machines")
    assert (
        "`.venv/bin/python -m scripts.bench http --precision int8 --model ViT-L-14__openai --rounds 3 --save`" in text
    )
    assert " --growth --rounds 3 --save`" in text


def test_what_a_gpu_computed_stands_apart(tmp_path: Path) -> None:
    on_gpu = row("engine", "visual", "items/s", [40_000.0], [16_000.0], at=32, model=MODEL, engine="tensorrt float16")
    text = page(tmp_path, (replace(NOON, processor="NVIDIA H200"), [on_gpu]))
    assert "| 32 | items/s | 40,000 | 16,000 | 2.50 |" in block(text, "gpu")
    assert "on NVIDIA H200" in block(text, "gpu")
    assert block(text, "engine").startswith("Not measured yet: `.venv/bin/python -m scripts.bench engine --save`.")


def test_without_rows_every_block_says_so(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert block(text, "summary").count(f"| {NOT_YET} |") == len(ASKED)
    assert block(text, "gpu") == f"{NO_GPU}\n"
    for name in BLOCKS.keys() - {"summary", "gpu"}:
        assert block(text, name).startswith(NOT_YET.capitalize())
    assert list((tmp_path / plots.FOLDER).iterdir()) == []


@pytest.mark.parametrize("one", EVERYTHING, ids=lambda one: f"{one.what}: {one.case}")
def test_any_row_alone_makes_a_page(tmp_path: Path, one: Row) -> None:
    text = page(tmp_path, (NOON, [one]))
    assert "Measured 2026-11-24 12:00 UTC" in text or one.what == "ceiling"
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert all((tmp_path / link).exists() for link in linked)


def test_a_page_without_a_place_for_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- http -->"):
        with_blocks(PAGE.read_text(encoding="utf-8").replace("<!-- http -->", ""), [])


def test_what_is_outside_the_blocks_stays(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    outside = re.compile(r"(<!-- ([\w ]+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
    record.save(EVERYTHING, NOON, tmp_path)
    filled = with_blocks(text, load(tmp_path))
    assert filled != text
    assert outside.sub(r"\1\3", filled) == outside.sub(r"\1\3", text)
    assert with_blocks(filled, load(tmp_path)) == filled


def test_plots_are_small_the_same_each_time_and_have_their_words_as_text(tmp_path: Path) -> None:
    page(tmp_path, (NOON, EVERYTHING))
    drawn = {path.name: path.read_bytes() for path in (tmp_path / plots.FOLDER).iterdir()}
    assert set(drawn) == {f"http-{MODEL}.svg", "techniques.svg", "faces.svg"}
    shutil.rmtree(tmp_path / plots.FOLDER)
    plots.draw(load(tmp_path / "results"), tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / plots.FOLDER).iterdir()} == drawn
    assert all(len(data) < MAX_BYTES for data in drawn.values())
    words = {"http": "pictures/s", "techniques": "30.0 ms, 1.50×", "faces": "facenet-pytorch"}
    for name, data in drawn.items():
        assert words[name.partition("-")[0].removesuffix(".svg")] in data.decode()
        assert b"<dc:date>" not in data


def test_a_plot_of_what_is_no_longer_measured_goes(tmp_path: Path) -> None:
    stale = tmp_path / plots.FOLDER / "http-gone.svg"
    stale.parent.mkdir()
    stale.touch()
    page(tmp_path, (NOON, EVERYTHING))
    assert not stale.exists()

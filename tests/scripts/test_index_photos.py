"""python -m scripts.index_photos with the demo models: what a person runs, interrupts, and runs again."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from scripts import index_photos, scenes
from scripts.bulk.index import GROUP, parts_of

ROOT = Path(__file__).parents[2]


def library(folder: Path, count: int, size: int = 96) -> Path:
    """Return a folder with `count` small photos, each another file."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [scenes.photo(np.random.default_rng(number), size, size) for number in range(min(count, 8))]
    for number in range(count):
        drawn[number % 8].save(folder / f"{number}.jpg", comment=f"photo {number}")
    return folder


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models run as they are, which takes no examination."""
    for name, value in {
        "CACHE_FOLDER": str(tmp_path / "cache"),
        "ENGINE": "eager",
        "PRECISION": "float32",
        "DEVICE": "cpu",
    }.items():
        monkeypatch.setenv(f"MACHINE_LEARNING_{name}", value)


def command(folder: Path, out: Path) -> list[str]:
    return [str(folder), "--out", str(out), "--clip", "demo", "--no-faces"]


def test_a_folder_with_broken_files_and_faces_ends_with_1_and_a_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = library(tmp_path / "photos", 3), tmp_path / "index.parquet"
    with Image.open(ROOT / "engines/data/gate/astronaut.jpg") as image:
        image.save(folder / "astronaut.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "empty.png").touch()
    assert index_photos.main([str(folder), "--out", str(out), "--clip", "demo", "--face", "demo"]) == 1
    told = capsys.readouterr().err
    assert "embedded: 4" in told
    assert "failed: 2" in told
    assert "broken.jpg" in told
    report = (tmp_path / "index.parquet.failed.txt").read_text(encoding="utf-8")
    assert sorted(line.split("\t")[0] for line in report.splitlines()) == ["broken.jpg", "empty.png"]
    rows = {row["path"]: row for row in parquet.read_table(out).to_pylist()}
    (face,) = rows["astronaut.png"]["faces"]
    assert face["score"] > 0.9
    assert np.isclose(np.linalg.norm(face["embedding"]), 1, atol=1e-4)
    assert np.isclose(np.linalg.norm(rows["0.jpg"]["embedding"]), 1, atol=1e-4)
    assert (rows["0.jpg"]["width"], rows["0.jpg"]["faces"], rows["0.jpg"]["failure"]) == (96, [], None)
    assert rows["empty.png"]["failure"].startswith("The image is empty")
    assert rows["empty.png"]["embedding"] is None

    (folder / "broken.jpg").unlink()
    (folder / "empty.png").unlink()
    assert index_photos.main([str(folder), "--out", str(out)]) == 0  # the models are those of the index
    told = capsys.readouterr().err
    assert "kept: 4" in told
    assert "gone and left out: 2" in told
    assert not (tmp_path / "index.parquet.failed.txt").exists()
    assert len(parquet.read_table(out)) == 4

    assert index_photos.main([str(folder), "--out", str(out), "--no-faces"]) == 2
    assert "--face was 'demo' and is ''" in capsys.readouterr().err
    assert len(parquet.read_table(out)) == 4


def test_a_killed_run_and_an_interrupted_one_are_gone_on_with(tmp_path: Path) -> None:
    folder, out = library(tmp_path / "photos", 5 * GROUP), tmp_path / "index.parquet"

    def until_part(number: int) -> "subprocess.Popen[str]":
        """Start a run, and return it when so many groups are safe."""
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-m", "scripts.index_photos", *command(folder, out)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        part = parts_of(out) / f"{number:06}.parquet"
        while not part.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
                pytest.fail(f"it ended too early: {process.stderr and process.stderr.read()}")
        return process

    killed = until_part(1)
    killed.kill()
    killed.communicate()
    assert not out.exists()
    kept = len(list(parts_of(out).glob("*.parquet")))

    interrupted = until_part(kept + 1)
    os.kill(interrupted.pid, signal.SIGINT)
    _, told = interrupted.communicate()
    assert interrupted.returncode == index_photos.INTERRUPTED, told
    assert f"{kept * GROUP} photos are in the index already" in told
    assert "Run the same command again to go on." in told
    assert "Traceback" not in told
    assert not out.exists()

    last = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-m", "scripts.index_photos", *command(folder, out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert last.returncode == 0, last.stderr
    counts = {name: int(count) for name, count in re.findall(r"(embedded|kept): (\d+)", last.stderr)}
    assert counts["kept"] > kept * GROUP
    assert sum(counts.values()) == 5 * GROUP
    assert sorted(parquet.read_table(out)["path"].to_pylist()) == sorted(f"{n}.jpg" for n in range(5 * GROUP))
    assert not parts_of(out).exists()


def test_an_empty_folder_leaves_the_index_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = library(tmp_path / "photos", 2), tmp_path / "index.parquet"
    assert index_photos.main(command(folder, out)) == 0
    folder.rename(tmp_path / "on a disk")
    folder.mkdir()  # where that disk was mounted
    assert index_photos.main(command(folder, out)) == 2
    assert "There is no photo in" in capsys.readouterr().err
    assert len(parquet.read_table(out)) == 2


def test_an_index_keeps_what_it_has_when_another_folder_is_given_or_most_photos_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = library(tmp_path / "photos", 5), tmp_path / "index.parquet"
    other = library(tmp_path / "other", 2)
    assert index_photos.main(command(folder, out)) == 0
    assert index_photos.main(command(other, out)) == 2
    assert "--moved" in capsys.readouterr().err
    assert len(parquet.read_table(out)) == 5

    for number in range(3):
        (folder / f"{number}.jpg").unlink()
    library(tmp_path / "new", 6)
    (tmp_path / "new" / "5.jpg").rename(folder / "5.jpg")
    assert index_photos.main(command(folder, out)) == 2
    told = capsys.readouterr().err
    assert "3 of 5 photos" in told
    assert "--gone" in told
    assert len(parquet.read_table(out)) == 5

    assert index_photos.main([*command(folder, out), "--gone"]) == 0
    told = capsys.readouterr().err
    assert "gone and left out: 3" in told
    assert "kept: 3" in told, "what was embedded before the refusal is kept"
    assert len(parquet.read_table(out)) == 3

    folder = folder.rename(tmp_path / "albums")
    assert index_photos.main([*command(folder, out), "--moved"]) == 0
    assert "kept: 3" in capsys.readouterr().err
    assert index_photos.main(command(folder, out)) == 0


def test_a_folder_as_the_index_is_told_and_nobody_is_told_to_delete_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = library(tmp_path / "photos", 1)
    assert index_photos.main(command(folder, folder)) == 2
    told = capsys.readouterr().err
    assert f"{folder} is a folder" in told
    assert "delete" not in told
    assert [path.name for path in folder.iterdir()] == ["0.jpg"]


@pytest.mark.parametrize("score", ["nan", "7", "-0.1", "high"])
def test_a_score_that_no_face_can_have_is_refused_at_once(
    tmp_path: Path, score: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        index_photos.main([*command(tmp_path, tmp_path / "i.parquet"), "--min-score", score])
    assert ended.value.code == 2
    assert f"{score!r} is no score: give a number from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--clip", "no such model"], "There is no CLIP model"),
        (["--clip", "demo", "--face", "no such model"], "There is no face model"),
    ],
)
def test_what_cannot_be_done_is_told(
    tmp_path: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index.parquet"
    assert index_photos.main([str(library(tmp_path / "photos", 1)), "--out", str(out), *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()
    assert not parts_of(out).exists()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert index_photos.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "i.parquet")]) == 2
    assert "is no folder" in capsys.readouterr().err

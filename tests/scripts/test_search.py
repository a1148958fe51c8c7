"""python -m scripts.search: words and pictures find the right photos, with the model of the index."""

import json
from pathlib import Path

import numpy as np
import pytest

from scripts import index_photos, scenes, search
from scripts.bulk.index import parts_of

SCENES = 40


@pytest.fixture(autouse=True)
def settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.getbasetemp() / "cache"
    for name, value in {"CACHE_FOLDER": str(cache), "ENGINE": "eager", "PRECISION": "float32", "DEVICE": "cpu"}.items():
        monkeypatch.setenv(f"MACHINE_LEARNING_{name}", value)


@pytest.fixture(scope="module")
def captions() -> dict[str, str]:
    """Return what each photo shows, by its name."""
    rng = np.random.default_rng(7)
    return {f"{number}.png": scenes.caption(scenes.scene(rng)) for number in range(SCENES)}


@pytest.fixture
def index(tmp_path: Path) -> Path:
    rng, folder = np.random.default_rng(7), tmp_path / "photos"
    folder.mkdir()
    for number in range(SCENES):
        scenes.draw(scenes.scene(rng), np.random.default_rng(number), 128).save(folder / f"{number}.png")
    out = tmp_path / "index.parquet"
    assert index_photos.main([str(folder), "--out", str(out), "--clip", "demo", "--no-faces"]) == 0
    return out


def test_words_and_pictures_find_the_right_photos(
    index: Path, captions: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = index.parent / "photos"
    right = 0
    for name, caption in list(captions.items())[:4]:
        capsys.readouterr()
        assert search.main([str(index), caption, "--top", "3"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3
        scores = [float(line.split()[0]) for line in lines]
        assert scores == sorted(scores, reverse=True)
        right += lines[0].endswith(str(folder / name))
    assert right >= 3

    assert search.main([str(index), "--image", str(folder / "5.png"), "--top", "2", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["path"] == "5.png"
    assert first["file"] == str(folder / "5.png")
    assert first["score"] == pytest.approx(1, abs=1e-4)
    assert (first["width"], first["height"], first["copies"]) == (128, 128, 0)
    assert second["score"] < first["score"]


def test_what_cannot_be_searched_is_told(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    letter = index.parent / "letter.parquet"
    letter.write_bytes(b"Dear all")
    assert search.main([str(letter), "a cat"]) == 2
    assert "is no index of photos" in capsys.readouterr().err
    assert search.main([str(index.parent / "nothing.parquet"), "a cat"]) == 2
    assert "nothing.parquet cannot be read: No such file or directory" in capsys.readouterr().err
    assert search.main([str(index), "--image", str(letter)]) == 2
    assert "cannot be read as a picture" in capsys.readouterr().err
    parts_of(index.parent / "half.parquet").mkdir()
    assert search.main([str(index.parent / "half.parquet"), "a cat"]) == 2
    assert "is not finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [([], "a TEXT or an --image"), (["a", "--image", "b"], "a TEXT or an --image"), (["a", "--top", "0"], "--top")],
)
def test_a_wrong_command_line_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        search.main(["index.parquet", *arguments])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err

"""An index that is interrupted loses nothing that was written, and ends with the newest row of each photo."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from scripts.bulk import index as module
from scripts.bulk import table
from scripts.bulk.index import Index
from scripts.bulk.table import About, BadIndex, Row, opened
from scripts.bulk.walk import Photo
from tests.scripts.bulk.data import ABOUT, WITH, WITH_FACES, face, row


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "photos.parquet"


def run(out: Path, rows: Sequence[Row], *, met: Sequence[Row] = (), about: About = ABOUT) -> None:
    """Let one run write `rows`, meet others, and finish."""
    index = Index(out, about)
    index.begin()
    index.write(rows)
    for one in met:
        assert index.ledger.has(one.photo)
    index.finish()
    index.close()


def content(out: Path) -> dict[str, int]:
    """Return the paths of an index and when the photos were modified."""
    table = parquet.read_table(out)
    return dict(zip(table["path"].to_pylist(), table["modified"].to_pylist(), strict=True))


def test_what_is_written_can_be_read(out: Path) -> None:
    about = About(folder="/photos", made_with=WITH_FACES, dim=8, face_dim=3)
    rows = [row(0, faces=[face(1), face(2)]), row(1, faces=[]), row(2, failure="It is cut off.")]
    run(out, rows, about=about)
    file, said = opened(out)
    assert said == about
    first, second, third = file.read().to_pylist()
    assert rows[0].embedding is not None
    assert np.array_equal(np.array(first["embedding"], np.float32), rows[0].embedding)
    assert (first["path"], first["raw_path"], first["bytes"], first["width"], first["height"]) == (
        *("0.jpg", None, 100),
        *(640, 480),
    )
    assert (first["model"], first["engine"], first["failure"]) == ("demo", "eager float32 on cpu", None)
    assert [one["box"] for one in first["faces"]] == [[1, 2, 3, 4], [2, 3, 4, 5]]
    assert len(first["faces"][0]["embedding"]) == 3
    assert second["faces"] == []
    assert (third["embedding"], third["faces"], third["failure"]) == (None, None, "It is cut off.")
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name]


def test_a_name_that_is_no_text_is_kept_to_the_byte(out: Path) -> None:
    odd = Row(Photo(b"\xff.jpg", 1, 1), failure="empty")
    run(out, [odd])
    index = Index(out, ABOUT)
    index.begin()
    assert index.ledger.kept(0, [b"\xff.jpg"]) == [False]  # known, and not met yet
    index.ledger.spare(b"\xff.jpg")
    assert index.ledger.kept(0, [b"\xff.jpg"]) == [True]
    index.close()
    assert parquet.read_table(out)["path"].to_pylist() == ["\\xff.jpg"]


def test_a_run_that_ended_early_is_gone_on_with(out: Path) -> None:
    first = Index(out, ABOUT)
    first.begin()
    first.write([row(0), row(1)])
    first.close()
    assert not out.exists()
    second = Index(out, ABOUT)
    assert second.begin() == 2
    assert second.ledger.has(row(0).photo)
    assert second.ledger.has(row(1).photo)
    second.write([row(2)])
    second.finish()
    assert content(out) == {"0.jpg": 1, "1.jpg": 1, "2.jpg": 1}
    assert not second.parts.exists()


def test_a_group_that_was_cut_off_is_no_part(out: Path) -> None:
    first = Index(out, ABOUT)
    first.begin()
    first.write([row(0)])
    (first.parts / "draft").write_bytes(b"PAR1 and then the power went")
    first.close()
    second = Index(out, ABOUT)
    assert second.begin() == 1
    second.close()


def test_the_newest_row_counts_and_what_is_gone_goes(out: Path) -> None:
    run(out, [row(0), row(1), row(2)])
    run(out, [row(1, modified=5)], met=[row(0)])
    assert content(out) == {"0.jpg": 1, "1.jpg": 5}


def test_nothing_new_leaves_the_file_alone(out: Path) -> None:
    run(out, [row(0)])
    before = out.stat()
    index = Index(out, ABOUT)
    index.begin()
    assert index.ledger.has(row(0).photo)
    index.finish()
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_small_parts_become_groups_of_a_size(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 10)
    index = Index(out, ABOUT)
    index.begin()
    for number in range(12):
        index.write([row(2 * number), row(2 * number + 1)])
    index.finish()
    groups = parquet.ParquetFile(out).metadata
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [10, 10, 4]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"clip": "ViT-B-32__openai"}, "--clip was 'demo' and is 'ViT-B-32__openai'"),
        ({"clip_weights": "b-hash"}, "the hash of the CLIP model's weights was 'a-hash'"),
        ({"face": "demo"}, "--face was '' and is 'demo'"),
        ({"resize": "crop"}, "MACHINE_LEARNING_CLIP_RESIZE was 'native' and is 'crop'"),
    ],
)
def test_what_cannot_be_compared_is_never_mixed(out: Path, change: dict[str, str], told: str) -> None:
    first = Index(out, ABOUT)
    first.begin()
    first.write([row(0)])
    first.close()
    other = Index(out, About(folder="/photos", made_with=WITH.model_copy(update=change), dim=8))
    with pytest.raises(BadIndex, match="give another --out") as refused:
        other.begin()
    other.close()
    assert told in str(refused.value)
    assert Index(out, ABOUT).begin() == 1


def test_the_index_of_another_folder_is_refused_until_it_is_said_to_have_moved(out: Path, tmp_path: Path) -> None:
    run(out, [row(0)])
    elsewhere = ABOUT.model_copy(update={"folder": str(tmp_path)})
    other = Index(out, elsewhere)
    with pytest.raises(BadIndex, match="--moved") as refused:
        other.begin()
    other.close()
    assert "/photos" in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    moved = Index(out, elsewhere)
    assert moved.begin(moved=True) == 1
    assert moved.ledger.has(row(0).photo)
    moved.finish()
    assert opened(out)[1] == elsewhere
    assert content(out) == {"0.jpg": 1}


def test_one_folder_may_be_written_in_different_ways(out: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    run(out, [row(0)], about=ABOUT.model_copy(update={"folder": str(tmp_path)}))
    for way in (f"{tmp_path}/", f"{tmp_path}/../{tmp_path.name}", f"{tmp_path}/link"):
        again = Index(out, ABOUT.model_copy(update={"folder": way}))
        assert again.begin() == 1
        again.close()


def test_a_folder_in_place_of_an_index_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadIndex, match=r"is a folder: give the path of a file, such as .*index\.parquet") as refused:
        opened(tmp_path)
    assert "delete" not in str(refused.value)


def test_two_runs_at_once_are_refused(out: Path) -> None:
    first, second = Index(out, ABOUT), Index(out, ABOUT)
    first.begin()
    with pytest.raises(BadIndex, match="wait for its end"):
        second.begin()
    second.close()
    first.write([row(0)])
    first.finish()
    assert content(out) == {"0.jpg": 1}


def test_a_file_that_is_no_index_is_not_replaced(out: Path) -> None:
    out.write_bytes(b"a letter")
    index = Index(out, ABOUT)
    with pytest.raises(BadIndex, match="is no index") as refused:
        index.begin()
    assert "delete" not in str(refused.value)
    index.close()
    assert out.read_bytes() == b"a letter"
    assert not index.parts.exists()


def test_an_index_of_another_version_is_told(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(out, [row(0)])
    monkeypatch.setattr(table, "FORMAT", table.FORMAT + 1)
    with pytest.raises(BadIndex, match="another version"):
        opened(out)

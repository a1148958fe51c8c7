"""Decoding and preparing are told beside Pillow and open_clip, with how far they differ and how two threads do."""

from scripts.bench import decode, prepare
from scripts.bench.ceiling import Ceiling
from scripts.bench.options import Options


def test_decoding_is_told_in_both_sizes(options: Options, most: Ceiling) -> None:
    rows = decode.measure(options, most)
    assert len(rows) == 10
    rates = [one for one in rows if one.unit == "pictures/s"]
    assert all(one.ours > 0 and one.ratio for one in rates)
    assert [one.at for one in rates] == [None, 2, None] * 2
    differences = [one.ours for one in rows if one.unit == "levels"]
    assert all(0 <= each < 16 for each in differences)


def test_preparing_is_held_against_open_clips_transform(options: Options, most: Ceiling) -> None:
    rows = {one.case: one for one in prepare.measure(options, most)}
    assert len(rows) == 10
    for size in ("1440x1080", "12 megapixels"):
        assert rows[f"{size}, greatest difference"].met == "yes"
        assert rows[f"{size}, mean difference"].met == "yes"
        assert rows[f"{size}, cosine through the tower"].met == "yes"
        assert rows[size].ratio

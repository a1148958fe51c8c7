"""The texts are short, all different, and the same at every call."""

import pytest

from scripts.bench.sentences import searches


def test_texts_are_of_3_to_8_words_and_all_different() -> None:
    texts = searches(1000)
    assert len(set(texts)) == 1000
    assert {len(text.split()) for text in texts} <= set(range(3, 9))
    assert searches(10) == texts[:10]


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="texts, not 1000000"):
        searches(1_000_000)

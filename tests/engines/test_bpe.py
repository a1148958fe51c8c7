"""Token ids against open_clip's own tokenizer, and the cost of texts that are made to be slow."""

import gzip
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer, default_bpe

from engines import bpe

CONTEXT = 77
SMALL = 4096
PIECES = (
    *("a photo of", "Cat", "don't", "we'll", "THE", "supercalifragilistic", "x" * 60, "aaaaaaaaaaaaaaaaaaaaaaaaaa"),
    *("héllo", "he\u0301llo", "Ångström", "İstanbul", "ﬁne", "ſtraße", "Ωμέγα", "привет", "שלום", "مرحبا", "हिन्दी"),
    *(
        "猫の写真",
        "一只猫",
        "고양이",
        "ＬＯＵＤ",
        "😂",
        "😂😂😂😂😂😂😂😂😂",
        "👩‍🚀",
        "🇺🇸🇺🇸",
        "❤️",
        "e\u0301\u0302\u0323",
    ),
    *("&amp;", "&lt;b&gt;", "&amp;amp;lt;", "&#128049;", "&#xD800;", "<br/>", "â€œquotedâ€\x9d", "Ã©tÃ©", "\ufffd"),
    *(" ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u200b", "\x00", "\x1b[31m", "...", "!!!???", "--", "1,234.5"),
    *("2024", "٣٤", "½", "<start_of_text>", "<END_OF_TEXT>", "<end_of_text>", "'s", "'ſ", "_", "\ud800", "\\", '"'),
)


@pytest.fixture(scope="module")
def full() -> SimpleTokenizer:
    return SimpleTokenizer()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SimpleTokenizer:
    """Return open_clip's tokenizer with a merges file that ends after the merges of the small vocabulary."""
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")[: 1 + SMALL - 514]
    path = tmp_path_factory.mktemp("merges") / "merges.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return SimpleTokenizer(str(path))


def odd_texts(count: int) -> list[str]:
    """Return texts of up to 40 pieces, with and without spaces, many of them longer than the context."""
    rng = np.random.default_rng(5)
    texts = []
    for _ in range(count):
        pieces = [PIECES[i] for i in rng.integers(len(PIECES), size=rng.integers(0, 40))]
        texts.append(("" if rng.random() < 0.4 else " ").join(pieces))
    return texts


def expected(tokenizer: SimpleTokenizer, text: str, context_length: int = CONTEXT) -> list[int]:
    ids: list[int] = tokenizer([text], context_length)[0].tolist()
    return ids


def test_ids_equal_those_of_open_clip(full: SimpleTokenizer) -> None:
    for text in odd_texts(5000):
        assert bpe.encode(text, CONTEXT).tolist() == expected(full, text), repr(text)


def test_ids_of_a_small_vocabulary_equal_those_of_open_clip_with_fewer_merges(small: SimpleTokenizer) -> None:
    assert small.vocab_size == SMALL
    for text in odd_texts(700):
        assert bpe.encode(text, CONTEXT, SMALL).tolist() == expected(small, text), repr(text)


def test_random_characters(full: SimpleTokenizer) -> None:
    rng = np.random.default_rng(6)
    for _ in range(800):
        # Any code point but the surrogates in the upper half, which no str from UTF-8 has.
        text = "".join(map(chr, rng.integers(0, rng.choice([128, 0x250, 0xD7FF]), size=rng.integers(0, 60))))
        assert bpe.encode(text, CONTEXT).tolist() == expected(full, text), repr(text)


@pytest.mark.parametrize("piece", ["a", "ab", "lol", "😂", "é", "猫", "thinkbigsundaywithmarsha", "!", "ha1"])
def test_words_longer_than_the_context(full: SimpleTokenizer, piece: str) -> None:
    for times in (30, 75, 76, 77, 150, 700):
        assert bpe.encode(piece * times, CONTEXT).tolist() == expected(full, piece * times)


def test_a_long_word_of_random_letters(full: SimpleTokenizer) -> None:
    rng = np.random.default_rng(7)
    word = "".join(rng.choice(list("abcdeinorst"), 3000))
    assert bpe.encode(word, CONTEXT).tolist() == expected(full, word)
    assert bpe.encode(word, 300).tolist() == expected(full, word, 300)


def test_a_long_text_keeps_what_the_context_holds(full: SimpleTokenizer) -> None:
    rng = np.random.default_rng(8)
    text = " " * 9000 + " ".join(odd_texts(1)[0] + "".join(rng.choice(list("abc 😂"), 20)) for _ in range(400))
    assert bpe.encode(text, CONTEXT).tolist() == expected(full, text)


def test_shape_and_ends() -> None:
    empty = bpe.encode("", CONTEXT)
    assert empty.dtype == np.int64
    assert empty.tolist() == [49406, 49407] + [0] * 75
    assert bpe.encode("one two three four", 4).tolist()[::3] == [49406, 49407]
    assert bpe.encode("a", 5, 514).tolist() == [512, 320, 513, 0, 0]


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary of 500"):
        bpe.encode("a", CONTEXT, 500)
    with pytest.raises(ValueError, match="vocabulary of 49409"):
        bpe.encode("a", CONTEXT, 49409)
    with pytest.raises(ValueError, match="context of 1"):
        bpe.encode("a", 1)


def seconds_to_encode(text: str) -> float:
    """Return the CPU time of the quickest of five calls on this thread, so that a busy machine does not count.

    Nor does the tracer of a coverage measurement, which makes such loops several times as slow.
    """
    bpe.encode("the tables are built", CONTEXT)
    times = []
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        for _ in range(5):
            bpe._known_ids.cache_clear()
            started = time.thread_time()
            bpe.encode(text, CONTEXT)
            times.append(time.thread_time() - started)
    finally:
        sys.settrace(tracer)
    return min(times)


@pytest.mark.parametrize("letters", ["a", "etaoin", "猫犬", "!?"])
def test_a_word_of_100_000_letters_is_cheap(letters: str) -> None:
    assert seconds_to_encode((letters * 100_000)[:100_000]) < 0.02


def test_a_megabyte_of_short_words_is_cheap() -> None:
    text = " ".join(f"w{i}" for i in range(150_000))
    assert len(text) > 1_000_000
    assert seconds_to_encode(text) < 0.02


# What cleaning, splitting and merging find hardest: mended mojibake, composing marks, joined pictures.
HARD = [
    "Ã¢â‚¬â„¢",
    "Ã",
    "a\u0301\u0316",
    "\u1100\u1161\u11a8",
    "\ufdfa",
    "\U0001f468\u200d\U0001f469\u200d",
    "&amp;amp;",
    "İ",
]


@pytest.mark.parametrize("piece", HARD)
def test_a_megabyte_of_what_is_hard_to_clean_is_cheap(piece: str) -> None:
    assert seconds_to_encode(piece * (1_000_000 // len(piece))) < 0.02


def test_long_words_are_not_remembered() -> None:
    bpe._known_ids.cache_clear()
    for length in range(bpe.REMEMBERED + 1, 300):
        bpe.encode("x" * length, CONTEXT)
    assert bpe._known_ids.cache_info().currsize == 0
    bpe.encode("short words are", CONTEXT)
    assert bpe._known_ids.cache_info().currsize == 3

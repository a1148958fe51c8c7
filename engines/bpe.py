"""CLIP's byte-pair encoding: text to token ids. Knows the merges that open_clip bundles; knows no network.

The ids equal those of open_clip's SimpleTokenizer, whose tables, cleaning and word pattern are used here. That class
itself works through the whole text before it cuts, is quadratic in the length of a word and remembers every word for
ever; here both lengths are bounded by what the context can hold, and the words are merged by tokenizers' BPE, which is
O(n log n) and forgets. Words are split by Python's own tables of letters: those of tokenizers are of another Unicode.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer
from tokenizers.models import BPE

FULL_VOCABULARY = 49408
BYTE_TOKENS = 512  # the 256 bytes, each also in a form that ends a word
SPECIAL_TOKENS = 2  # start and end, the two highest ids
REMEMBERED = 64  # bytes of a word whose ids are kept: long ones are rare, and would fill the memory
LONGEST_TOKEN = 32  # bytes; in the bundled vocabulary that is a row of eight emoji


def encode(text: str, context_length: int, vocab_size: int = FULL_VOCABULARY) -> NDArray[np.int64]:
    """Return the token ids of `text`, shape (context_length,): start, tokens, end, zeros; cut with the end token last.

    A `vocab_size` below 49,408 keeps only the first `vocab_size - 514` of the bundled merges, in their order.
    Raises ValueError for a vocabulary or a context that cannot be.
    """
    if not BYTE_TOKENS + SPECIAL_TOKENS <= vocab_size <= FULL_VOCABULARY:
        raise ValueError(f"a vocabulary of {vocab_size}: take 514 (bytes alone) to {FULL_VOCABULARY}")
    if context_length < SPECIAL_TOKENS:
        raise ValueError(f"a context of {context_length}: take at least 2, for the start and the end token")
    tables = _tables()
    start, end = vocab_size - 2, vocab_size - 1
    room = context_length - SPECIAL_TOKENS
    # What fits the context is at most `held` bytes, plus a space between words. Cleaning costs microseconds per
    # character, so it too sees no more than twice that; only a text of which more than half is white space, HTML
    # entities and marks that compose would fit with characters from beyond it.
    held = LONGEST_TOKEN * context_length
    if len(text) > 2 * held:
        text = text.lstrip()[: 2 * held]
    ids = [start]
    for match in tables.pat.finditer(tables.clean_fn(text)):
        if len(ids) > room:
            break
        word = match.group()
        if word in SPECIAL_WORDS:
            ids.append(start if word == SPECIAL_WORDS[0] else end)
        else:
            # A longer word fills the context before it reaches its cut, so the merges at the cut are not seen.
            letters, merges = word.encode()[:held], vocab_size - BYTE_TOKENS - SPECIAL_TOKENS
            ids.extend(_known_ids(letters, merges) if len(letters) <= REMEMBERED else _word_ids(letters, merges))
    ids = [*ids[: room + 1], end]
    padded = np.zeros(context_length, np.int64)
    padded[: len(ids)] = ids
    return padded


SPECIAL_WORDS = ("<start_of_text>", "<end_of_text>")  # as text they stand for the tokens, as in open_clip


@lru_cache(maxsize=1)
def _tables() -> SimpleTokenizer:
    """Return open_clip's tokenizer, for its tables."""
    return SimpleTokenizer()


@lru_cache(maxsize=4)
def _merger(merges: int) -> BPE:
    """Return what merges words by the first `merges` of the bundled merges."""
    tables = _tables()
    vocabulary = {token: number for token, number in tables.encoder.items() if number < BYTE_TOKENS + merges}
    # Since Python 3.7 a dict keeps its order, here that of the ranks.
    return BPE(vocab=vocabulary, merges=list(tables.bpe_ranks)[:merges], end_of_word_suffix="</w>", cache_capacity=0)


@lru_cache(maxsize=8192)
def _known_ids(word: bytes, merges: int) -> tuple[int, ...]:
    """Return the ids of the bytes of one word, remembered."""
    return _word_ids(word, merges)


def _word_ids(word: bytes, merges: int) -> tuple[int, ...]:
    """Return the ids of the bytes of one word."""
    encoder = _tables().byte_encoder
    return tuple(token.id for token in _merger(merges).tokenize("".join(encoder[byte] for byte in word)))

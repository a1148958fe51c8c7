"""Text to token ids, for every kind of tokenizer in the catalogue.

Knows which tokenizer a model has, how long a text may be before it is cut, and the language prefix of NLLB.
Deliberately knows no network. Everything here is a pure function of its text: the tokenizers of transformers keep
padding, truncation and language as state that threads would overwrite for each other, so none of it is used.
"""

import csv
import logging
import zlib
from collections.abc import Callable
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from open_clip.tokenizer import get_clean_fn

from engines import bpe, own, weights
from engines.catalog import Clip
from engines.errors import WeightsBroken
from engines.model import Config
from engines.towers import architecture, text_config

log = logging.getLogger(__name__)

Ids = NDArray[np.int64]

# Letters per token that are kept before a text is tokenised: more than the longest tokens of the vocabularies have, so
# what is cut off would not have fitted the context either.
LONGEST_TOKEN = 32
LONGEST_LANGUAGE = 80  # letters
ENGLISH = "eng_Latn"
# Special tokens at the beginning of the vocabularies of transformers, which a stand-in leaves out.
_RESERVED = 1000


class Tokenizer(Protocol):
    """Token ids (L,) of a text; `language` is a code like "de" or "pt-BR", None where it is not told."""

    def __call__(self, text: str, language: str | None) -> Ids: ...


def load(entry: Clip, config: Config) -> tuple[Tokenizer, str]:
    """Return the tokenizer of `entry` and a sentence for the log, "" where there is nothing to say.

    Raises WeightsMissing, WeightsBroken for the models whose tokenizer is a download.
    """
    if entry.module:
        return own.module_of(entry).tokenize, ""
    if entry.tokenizer == "CLIP-BPE":
        vocab_size = architecture(entry)["text_cfg"].get("vocab_size", bpe.FULL_VOCABULARY)
        return lambda text, language: bpe.encode(text, entry.context_length, vocab_size), ""
    if config.untrained:
        return stand_in(entry), "the tokenizer is a stand-in that hashes words"
    return from_folder(entry, weights.tokenizer_folder(entry, config.cache_folder)), ""


def from_folder(entry: Clip, folder: Path) -> Tokenizer:
    """Return the tokenizer of `entry` from a folder of Hugging Face tokenizer files; raises WeightsBroken."""
    # Imported here: transformers takes seconds, and most models do without it.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # What its parsers raise on files that are missing, damaged or of another model.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        raise _broken(entry, folder, str(error)) from error
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise _broken(entry, folder, "it has no tokenizer.json, or none with a padding token")
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    prefix, suffix = _specials(backend)
    pad_id, pad_left = int(tokenizer.pad_token_id), tokenizer.padding_side == "left"
    clean, nllb = _clean(entry), _is_nllb(entry)
    if nllb and backend.token_to_id(ENGLISH) is None:
        raise _broken(entry, folder, f"it has no token {ENGLISH}")

    def encode(text: str, language: str | None) -> Ids:
        before = [_language_id(backend, flores(language))] if nllb else prefix
        words = backend.encode(clean(text), add_special_tokens=False).ids
        return _assemble(before, words, suffix, pad_id, entry.context_length, pad_left)

    return encode


def stand_in(entry: Clip) -> Tokenizer:
    """Return a tokenizer for networks without weights: words hashed into the vocabulary, framed and padded as usual."""
    clean, nllb = _clean(entry), _is_nllb(entry)
    vocab_size, start, end, pad_id = _vocabulary(entry)

    def hashed(word: str) -> int:
        return _RESERVED + zlib.crc32(word.encode("utf-8", "surrogatepass")) % (vocab_size - _RESERVED)

    def encode(text: str, language: str | None) -> Ids:
        before = [hashed(flores(language))] if nllb else start
        words = [hashed(word) for word in clean(text).split()]
        return _assemble(before, words, [end], pad_id, entry.context_length, pad_left=False)

    return encode


def flores(language: str | None) -> str:
    """Return the FLORES-200 code of a language like "de", "pt-BR" or "zh-Hant"; English for those without one.

    The codes are those of the NLLB vocabulary (NLLB Team, 2022, table 1).
    """
    # Cut before it is remembered: a language comes from strangers, and may be as long as a form.
    return ENGLISH if language is None else _flores(language[:LONGEST_LANGUAGE])


@lru_cache(maxsize=256)
def _flores(language: str) -> str:
    codes = _flores_codes()
    tags = language.replace("_", "-").lower().split("-")
    for kept in range(len(tags), 0, -1):
        code = codes.get("-".join(tags[:kept]))
        if code is not None:
            return code
    # Once per language, since the answer is remembered.
    log.warning("No language of NLLB is known for %r: texts in it are read as English", language)
    return ENGLISH


@cache
def _flores_codes() -> dict[str, str]:
    table = resources.files("engines").joinpath("data/text/flores-200.csv").read_text(encoding="utf-8")
    return {row["language"]: row["code"] for row in csv.DictReader(table.splitlines())}


def _clean(entry: Clip) -> Callable[[str], str]:
    kwargs = {} if entry.mclip_repo else architecture(entry)["text_cfg"].get("tokenizer_kwargs", {})
    clean: Callable[[str], str] = get_clean_fn(kwargs.get("clean", "whitespace"))
    held = LONGEST_TOKEN * entry.context_length

    def bounded(text: str) -> str:
        # Twice the bound before white space is collapsed: cleaning costs microseconds per letter.
        return clean(" ".join(text.lstrip()[: 2 * held].split())[:held])

    return bounded


def _is_nllb(entry: Clip) -> bool:
    return "nllb" in entry.tokenizer


def _language_id(backend: Any, code: str) -> int:
    token = backend.token_to_id(code)
    return int(backend.token_to_id(ENGLISH) if token is None else token)


def _specials(backend: Any) -> tuple[list[int], list[int]]:
    # What the tokenizer's own template puts around a text.
    bare, framed = (backend.encode("a", add_special_tokens=special).ids for special in (False, True))
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    return [], []


def _assemble(before: list[int], words: list[int], after: list[int], pad_id: int, length: int, pad_left: bool) -> Ids:
    kept = [*before, *words[: length - len(before) - len(after)], *after]
    ids = np.full(length, pad_id, np.int64)
    if pad_left:
        ids[length - len(kept) :] = kept
    else:
        ids[: len(kept)] = kept
    return ids


def _vocabulary(entry: Clip) -> tuple[int, list[int], int, int]:
    """Return the size of the vocabulary, the ids before a text, the one behind it, and the one of padding."""
    if entry.text_tower == "masked":
        config = text_config(entry)
        return config["vocab_size"], [config["bos_token_id"]], config["eos_token_id"], config["pad_token_id"]
    # SigLIP ends texts with 1; the first generation pads with it as well, the second (Gemma's vocabulary) with 0.
    return architecture(entry)["text_cfg"]["vocab_size"], [], 1, 0 if "SigLIP2" in entry.name else 1


def _broken(entry: Clip, folder: Path, reason: str) -> WeightsBroken:
    return WeightsBroken(
        f"The tokenizer of {entry.name} in {folder} cannot be read ({reason}): delete the folder, so that it is "
        f"fetched anew."
    )

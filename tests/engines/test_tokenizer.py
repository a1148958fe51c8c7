import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_clip.tokenizer import HFTokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from engines import bpe, catalog, tokenizer
from engines.catalog import Clip
from engines.errors import WeightsBroken
from engines.model import Config

UNTRAINED = Config(cache_folder=Path("no folder"), untrained=True)
XLM = catalog.clip("XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k")
SIGLIP = catalog.clip("ViT-B-16-SigLIP__webli")
NLLB = catalog.clip("nllb-clip-base-siglip__v1")
WORDS = ["<s>", "<pad>", "</s>", "<unk>", "eng_Latn", "deu_Latn", "a", "dog", "Dog", "on", "the", "beach", "!", "ein"]
TEXTS = [
    "a dog",
    "  a\tDog \n on   the beach! ",
    "",
    " ",
    "the the the " * 60,
    "unheard of &amp; odd",
    "ein dog_on a beach",
]


def folder(path: Path, template: str, padding_side: str = "right") -> Path:
    """Save a word-level tokenizer whose special tokens stand as `template` says."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))  # noqa: S106
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = [(word, WORDS.index(word)) for word in ("<s>", "</s>", "eng_Latn")]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    build: Any = PreTrainedTokenizerFast
    fast = build(
        tokenizer_object=backend,
        bos_token="<s>",  # noqa: S106 - not a password
        eos_token="</s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        padding_side=padding_side,
    )
    fast.save_pretrained(path)
    return path


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize(
    ("entry", "template", "clean"),
    [(XLM, "<s> $A </s>", "whitespace"), (SIGLIP, "$A </s>", "canonicalize"), (NLLB, "eng_Latn $A </s>", "whitespace")],
    ids=["xlm-roberta", "siglip", "nllb"],
)
def test_ids_equal_those_of_open_clip(
    entry: Clip, template: str, clean: str, padding_side: str, tmp_path: Path
) -> None:
    path = folder(tmp_path, template, padding_side)
    theirs = HFTokenizer(str(path), context_length=entry.context_length, clean=clean)
    ours = tokenizer.from_folder(entry, path)
    for text in TEXTS:
        ids = ours(text, None)
        assert ids.dtype == np.int64
        assert np.array_equal(ids, theirs(text)[0].numpy()), text


def test_the_language_of_nllb_travels_with_the_text(tmp_path: Path) -> None:
    encode = tokenizer.from_folder(NLLB, folder(tmp_path, "eng_Latn $A </s>"))
    german, english = WORDS.index("deu_Latn"), WORDS.index("eng_Latn")
    assert encode("ein dog", "de")[0] == german
    assert encode("ein dog", "de-AT")[0] == german
    assert encode("ein dog", None)[0] == english
    assert encode("ein dog", "fr")[0] == english  # French is known, but not to this vocabulary
    assert np.array_equal(encode("ein dog", "de")[1:], encode("ein dog", "en")[1:])


@pytest.mark.parametrize(
    ("language", "code"),
    [
        (None, "eng_Latn"),
        ("de", "deu_Latn"),
        ("pt-BR", "por_Latn"),
        ("pt_BR", "por_Latn"),
        ("zh", "zho_Hans"),
        ("zh-Hant", "zho_Hant"),
        ("zh-TW", "zho_Hant"),
        ("sr-Latn-RS", "srp_Cyrl"),
        ("NB", "nob_Latn"),
    ],
)
def test_languages_have_their_flores_codes(language: str | None, code: str, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer._flores.cache_clear()
    assert tokenizer.flores(language) == code
    assert caplog.records == []


def test_an_unknown_language_is_english_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer._flores.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [tokenizer.flores("tlh\n" + "x" * 500) for _ in range(3)] == ["eng_Latn"] * 3
    assert len(caplog.records) == 1
    assert "\n" not in caplog.text.strip()
    assert len(caplog.text) < 300


def test_of_a_long_language_no_more_is_remembered_than_its_beginning() -> None:
    tokenizer._flores.cache_clear()
    for end in range(50):
        assert tokenizer.flores("de" + " " * 100_000 + str(end)) == "eng_Latn"
    assert tokenizer._flores.cache_info().currsize == 1


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(WeightsBroken, match="delete the folder") as caught:
        tokenizer.from_folder(XLM, tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_an_nllb_tokenizer_without_english_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, "<s> $A </s>")
    (path / "tokenizer.json").write_text((path / "tokenizer.json").read_text().replace("eng_Latn", "xyz_Latn"))
    with pytest.raises(WeightsBroken, match="no token eng_Latn"):
        tokenizer.from_folder(NLLB, path)


def test_clip_models_have_clips_own_tokenizer_untrained_or_not() -> None:
    encode, remark = tokenizer.load(catalog.clip("ViT-B-32__openai"), UNTRAINED)
    assert remark == ""
    assert np.array_equal(encode("a dog", "de"), bpe.encode("a dog", 77))


def test_the_demo_has_its_own_vocabulary() -> None:
    size = catalog.demo_config()["text_cfg"]["vocab_size"]
    encode, _ = tokenizer.load(catalog.clip("demo"), Config(cache_folder=Path("no folder")))
    ids = encode("a dog on a beach", None)
    assert ids.max() == size - 1
    assert ids.shape == (catalog.clip("demo").context_length,)


@pytest.mark.parametrize(
    ("entry", "start", "end", "pad"),
    [
        (XLM, 0, 2, 1),
        (catalog.clip("LABSE-Vit-L-14"), 101, 102, 0),
        (SIGLIP, None, 1, 1),
        (catalog.clip("ViT-B-16-SigLIP2__webli"), None, 1, 0),
    ],
)
def test_a_stand_in_frames_and_pads_as_the_true_one(entry: Clip, start: int | None, end: int, pad: int) -> None:
    encode, remark = tokenizer.load(entry, UNTRAINED)
    assert "stand-in" in remark
    ids = encode("a dog on  a beach", None)
    length = 5 + (start is not None) + 1
    assert ids.shape == (entry.context_length,)
    assert start is None or ids[0] == start
    assert ids[length - 1] == end
    assert (ids[length:] == pad).all()
    assert np.array_equal(ids, encode("a dog on a beach", None))
    assert not np.array_equal(ids, encode("a cat on a beach", None))


def test_a_stand_in_stays_in_its_vocabulary_and_context() -> None:
    for entry in (XLM, SIGLIP, NLLB, replace(XLM, context_length=5)):
        encode, _ = tokenizer.load(entry, UNTRAINED)
        ids = encode(" ".join(f"word{i}" for i in range(1000)), "de")
        assert ids.shape == (entry.context_length,)
        assert ids.min() >= 0
        assert ids.max() < tokenizer._vocabulary(entry)[0]


def test_nllbs_stand_in_hears_the_language() -> None:
    encode, _ = tokenizer.load(NLLB, UNTRAINED)
    assert not np.array_equal(encode("ein Hund", "de"), encode("ein Hund", "fr"))


@pytest.mark.parametrize(
    "text",
    ["x" * 100_000, "word " * 200_000, " " * 1_000_000 + "x", "é&amp;" * 200_000],
    ids=["one word", "many words", "white space", "entities"],
)
def test_no_text_costs_more_than_20_ms(text: str, tmp_path: Path) -> None:
    encoders = [tokenizer.stand_in(SIGLIP), tokenizer.from_folder(XLM, folder(tmp_path, "<s> $A </s>"))]
    for encode in encoders:
        encode("warm", None)
        costs = []
        for _ in range(3):
            start = time.process_time()
            encode(text, None)
            costs.append(time.process_time() - start)
        assert min(costs) < 0.02


def pieces() -> list[str]:
    """Return a vocabulary of letters and words of them, as large as real ones are wide."""
    rng = np.random.default_rng(0)
    words = {"".join(rng.choice(list("abcdefgh"), rng.integers(2, 16))) for _ in range(20_000)}
    return [*"abcdefgh", *sorted(words), *("a" * length for length in range(2, 17))]


def unigram() -> Any:
    return models.Unigram([("<unk>", 0.0), *((piece, -1.0 - len(piece) / 10) for piece in pieces())], 0, False)


def wordpiece() -> Any:
    words = ["[UNK]", *pieces(), *(f"##{piece}" for piece in pieces())]
    return models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")  # noqa: S106 - not a password


def bpe_of_one_letter() -> Any:
    lengths = (1, 2, 4, 8)
    vocabulary = {"a" * length: i for i, length in enumerate((*lengths, 16))}
    return models.BPE(vocabulary, [("a" * length, "a" * length) for length in lengths])


@pytest.mark.parametrize("kind", [unigram, wordpiece, bpe_of_one_letter])
def test_a_word_of_100_000_letters_is_cheap_for_every_kind_of_tokenizer(
    kind: Callable[[], Any], tmp_path: Path
) -> None:
    build: Any = PreTrainedTokenizerFast
    build(tokenizer_object=Tokenizer(kind()), pad_token="a").save_pretrained(tmp_path)  # noqa: S106 - not a password
    encode = tokenizer.from_folder(SIGLIP, tmp_path)
    encode("warm", None)
    for text in ("a" * 100_000, "abcdefgh" * 12_500, "İ" * 100_000):
        times = []
        for _ in range(5):
            started = time.thread_time()
            ids = encode(text, None)
            times.append(time.thread_time() - started)
        assert min(times) < 0.02
        assert ids.shape == (SIGLIP.context_length,)

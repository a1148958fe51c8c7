"""The baseline's tokenizer is CLIP's own: equal ids for plain texts, at full length."""

from pathlib import Path

import pytest

from engines import catalog, tokenizer
from engines.model import Config
from scripts.bench.export import export, fast_tokenizer
from scripts.bench.sentences import searches
from scripts.bench.turns import Ended


def test_ids_are_those_of_ours(tmp_path: Path) -> None:
    entry = catalog.clip("ViT-B-32__openai")
    tokenize, _ = tokenizer.load(entry, Config(cache_folder=tmp_path, untrained=True))
    words = fast_tokenizer(entry)
    texts = [*searches(200), "it's 3 o'clock, isn't it?", "Überraschung im Café!", "", "word " * 100]
    for text in texts:
        assert words.encode(text).ids == tokenize(text, None).tolist(), text


def test_a_model_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Ended, match="measure a model with CLIP's own"):
        export("ViT-B-16-SigLIP__webli", tmp_path)
    assert not list(tmp_path.iterdir())

"""An entry that names a module is built by it, and by open_clip where it names none."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engines import catalog, clip, own, tokenizer
from engines.model import Config

ENTRY = catalog.own("small", "small_model", dim=3, image_size=8, context_length=4)
CPU = torch.device("cpu")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made: Any = ModuleType("small_model")
    made.__file__ = str(tmp_path / "small_model.py")
    (tmp_path / "small_model.py").write_text("# the model", encoding="utf-8")
    made.subject = lambda kind, entry, device: SimpleNamespace(kind=kind, model=entry.name, preparation="as it is")
    made.tokenize = lambda text, language: np.arange(4)
    monkeypatch.setitem(sys.modules, "small_model", made)
    module: ModuleType = made
    return module


def test_both_sides_and_the_tokenizer_come_from_the_module(module: ModuleType, tmp_path: Path) -> None:
    config = Config(tmp_path)
    tokenize, remark = tokenizer.load(ENTRY, config)
    assert (tokenize("a", None).tolist(), remark) == ([0, 1, 2, 3], "")
    sides = [clip.visual_subject(ENTRY, config, CPU), clip.textual_subject(ENTRY, config, CPU, tokenize)]
    assert [(side.kind, side.model) for side in sides] == [("visual", "small"), ("textual", "small")]


def test_an_engine_of_another_file_or_entry_is_another(module: ModuleType) -> None:
    before = own.subject_of("visual", ENTRY, CPU).preparation
    assert before == own.subject_of("visual", ENTRY, CPU).preparation
    assert before.endswith("; as it is")
    larger = catalog.own("small", "small_model", dim=3, image_size=16, context_length=4)
    assert own.subject_of("visual", larger, CPU).preparation != before
    Path(str(module.__file__)).write_text("# the model, changed", encoding="utf-8")
    assert own.subject_of("visual", ENTRY, CPU).preparation != before


def test_the_weights_of_such_a_model_are_its_own_affair() -> None:
    assert not ENTRY.tag
    assert all(not catalog.clip(name).module for name in catalog.names()["clip"] if catalog.clip(name).tag)

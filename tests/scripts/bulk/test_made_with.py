"""What an index is made with tells apart whatever cannot be compared, and nothing else."""

from pathlib import Path

import pytest

from engines.errors import UnknownModel
from scripts.bulk.made_with import MadeWith, made_with
from server.loading import engine_config
from server.settings import Settings
from tests.scripts.bulk.data import WITH, WITH_FACES


def of(tmp_path: Path, clip: str = "demo", face: str = "", min_score: float = 0.7, **changes: object) -> MadeWith:
    settings = Settings().model_copy(update={"cache_folder": tmp_path, "device": "cpu", **changes})
    return made_with(settings, engine_config(settings), clip, face, min_score)


def test_the_first_difference_is_told_in_words() -> None:
    assert WITH.difference(WITH) == ""
    assert WITH_FACES.difference(WITH) == "--face was 'demo' and is ''"
    assert WITH.difference(WITH.model_copy(update={"exif": True})) == "MACHINE_LEARNING_EXIF was False and is True"


def test_weights_are_told_apart_and_engines_are_not(tmp_path: Path) -> None:
    mine = of(tmp_path)
    assert mine == of(tmp_path, engine="eager", precision="float32")
    assert len(mine.clip_weights) == 64
    untrained = of(tmp_path, "ViT-B-32__openai", untrained=True)
    assert untrained.clip_weights.startswith("untrained")


def test_faces_are_part_of_it_only_where_they_are_looked_for(tmp_path: Path) -> None:
    assert of(tmp_path) == of(tmp_path, min_face=20)
    assert of(tmp_path, face="demo") != of(tmp_path, face="demo", min_face=20)
    assert of(tmp_path, face="demo", min_score=0.5).min_score == 0.5


def test_an_unknown_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="GET /models"):
        of(tmp_path, "no such model")

"""What an index was made with, and whether another run would make the same of the same photos.

Vectors of different models, or of one model with other weights, lie in different spaces: a file that held both would
answer nonsense. What computes a network does not count, since no engine is used that does not compute the same.
"""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from engines import catalog, models
from engines.model import Config
from server.settings import Settings
from server.wire import DEFAULT_MIN_SCORE


class MadeWith(BaseModel):
    """The models of an index and the settings that its rows depend on. Without faces `face` is "".

    `clip_weights` and `face_weights` are hashes, or words for random ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # What is told first where several things differ.
    WORDS: ClassVar[dict[str, str]] = {
        "clip": "--clip",
        "clip_weights": "the hash of the CLIP model's weights",
        "face": "--face",
        "face_weights": "the hash of the face model's weights",
        "resize": "MACHINE_LEARNING_CLIP_RESIZE",
        "exif": "MACHINE_LEARNING_EXIF",
        "min_face": "MACHINE_LEARNING_MIN_FACE",
        "min_score": "--min-score",
    }

    clip: str
    clip_weights: str
    resize: str
    exif: bool
    face: str = ""
    face_weights: str = ""
    min_face: int = 0
    min_score: float = 0.0

    def difference(self, other: "MadeWith") -> str:
        """Return in words the first thing in which `other` differs, "" if there is none."""
        mine, its = self.model_dump(), other.model_dump()
        told = (
            f"{words} was {mine[name]!r} and is {its[name]!r}"
            for name, words in self.WORDS.items()
            if mine[name] != its[name]
        )
        return next(told, "")


def made_with(
    settings: Settings, config: Config, clip: str, face: str = "", min_score: float = DEFAULT_MIN_SCORE
) -> MadeWith:
    """Return what an index with these models is made with; `face` may be "". Weights are fetched if they are not here.

    Raises UnknownModel, WeightsMissing, WeightsBroken, EngineMissing.
    """
    device = models.devices(config)[0]
    entry = catalog.clip(clip)
    mine = MadeWith(
        clip=entry.name,
        clip_weights=models.subject_of("visual", entry, config, device).weights,
        resize=settings.clip_resize,
        exif=settings.exif,
    )
    if not face:
        return mine
    recogniser = catalog.face(face, settings.face_alias)
    return mine.model_copy(
        update={
            "face": recogniser.name,
            "face_weights": models.subject_of("recognition", recogniser, config, device).weights,
            "min_face": settings.min_face,
            "min_score": min_score,
        }
    )

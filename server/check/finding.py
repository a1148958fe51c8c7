"""What the doctor finds: one thing looked at, how it is, and what to do about it. Knows nothing that can be found."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "to do"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing: its name, and how it is in one sentence.

    What may surprise is a "note", what keeps the server from its work is "to do"; both say in `advice`, a sentence,
    what to do. ValueError without it.
    """

    section: str
    name: str
    says: str
    level: Level = "ok"
    advice: str = ""

    def __post_init__(self) -> None:
        if self.level != "ok" and not self.advice:
            raise ValueError(f"{self.name} ({self.says}) does not tell what to do")

    @property
    def text(self) -> str:
        """How it is, and last what to do."""
        end = "" if self.says.endswith((".", "?", "!")) else "."
        return f"{self.says}{end} {self.advice}" if self.advice else self.says

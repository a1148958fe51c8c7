"""A Dockerfile as stages of instructions, to be held against the code. Knows its syntax as far as ours go.

No here-documents, no escapes other than the backslash at the end of a line, and ENV, LABEL, ARG with an equals sign.
"""

import json
import re
import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile: FROM, COPY, …, and all that follows it."""

    name: str
    value: str

    def words(self) -> list[str]:
        """Return its arguments without its options."""
        return [word for word in self._shell() if not word.startswith("--")]

    def option(self, name: str) -> str | None:
        found = [word.partition("=")[2] for word in self._shell() if word.startswith(f"--{name}=")]
        return found[0] if found else None

    def json(self) -> list[str]:
        """Return the command of ENTRYPOINT, CMD, HEALTHCHECK, which is written as JSON, so that no shell runs it."""
        command: list[str] = json.loads(self.value[self.value.index("[") :])
        return command

    def _shell(self) -> list[str]:
        return shlex.split(self.value)


class Dockerfile:
    """The stages of a Dockerfile, each with its instructions."""

    def __init__(self, text: str) -> None:
        lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        instructions = []
        for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
            name, _, value = line.partition(" ")
            instructions.append(Instruction(name, value.strip()))
        self.all = instructions
        starts = [i for i, one in enumerate(instructions) if one.name == "FROM"]
        self.head = instructions[: starts[0]]
        ends = [*starts[1:], len(instructions)]
        self.stages = [instructions[start:end] for start, end in zip(starts, ends, strict=True)]
        self.last = self.stages[-1]

    def stage(self, name: str) -> list[Instruction]:
        """Return the instructions of the stage `name` and of those that it is built upon."""
        (found,) = [stage for stage in self.stages if stage[0].value.endswith(f" AS {name}")]
        below = found[0].words()[0]
        return [*(self.stage(below) if below != "${BASE}" else []), *found]

    def values(self, name: str, where: list[Instruction] | None = None) -> list[str]:
        return [one.value for one in (self.all if where is None else where) if one.name == name]

    def assigned(self, name: str, where: list[Instruction]) -> dict[str, str]:
        """Return the variables of all ENV, LABEL or ARG instructions in `where`."""
        words = [word for one in where if one.name == name for word in shlex.split(one.value)]
        return dict(word.split("=", 1) for word in words)

    def installed(self) -> set[str]:
        """Return the Debian packages that the image ends up with, whatever its build arguments."""
        runs = [*self.values("RUN", self.stage("base")), *self.values("RUN", self.last)]
        calls = [re.split(r"&&|;", run) for run in runs]
        parts = [shlex.split(part) for call in calls for part in call if "apt-get install" in part]
        return {word for part in parts for word in part[2:] if not word.startswith("-")}

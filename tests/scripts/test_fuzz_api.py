"""The random requests: a round of them against a live server, and what they are made of."""

import io
import re

import pytest
from hypothesis import find
from PIL import Image

from scripts import fuzz_api
from scripts.fuzz_api import CONFIG, command

SECONDS = 25  # and a few in which the server starts
LEAST = 40  # answers of 200 by /predict: else what lies behind the form is not reached


def test_every_answer_of_a_live_server_is_as_its_description_says(capfd: pytest.CaptureFixture[str]) -> None:
    assert fuzz_api.main(["--seconds", str(SECONDS), "--seed", "1"]) == 0
    told = capfd.readouterr().out
    assert "Fuzzing" in told
    assert "failed" not in told
    line = re.search(r"^Answers of /predict by status: (.*)$", told, re.MULTILINE)
    assert line is not None
    answers = {status: int(count) for status, count in re.findall(r"(\d+): (\d+)", line[1])}
    assert answers["200"] >= LEAST
    assert answers["422"] > 0
    cases = re.search(r"(\d+) generated", told)
    assert cases is not None
    assert sum(answers.values()) > int(cases[1]) / 2


def test_the_command_takes_our_checks_and_the_options() -> None:
    line = command(3003, 60, seed=5, path="/predict")
    assert line[line.index("--config-file") + 1] == str(CONFIG)
    assert CONFIG.exists()
    assert line[line.index("--seed") + 1] == "5"
    assert line[line.index("--include-path") + 1] == "/predict"
    assert "--seed" not in command(3003, 60)


def test_pictures_are_whole_and_broken() -> None:
    from scripts.fuzz_values import pictures

    def opens(data: bytes) -> bool:
        try:
            Image.open(io.BytesIO(data)).load()
        except (OSError, SyntaxError, ValueError, EOFError):
            return False
        return True

    assert opens(find(pictures(), opens))
    assert not opens(find(pictures(), lambda data: not opens(data)))


def test_objects_of_a_form_go_as_json() -> None:
    from scripts.fuzz_values import in_one_field

    assert in_one_field({"entries": {"clip": {}}, "text": "x"}) == {"entries": '{"clip": {}}', "text": "x"}
    assert in_one_field("a=b") == "a=b"

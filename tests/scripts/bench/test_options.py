"""The command line says what is measured and how, and servers are told the same."""

from pathlib import Path

import pytest

from scripts.bench.options import BENCHES, MODEL, parse


def test_nothing_named_is_everything_by_default() -> None:
    names, save, options = parse([])
    assert names == list(BENCHES)
    assert not save
    assert options.model == MODEL
    assert options.cache.is_absolute()


def test_what_is_asked_for_reaches_engines_and_servers(tmp_path: Path) -> None:
    line = ["http", "text", "--save", "--precision", "int8", "--engine", "openvino", "--cache", str(tmp_path)]
    names, save, options = parse([*line, "--model", "RN50__openai", "ViT-L-14__openai", "--growth"])
    assert names == ["http", "text"]
    assert save
    assert options.growth
    assert options.model == "RN50__openai"
    config, variables = options.config(), options.environment()
    assert (config.precision, config.engine, config.cache_folder, config.untrained) == (
        "int8",
        "openvino",
        tmp_path,
        True,
    )
    assert variables["MACHINE_LEARNING_PRECISION"] == "int8"
    assert variables["MACHINE_LEARNING_ENGINE"] == "openvino"
    assert variables["MACHINE_LEARNING_CACHE_FOLDER"] == str(tmp_path)
    assert variables["MACHINE_LEARNING_UNTRAINED"] == "true"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["weather"], "cannot measure weather: there is decode"),
        (["--seconds", "0"], "--seconds must be more than 0"),
        (["--rounds", "0"], "--rounds at least 1"),
        (["--precision", "float8"], "invalid choice"),
    ],
)
def test_what_makes_no_sense_is_told(line: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(line)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err

"""The two ways a log looks, and what strangers cannot do to it."""

import io
import logging
from collections.abc import Iterator
from typing import TextIO

import orjson
import pytest

from server import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # so that those of pytest are not closed
    yield
    root.handlers = handlers
    root.setLevel(level)


def logged(form: logs.Format, stream: TextIO, *what: object, **extra: object) -> str:
    logs.set_up("info", form, stream)
    logging.getLogger("somewhere").info(*what, extra=extra or None)
    return stream.getvalue() if isinstance(stream, io.StringIO) else ""


@pytest.mark.parametrize(
    ("form", "stream", "is_json"),
    [
        ("auto", Terminal(), False),
        ("auto", io.StringIO(), True),
        ("human", io.StringIO(), False),
        ("json", Terminal(), True),
    ],
)
def test_a_terminal_gets_lines_for_people_and_everything_else_json(
    form: logs.Format, stream: io.StringIO, is_json: bool
) -> None:
    line = logged(form, stream, "loaded %s", "demo")
    assert line.count("\n") == 1
    assert line.startswith("{") == is_json
    assert "loaded demo" in line


def test_a_line_of_json_has_time_level_logger_message_and_fields() -> None:
    line = orjson.loads(logged("json", io.StringIO(), "hello", fields={"status": 200}))
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "info", "logger": "somewhere", "message": "hello", "status": 200}


def test_the_id_of_the_request_stands_in_its_lines() -> None:
    token = logs.REQUEST_ID.set("abc")
    try:
        assert orjson.loads(logged("json", io.StringIO(), "hello"))["request_id"] == "abc"
    finally:
        logs.REQUEST_ID.reset(token)
    assert "request_id" not in orjson.loads(logged("json", io.StringIO(), "hello"))


@pytest.mark.parametrize("form", ["human", "json"])
def test_nobody_begins_a_line_or_paints_on_the_terminal(form: logs.Format) -> None:
    line = logged(form, io.StringIO(), "unknown model %s", "x\n12:00:00 CRITICAL forged\x1b[31m\x9b31m\u2028y")
    assert line.count("\n") == 1
    assert len(line.splitlines()) == 1
    assert not {"\x1b", "\x9b"} & set(line)
    assert "forged" in line


@pytest.mark.parametrize("form", ["human", "json"])
def test_a_traceback_is_written_without_control_characters(form: logs.Format) -> None:
    stream = io.StringIO()
    logs.set_up("info", form, stream)
    try:
        raise ValueError("bad \x1b[31m")
    except ValueError:
        logging.getLogger("somewhere").exception("failed")
    text = stream.getvalue()
    assert "Traceback" in text
    assert "\x1b" not in text
    assert (text.count("\n") == 1) == (form == "json")


def test_an_error_of_many_lines_begins_none_of_its_own() -> None:
    stream = io.StringIO()
    logs.set_up("info", "human", stream)
    try:
        raise ValueError("x\n12:00:00 CRITICAL forged by a stranger\r12:00:00 CRITICAL twice")
    except ValueError:
        logging.getLogger("somewhere").exception("failed")
    first, *below = stream.getvalue().splitlines()
    assert first.endswith("failed")
    assert "12:00:00 CRITICAL forged by a stranger" in below[-1]
    assert all(line.startswith("    ") for line in below)


@pytest.mark.parametrize(
    ("message", "fields"),
    [("name \ud800 end", {"status": 422}), ("name", {"status": 422, "sizes": {"name \ud800 end": 1}})],
)
@pytest.mark.parametrize("form", ["human", "json"])
def test_a_name_that_no_utf_8_can_hold_costs_no_line(
    form: logs.Format, message: str, fields: dict[str, object]
) -> None:
    bytes_out = io.BytesIO()
    stream = io.TextIOWrapper(bytes_out, encoding="utf-8", errors="backslashreplace")  # as Python's standard error is
    logged(form, stream, "%s", message, fields=fields)
    stream.flush()
    text = bytes_out.getvalue().decode()
    assert text.count("\n") == 1
    if form == "json":
        line = orjson.loads(text)
        assert line["status"] == 422
        assert "name \\ud800 end" in (line["message"], *line.get("sizes", ()))


def test_what_cannot_be_written_as_json_is_written_as_text() -> None:
    line = orjson.loads(logged("json", io.StringIO(), "hello", fields={"thing": {1j}}))
    assert line["thing"] == "{1j}"


def test_levels_of_the_settings_are_those_of_the_log() -> None:
    stream = io.StringIO()
    logs.set_up("warn", "human", stream)
    logging.getLogger("somewhere").info("quiet")
    logging.getLogger("somewhere").warning("loud")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()

"""How the log looks: lines for people on a terminal, JSON lines with the request's id everywhere else.

Knows formats and the id of the request that is being answered. Does not know what is logged. What comes from strangers
(names of models, parts of their errors) may stand in a message, so control characters are written as escapes: nobody
can begin a line of the log or paint on a terminal.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson

Format = Literal["auto", "human", "json"]

LEVELS: Mapping[str, int] = {
    "verbose": logging.DEBUG,
    "debug": logging.DEBUG,
    "log": logging.INFO,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "critical": logging.CRITICAL,
}
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")  # of the request that this task answers
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class HumanFormatter(logging.Formatter):
    """Time, level, message; a traceback below, indented, so that no error begins a line of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is the library's
        """Return the line without its traceback, control characters escaped."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is the library's
        """Return the lines of a traceback, control characters within them escaped."""
        return "\n".join(f"    {escaped(line)}" for line in super().formatException(ei).split("\n"))


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, request_id and traceback where there is one.

    What a record carries as `extra={"fields": {...}}` is put beside these.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        try:
            text = orjson.dumps(line, default=str).decode()
        except TypeError:  # a lone surrogate, which a name or a path may have and UTF-8 cannot hold
            text = _SURROGATE.sub(
                lambda match: rf"\\u{ord(match[0]):x}", json.dumps(line, default=str, ensure_ascii=False)
            )
        return _CONTROL.sub(lambda match: rf"\u{ord(match[0]):04x}", text)


def escaped(text: str) -> str:
    """Return `text` with control characters as escapes."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def set_up(level: str, form: Format, stream: TextIO | None = None) -> None:
    """Log to `stream`, standard error if None, in the place of whatever was logged to before."""
    stream = stream or sys.stderr
    human = stream.isatty() if form == "auto" else form == "human"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(HumanFormatter() if human else JsonFormatter())
    logging.basicConfig(level=LEVELS[level], handlers=[handler], force=True)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line per request of a download is of no use

"""Settings that are lists: names, numbers, keys, routes, origins. In the environment they are separated by commas.

Knows what each may hold, and says so where it does not. Does not know what they are for.
"""

import re
from typing import Annotated, Any

from pydantic import PlainValidator, SecretStr
from pydantic_settings import NoDecode

SHORTEST_KEY = 16  # letters of an API key: shorter ones can be guessed
FREE_ROUTES = ("app", "docs", "metrics")


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, str):
        return tuple(value)
    return tuple(name.strip() for name in value.split(",") if name.strip())


def _ordinals(value: Any) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in _names(str(value) if isinstance(value, int) else value))
    except ValueError as error:
        raise ValueError("must be a comma list of GPU numbers, for example 0 or 0,1") from error
    if any(number < 0 for number in numbers):
        raise ValueError("must be a comma list of GPU numbers from 0 on, for example 0 or 0,1")
    return numbers


def _secrets(value: Any) -> tuple[SecretStr, ...]:
    secrets = value if isinstance(value, tuple) else _names(value)
    keys = tuple(key if isinstance(key, SecretStr) else SecretStr(key) for key in secrets)
    if any(len(key) < SHORTEST_KEY for key in keys):
        raise ValueError(f"each key must have {SHORTEST_KEY} letters or more: make one with `openssl rand -hex 32`")
    return keys


def _free(value: Any) -> tuple[str, ...]:
    names = _names(value)
    if not set(names) <= set(FREE_ROUTES):
        raise ValueError(f"must be a comma list of some of {', '.join(FREE_ROUTES)}, or empty")
    return names


def _origins(value: Any) -> tuple[str, ...]:
    origins = _names(value)
    if not all(re.fullmatch(r"\*|https?://[\w.:\[\]-]+", origin, re.ASCII) for origin in origins):
        raise ValueError("must be a comma list of origins without a path, for example https://photos.example.org")
    return origins


Names = Annotated[tuple[str, ...], NoDecode, PlainValidator(_names)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, PlainValidator(_secrets)]
FreeRoutes = Annotated[tuple[str, ...], NoDecode, PlainValidator(_free)]
Origins = Annotated[tuple[str, ...], NoDecode, PlainValidator(_origins)]
Ordinals = Annotated[tuple[int, ...], NoDecode, PlainValidator(_ordinals)]

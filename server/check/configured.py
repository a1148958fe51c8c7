"""What is set, and what the settings lead to outside of the models: the cache folder, its disk, the port.

Knows the settings by server/settings.py alone. Imports nothing heavy.
"""

import http.client
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from engines.errors import UnknownModel
from server import health, tracing
from server.__main__ import listen
from server.check.finding import Finding
from server.loading import preload_parts
from server.settings import Settings, advice, problems, variable

LITTLE_GB = 2.0  # the weights of a small model, and the engines that are built from them


def settings() -> tuple[Settings | None, list[Finding]]:
    """Return the settings, None if they are wrong, and what is to be said of them."""
    found = [_without_effect(sentence) for sentence in advice()]
    try:
        read = Settings()
    except ValidationError as error:
        wrong = (sentence.split(" is ", 1) for sentence in problems(error))
        return None, [_setting(name, says, "Correct it, or unset it.") for name, says in wrong] + found
    try:
        preload_parts(read)
    except UnknownModel as error:
        return None, [*found, _setting("MACHINE_LEARNING_PRELOAD__…", str(error), "Correct it, or unset it.")]
    return read, [*_changed(read), *_missing(read), *_untraceable(read), *found]


def _without_effect(sentence: str) -> Finding:
    name, _, says = sentence.partition(" ")
    if "not a setting" in says:
        return _setting(name, says, "Correct its name, or unset it.")
    return Finding("settings", name, says, "note", "Unset it.")


def _setting(name: str, says: str, what_to_do: str) -> Finding:
    return Finding("settings", name, says, "to do", what_to_do)


def _changed(read: Settings) -> Iterator[Finding]:
    default = Settings.model_construct(cache_folder=Settings.model_fields["cache_folder"].default.expanduser())
    fields = {field: getattr(read, field) for field in Settings.model_fields}
    changed = {field: value for field, value in fields.items() if value != getattr(default, field)}
    for field, value in changed.items():
        shown = ",".join(str(part) for part in value) if isinstance(value, tuple) else str(value)
        if field == "untrained" and value:
            says = "all models but demo get random weights, and their answers mean nothing"
            yield Finding("settings", variable(field), says, "note", "Unset it to serve photos.")
        else:
            yield Finding("settings", variable(field), shown)
    if not changed:
        yield Finding("settings", "all", "as they are by default")


def _missing(read: Settings) -> Iterator[Finding]:
    for field in ("calibration", "calibration_texts", "api_key_file"):
        path: Path | None = getattr(read, field)
        if path is not None and not path.exists():
            yield _setting(variable(field), f"there is no {path}", "Put it there, or unset this.")


def _untraceable(read: Settings) -> Iterator[Finding]:
    if read.tracing:
        try:
            tracing.check(read.tracing)
        except tracing.TracingMissing as error:
            yield _setting(variable("tracing"), str(error), "Until then the server does not start.")


def cache(folder: Path) -> Iterator[Finding]:
    """Look at the folder for weights and engines, and at the room on its disk."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        advice = f"Move that file away, or set {variable('cache_folder')} to a folder."
        yield Finding("cache", "folder", f"{folder}: {there} is a file, and no folder", "to do", advice)
    elif not os.access(there, os.W_OK | os.X_OK):
        advice = f"Make it writable for user {os.geteuid()}, or set {variable('cache_folder')} to another folder."
        kept = "nothing can be fetched or built" if folder.exists() else "it cannot be made"
        yield Finding("cache", "folder", f"{folder}: {there} cannot be written, so that {kept}", "to do", advice)
    else:
        yield Finding("cache", "folder", f"{folder}{'' if folder.exists() else ', which will be made when needed'}")
    free = shutil.disk_usage(there).free / 1e9
    if free < LITTLE_GB:
        advice = f"Make room, or set {variable('cache_folder')} to a folder on another disk."
        yield Finding("cache", "free disk", f"{free:.1f} GB, and a model takes up to 10", "to do", advice)
    else:
        yield Finding("cache", "free disk", f"{free:.0f} GB")


def port(read: Settings) -> Finding:
    """Look whether the server can listen, or whether one that is well does already."""
    where = f"{read.host} port {read.port}"
    try:
        listen(read.host, read.port).close()
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        return Finding("port", where, "free")
    try:
        status, said = health.ask(health.reachable(read.host), read.port)
    except (OSError, http.client.HTTPException):
        status, said = 0, ""
    if status == http.HTTPStatus.OK:
        return Finding("port", where, "a server listens there already, and is ready")
    if status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        advice = "Wait, or look into its log."
        return Finding("port", where, f"a server listens there already, and is not ready: {said}", "note", advice)
    advice = f"End what listens there, or set {variable('host')} or {variable('port')}."
    return Finding("port", where, f"it cannot be listened on: {reason}", "to do", advice)

"""The check of images: what it takes from their configuration, and what it refuses. Starting one needs root."""

import copy
import signal
from pathlib import Path
from typing import Any

import pytest

from scripts import check_image

CONFIG: dict[str, Any] = {
    "User": "1000:1001",
    "WorkingDir": "/opt/facet",
    "Env": ["HOME=/tmp", "PATH=/opt/venv/bin:/usr/bin"],
    "Entrypoint": ["tini", "--"],
    "Cmd": ["python", "-m", "server"],
    "Healthcheck": {"Test": ["CMD", "python", "-m", "server.health"]},
    "StopSignal": "SIGTERM",
}


def read(**changed: Any) -> check_image.Image:
    return check_image.read_config({"Docker": {"config": copy.deepcopy(CONFIG) | changed}}, Path("/root-of-image"))


def test_a_command_runs_inside_as_the_user_of_the_image_with_its_environment_and_no_capability() -> None:
    image = read()
    assert image.stop == signal.SIGTERM
    argv = image.argv(image.command, Path("/volume"), 4321)
    assert argv[0] == "unshare"
    assert argv[argv.index("sh") + 4 :][:3] == ["/root-of-image", "/volume", "noexec"]
    inside = argv[argv.index("setpriv") :]
    assert inside[1:5] == ["--reuid", "1000", "--regid", "1001"]
    assert "--bounding-set=-all" in inside
    environ = inside[inside.index("-i") + 1 :]
    assert environ[:3] == ["--chdir=/opt/facet", *CONFIG["Env"]]
    assert "IMMICH_PORT=4321" in environ
    assert environ[-5:] == ["tini", "--", "python", "-m", "server"]


def test_the_health_check_is_the_command_of_the_image() -> None:
    assert read().health == ("python", "-m", "server.health")


@pytest.mark.parametrize("user", ["", "0", "0:0", "root", "1000"])
def test_an_image_without_a_user_of_its_own_is_refused(user: str) -> None:
    with pytest.raises(ValueError, match="USER of numbers"):
        read(User=user)


def test_a_health_check_that_needs_a_shell_is_refused() -> None:
    with pytest.raises(ValueError, match="no shell"):
        read(Healthcheck={"Test": ["CMD-SHELL", "true"]})


def test_the_root_is_read_only_and_nothing_in_tmp_is_run() -> None:
    assert "remount,bind,ro" in check_image.ENTER
    assert read().tmp == "noexec"


def test_nobody_there_is_no_answer() -> None:
    assert check_image.ask(1, "GET", "/ping") == (0, b"")


def test_the_form_has_the_entries_and_the_picture() -> None:
    body = check_image.form('{"clip":{}}', b"picture")
    assert body.count(check_image.BOUNDARY.encode()) == 3
    assert b'name="entries"\r\n\r\n{"clip":{}}\r\n' in body
    assert b'filename="a.jpg"\r\n\r\npicture\r\n' in body

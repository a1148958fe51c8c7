"""python -m scripts.check_image IMAGE: start an image as a careful host would, ask it everything once, and stop it.

For an image in the storage of buildah, on Linux and as root; no Docker engine is needed. The root of the file system is
read-only and the command runs as the image's user without any capability, in name spaces of its own for mounts and
processes. The network is the host's. Ends with one line of JSON, or exit code 1 and the reason.
"""

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from engines import samples

BOUNDARY = "facet-check-image"
START_S = 120.0  # until /ping answers: the first start reads gigabytes of libraries from the disk
READY_S = 300.0
ANSWER_S = 300.0  # a model is loaded first, and engines are built beside it
STOP_S = 30.0
ASKED = {
    "clip": {"visual": {"modelName": "demo"}},
    "facial-recognition": {"detection": {"modelName": "demo"}, "recognition": {"modelName": "demo"}},
}
# Makes the container's file system under /mnt of a name space that ends with the command.
ENTER = """
set -e
root=$1 cache=$2 tmp=$3
shift 3
mount --bind "$root" /mnt
mount -o remount,bind,ro /mnt
mount -t tmpfs -o "$tmp,nosuid,nodev,mode=1777" tmpfs /mnt/tmp
mount --bind "$cache" /mnt/cache
mount --rbind /dev /mnt/dev
mount --rbind /sys /mnt/sys
mount -t proc proc /mnt/proc
exec chroot /mnt "$@"
"""


@dataclass(frozen=True, slots=True)
class Image:
    """What an image says of itself, and where its files are."""

    root: Path
    user: str
    folder: str
    environ: tuple[str, ...]
    command: tuple[str, ...]
    health: tuple[str, ...]
    stop: signal.Signals
    tmp: Literal["exec", "noexec"] = "noexec"

    def argv(self, command: Sequence[str], cache: Path, port: int) -> list[str]:
        """Return the command line that runs `command` inside, with `cache` as its /cache."""
        uid, _, gid = self.user.partition(":")
        drop = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        return [
            # The command becomes process 1, and with it ends all that it has started.
            *("unshare", "--mount", "--propagation", "private", "--pid", "--fork"),
            *("sh", "-c", ENTER, "sh", str(self.root), str(cache), self.tmp),
            *("setpriv", "--reuid", uid, "--regid", gid, *drop),
            *("env", "-i", f"--chdir={self.folder}", *self.environ, f"IMMICH_PORT={port}", "IMMICH_HOST=127.0.0.1"),
            *command,
        ]


def read_config(inspected: dict[str, Any], root: Path) -> Image:
    """Return the image that `buildah inspect` describes; ValueError where it has no user of its own or no health check.

    KeyError where an image was not made in Docker's format, which alone has a HEALTHCHECK.
    """
    config = inspected["Docker"]["config"]
    if config["User"].split(":")[0] in ("", "0", "root") or ":" not in config["User"]:
        raise ValueError(f"the image runs as {config['User'] or 'root'}: give it a USER of numbers, 1000:1000")
    kind, *health = config["Healthcheck"]["Test"]
    if kind != "CMD":
        raise ValueError(f"the HEALTHCHECK is of the kind {kind}: write it as JSON, so that no shell runs it")
    return Image(
        root=root,
        user=config["User"],
        folder=config["WorkingDir"],
        environ=tuple(config["Env"]),
        command=(*config["Entrypoint"], *config["Cmd"]),
        health=tuple(health),
        stop=signal.Signals[config["StopSignal"]],
    )


@contextmanager
def mounted(name: str) -> Iterator[Image]:
    """Make a container of an image and mount its files, for the time of the block."""
    container = _buildah("from", "--pull=never", name)
    try:
        inspected = json.loads(_buildah("inspect", "--type", "container", container))
        yield read_config(inspected, Path(_buildah("mount", container)))
    finally:
        _buildah("rm", container)


def _buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603, S607 - what the PATH calls buildah
    return done.stdout.strip()


@contextmanager
def started(image: Image, cache: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the image's command; kill it at the end of the block if it still runs."""
    process = subprocess.Popen(image.argv(image.command, cache, port))  # noqa: S603 - the image's own command
    try:
        yield process
    finally:
        # Not unshare alone: its --kill-child does not outlive the change of user in there.
        for pid in _children(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def check(image: Image, cache: Path, port: int) -> dict[str, Any]:
    """Start, ask, stop; return what was seen. Raises RuntimeError with the reason at the first thing that is wrong."""
    seen: dict[str, Any] = {}
    begun = time.monotonic()
    with started(image, cache, port) as process:
        _until(START_S, process, lambda: ask(port, "GET", "/ping") == (200, b"pong"), "/ping")
        seen["ping_s"] = round(time.monotonic() - begun, 1)
        inside = image.argv(image.health, cache, port)
        _until(READY_S, process, lambda: _succeeds(inside), "the HEALTHCHECK")
        seen["healthy_s"] = round(time.monotonic() - begun, 1)
        status, body = ask(port, "POST", "/predict", form(json.dumps(ASKED), _photo()))
        if status != 200:
            raise RuntimeError(f"/predict answered {status}: {body.decode(errors='replace')}")
        answer = json.loads(body)
        seen["dimension"] = len(json.loads(answer["clip"]))
        seen["faces"] = len(answer["facial-recognition"])
        if not seen["dimension"] or not seen["faces"]:
            raise RuntimeError(f"/predict found no embedding or no face: {seen}")
        for pid in _children(process.pid):
            os.kill(pid, image.stop)
        seen["exit"] = process.wait(STOP_S)
    if seen["exit"] != 0:
        raise RuntimeError(f"after {image.stop.name} it ended with {seen['exit']}, not 0")
    if _succeeds(inside):
        raise RuntimeError("the HEALTHCHECK calls a server that is gone healthy")
    return seen


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command).returncode == 0  # noqa: S603 - the image's own command


def _children(pid: int) -> list[int]:
    """Return the process that unshare has forked, which is number 1 in there; none once it has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _until(limit: float, process: "subprocess.Popen[bytes]", good: Any, what: str) -> None:
    """Wait until `good()`; RuntimeError after `limit` seconds or once the process has ended."""
    end = time.monotonic() + limit
    while not good():
        if process.poll() is not None:
            raise RuntimeError(f"it ended with {process.returncode} before {what} was good")
        if time.monotonic() > end:
            raise RuntimeError(f"{what} was not good within {limit:.0f} s")
        time.sleep(0.5)


def ask(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Return status and body of one request, 0 and nothing while nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request(method, path, body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
        response = connection.getresponse()
        return response.status, response.read()
    except ConnectionError:
        return 0, b""
    finally:
        connection.close()


def form(entries: str, picture: bytes) -> bytes:
    """Return the body of a request to /predict."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="entries"\r\n\r\n{entries}\r\n'
    file = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    return f"{head}{file}".encode() + picture + f"\r\n--{BOUNDARY}--\r\n".encode()


def _photo() -> bytes:
    return (Path(samples.__file__).parent / "data" / "gate" / "astronaut.jpg").read_bytes()


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one image; return 0 if all was well."""
    parser = argparse.ArgumentParser(description="Start an image of buildah's, ask it everything once, stop it.")
    parser.add_argument("image", help="for example facet:cpu")
    parser.add_argument("--exec", action="store_true", help="let code in /tmp run, as the image for NVIDIA GPUs needs")
    options = parser.parse_args(arguments)
    name = options.image
    missing = [tool for tool in ("buildah", "unshare") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        sys.stderr.write(f"This needs root on Linux, and {' and '.join(missing) or 'nothing else'}.\n")
        return 1
    with mounted(name) as image, tempfile.TemporaryDirectory() as cache, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        uid, gid = (int(number) for number in image.user.split(":"))
        os.chown(cache, uid, gid)
        try:
            seen = check(replace(image, tmp="exec" if options.exec else "noexec"), Path(cache), port)
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            sys.stderr.write(f"{name}: {error!r}\n")
            return 1
    print(json.dumps({"image": name, **seen}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

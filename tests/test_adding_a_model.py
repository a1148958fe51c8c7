"""docs/adding-a-model.md does what it says: its code makes a model, its commands build, test and serve it.

All of it happens in a copy of the project. Nothing but the page, the catalogue's line and a photo goes in.
"""

import asyncio
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
import pytest
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/adding-a-model.md").read_text(encoding="utf-8")
FILE, TEST = "engines/palette.py", "tests/engines/test_palette.py"
COPIED = ("docs", "engines", "server", "scripts", "README.md", "pyproject.toml", "setup.cfg")

# The way of the server, in a process of its own: 64 requests at once. Prints the sizes of the batches they rode in.
TOGETHER = """
import asyncio, io
from PIL import Image
from engines import catalog
from scripts.bulk.inside import inside
from server.settings import Settings
from server.shelf import Part
from server.wire import Ask

def photo(shade):
    file = io.BytesIO()
    Image.new("RGB", (80, 60), (220, 30, shade)).save(file, "PNG")
    return file.getvalue()

async def main():
    async with inside(Settings(), [Part("visual", catalog.clip("palette"))]) as ready:
        model, sizes = ready.loaded[0].model, []
        run = model.run
        model.run = lambda batch: (sizes.append(batch.rows), run(batch))[1]
        asks = [Ask(visual="palette", image=photo(shade)) for shade in range(64)]
        await asyncio.gather(*(ready.predictor.answer(ask, flow=None) for ask in asks))
        print(*sizes)

asyncio.run(main())
"""


@dataclass(frozen=True)
class Block:
    """A block of the page, and what stands before it since the block above."""

    language: str
    code: str
    before: str


def blocks() -> Iterator[Block]:
    end = 0
    for match in re.finditer(r"```(\w+)\n(.*?)```\n", PAGE, re.DOTALL):
        yield Block(match[1], match[2], PAGE[end : match.start()])
        end = match.end()


def code() -> dict[str, str]:
    """Return what the page puts into each file, the line of the catalogue under its own name."""
    parts: dict[str, list[str]] = {"catalogue": [], FILE: [], TEST: []}
    for block in blocks():
        if block.language == "text":
            parts["catalogue"].append(block.code)
        elif block.language == "python":
            parts[TEST if f"**{TEST}**:" in block.before else FILE].append(block.code)
    return {name: "\n\n".join(code).rstrip() + "\n" for name, code in parts.items()}


def commands() -> list[str]:
    return [line for block in blocks() if block.language == "sh" for line in block.code.splitlines()]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with the model in it."""
    folder = tmp_path_factory.mktemp("project")
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    for name, text in code().items():
        if name != "catalogue":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    catalogue = folder / "engines/catalog.py"
    text, found = re.subn(
        r"(?m)^(_OWN: .*\(\n(?:    #.*\n)*)", lambda match: match[1] + code()["catalogue"], catalogue.read_text("utf-8")
    )
    assert found == 1, "the catalogue has no place for the line"
    assert code()["catalogue"].count("\n") == 1, "more than one line"
    catalogue.write_text(text, encoding="utf-8")
    return folder


def environment(project: Path) -> dict[str, str]:
    return {
        **os.environ,
        "IMMICH_HOST": "127.0.0.1",
        "IMMICH_PORT": "0",
        "MACHINE_LEARNING_CACHE_FOLDER": str(project / "cache"),
        "MACHINE_LEARNING_DEVICE": "cpu",
    }


def run(project: Path, line: str) -> str:
    """Run a command of the page in the copy; return what it printed."""
    words = shlex.split(line)
    assert words[0] == ".venv/bin/python"
    command = [sys.executable, *words[1:]]
    done = subprocess.run(  # noqa: S603 - our own interpreter
        command, cwd=project, env=environment(project), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@asynccontextmanager
async def served(project: Path) -> AsyncIterator[str]:
    """Start the server of the copy, as `make serve` does, and yield its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server"), cwd=project, env=environment(project), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            while (found := re.search(rb"http://127.0.0.1:\d+", line := await process.stderr.readline())) is None:
                assert line, "the server ended"
        reading = asyncio.create_task(process.stderr.read())
        yield found[0].decode()
        process.terminate()
        await reading
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def curl(session: aiohttp.ClientSession, address: str, line: str, photo: bytes) -> Any:
    """Do what a line with curl says, with `photo` for its picture."""
    words = shlex.split(line)
    data = aiohttp.FormData()
    for field in (words[i + 1] for i, word in enumerate(words) if word == "-F"):
        name, _, value = field.partition("=")
        if value.startswith("@"):
            data.add_field(name, photo, filename=value[1:])
        else:
            data.add_field(name, value)
    url = f"{address}/{words[-1].partition('/')[2]}"
    async with session.post(url, data=data) if "-F" in words else session.get(url) as response:
        body = await response.json()
        assert response.status == 200, body
        return body


def photo(*colour: int) -> bytes:
    """Return a photo of one colour with a grey edge."""
    picture = Image.new("RGB", (200, 160), (128, 128, 128))
    picture.paste(colour, (20, 10, 180, 150))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def vector(body: Any) -> NDArray[np.float32]:
    return np.array(orjson.loads(body["clip"]), np.float32)


async def test_what_the_page_says_makes_a_model_that_is_served_batched_and_gated(project: Path) -> None:
    lines = commands()
    pytest_line, build_line, docs_line, serve_line, image_line, text_line, models_line = lines
    assert "1 passed" in run(project, pytest_line)
    verdicts = orjson.loads(run(project, build_line).splitlines()[-1])
    assert [(one["kind"], one["backend"], one["passed"]) for one in verdicts] == [
        ("visual", "torchscript", True),
        ("textual", "torchscript", True),
    ]
    assert all(one["lowest_cosine"] >= 0.9999 for one in verdicts)
    run(project, docs_line)
    assert "`palette`" in (project / "README.md").read_text(encoding="utf-8")
    assert serve_line == "make serve"
    async with served(project) as address, aiohttp.ClientSession() as session:
        red = vector(await curl(session, address, image_line, photo(225, 25, 20)))
        word = vector(await curl(session, address, text_line, b""))
        other = vector(await curl(session, address, text_line.replace("something red", "something blue"), b""))
        assert red.shape == (11,)
        assert red @ word > 0.9 > 0.3 > red @ other
        many = [photo(225, 25, shade) for shade in range(20, 84)]
        together = await asyncio.gather(*(curl(session, address, image_line, one) for one in many))
        alone = [await curl(session, address, image_line, one) for one in many[::16]]
        np.testing.assert_allclose([vector(one) for one in together[::16]], [vector(one) for one in alone], atol=1e-5)
        loaded = (await curl(session, address, models_line, b""))["loaded"]
    found = {one["kind"]: one for one in loaded}
    assert set(found) == {"visual", "textual"}
    assert all(one["name"] == "palette" and one["bytes"] > 0 and not one["untrained"] for one in loaded)
    # So small a network may be as fast either way.
    told = ("x eager float32 here", "faster here than the best that passed, torchscript float32")
    assert any(words in found["visual"]["reason"] for words in told)


def test_requests_that_come_together_ride_in_few_batches(project: Path) -> None:
    sizes = [int(size) for size in run(project, shlex.join([".venv/bin/python", "-c", TOGETHER])).split()]
    assert sum(sizes) == 64
    assert len(sizes) <= 32


def test_the_code_of_the_page_is_in_good_order(project: Path) -> None:
    for command in (["check"], ["format", "--check"]):
        run(project, shlex.join([".venv/bin/python", "-m", "ruff", *command, FILE, TEST]))

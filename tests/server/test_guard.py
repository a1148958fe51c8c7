"""A guarded command ends with whoever started it, and takes all that it started with it."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
# A command that starts another, as a compiler is started, and tells both numbers.
FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(120)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n" + FAMILY.replace(
    "time.sleep(120)\n", "\nwhile True: time.sleep(1)\n"
)


def guarded(code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-m", "server.guard", sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def family(guard: "subprocess.Popen[str]") -> list[psutil.Process]:
    assert guard.stdout is not None
    return [psutil.Process(int(number)) for number in guard.stdout.readline().split()]


@pytest.mark.parametrize("code", [FAMILY, STUBBORN], ids=["willing", "stubborn"])
def test_when_the_input_ends_the_command_ends_and_all_that_it_started(code: str) -> None:
    with guarded(code) as guard:
        members = family(guard)
        assert all(member.is_running() for member in members)
        assert guard.stdin is not None
        guard.stdin.close()
        assert guard.wait(30) in (128 + 15, 128 + 9)
        _, alive = psutil.wait_procs(members, timeout=10)
    assert [member for member in alive if member.status() != psutil.STATUS_ZOMBIE] == []


def test_who_is_killed_takes_the_command_along() -> None:
    code = f"""
import subprocess, sys, time
guard = subprocess.Popen([sys.executable, "-m", "server.guard", sys.executable, "-c", {FAMILY!r}],
                         stdin=subprocess.PIPE, start_new_session=True)
time.sleep(120)
"""
    with subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as starter:
        members = family(starter)
        starter.kill()
        _, alive = psutil.wait_procs(members, timeout=20)
    assert [member for member in alive if member.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize(("code", "expected"), [("print('made')", 0), ("raise SystemExit(3)", 3)])
def test_the_exit_code_is_that_of_the_command(code: str, expected: int) -> None:
    with guarded(code) as guard:
        assert guard.wait(30) == expected


def test_what_a_command_leaves_behind_does_not_outlive_it() -> None:
    leaving = FAMILY.rsplit("time.sleep", 1)[0]
    with guarded(leaving) as guard:
        command, left = family(guard)
        assert guard.wait(30) == 0
        _, alive = psutil.wait_procs([command, left], timeout=10)
    assert [member for member in alive if member.status() != psutil.STATUS_ZOMBIE] == []


def test_it_starts_without_what_the_server_needs() -> None:
    code = "import sys, server.guard; print(sorted({'aiohttp', 'pydantic', 'asyncio'} & set(sys.modules)))"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603 - our own interpreter
    assert done.stdout.strip() == "[]"
    assert time.monotonic() - started < 20

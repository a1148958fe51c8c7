import hashlib
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from engines import download, manifest
from engines.download import HubFile, UrlFile
from tests.engines.weights_server import COMMIT, Server, hub, point_at, serving

CONTENT = bytes(range(256)) * 64
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = HubFile("timm/some.model", "open_clip_model.safetensors")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with hub(monkeypatch) as running:
        yield running


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_hub_file_is_fetched_at_a_commit_and_held_against_its_sha256(server: Server, tmp_path: Path) -> None:
    server.publish(FILE.repo, FILE.name, CONTENT)
    path = download.fetch(FILE, tmp_path)
    assert path.read_bytes() == CONTENT
    assert entries(tmp_path) == {FILE.name, manifest.FILE}
    record = manifest.read(tmp_path)[FILE.name]
    assert (record.revision, record.sha256, record.verified) == (COMMIT, SHA256, "sha256")
    assert record.source == "the Hugging Face repository timm/some.model"
    assert [asked.path for asked in server.asked if asked.method == "GET"] == [
        f"/timm/some.model/resolve/{COMMIT}/open_clip_model.safetensors"
    ]


def test_a_small_hub_file_is_held_against_gits_id(server: Server, tmp_path: Path) -> None:
    server.publish("xlm-roberta-base", "tokenizer.json", b"{}", large=False)
    download.fetch(HubFile("xlm-roberta-base", "tokenizer.json"), tmp_path)
    assert manifest.read(tmp_path)["tokenizer.json"].verified == "git-sha1"


def test_a_tag_that_is_no_checksum_leaves_the_size(server: Server, tmp_path: Path) -> None:
    path = server.publish(FILE.repo, FILE.name, CONTENT)
    for headers in server.headers.values():
        headers["ETag"] = headers["X-Linked-ETag"] = '"mirror-1"'
    server.faults[path.replace("main", COMMIT)] = ["cut"]
    download.fetch(FILE, tmp_path)
    assert manifest.read(tmp_path)[FILE.name].verified == "size"
    assert (tmp_path / FILE.name).read_bytes() == CONTENT


def test_what_was_cut_off_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    path = server.publish(FILE.repo, FILE.name, CONTENT)
    server.faults[path.replace("main", COMMIT)] = ["cut", "cut"]
    assert download.fetch(FILE, tmp_path).read_bytes() == CONTENT
    half, quarters = len(CONTENT) // 2, len(CONTENT) * 3 // 4
    assert server.spans(FILE.name) == ["", f"bytes={half}-", f"bytes={quarters}-"]


def test_what_another_process_began_is_gone_on_with(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = server.publish(FILE.repo, FILE.name, CONTENT)
    server.faults[path.replace("main", COMMIT)] = ["cut"]
    server.faults[path] = []
    with monkeypatch.context() as patched:
        patched.setattr(download, "RETRIES", -1)
        with pytest.raises(download.FetchFailed, match="connection broke"):
            download.fetch(FILE, tmp_path)
    assert entries(tmp_path) == {f"{FILE.name}.{SHA256[:12]}.incomplete"}
    download.fetch(FILE, tmp_path)
    assert server.spans(FILE.name)[-1] == f"bytes={len(CONTENT) // 2}-"
    assert entries(tmp_path) == {FILE.name, manifest.FILE}


def test_a_whole_file_without_its_name_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    server.publish(FILE.repo, FILE.name, CONTENT)
    (tmp_path / f"{FILE.name}.{SHA256[:12]}.incomplete").write_bytes(CONTENT)
    assert download.fetch(FILE, tmp_path).read_bytes() == CONTENT
    assert server.spans(FILE.name) == []


def test_the_beginning_of_another_revision_is_thrown_away(server: Server, tmp_path: Path) -> None:
    server.publish(FILE.repo, FILE.name, CONTENT)
    (tmp_path / f"{FILE.name}.ffffffffffff.incomplete").write_bytes(b"old")
    assert download.fetch(FILE, tmp_path).read_bytes() == CONTENT
    assert entries(tmp_path) == {FILE.name, manifest.FILE}


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    path = server.publish(FILE.repo, FILE.name, CONTENT)
    server.faults[path.replace("main", COMMIT)] = ["cut", "no range"]
    assert download.fetch(FILE, tmp_path).read_bytes() == CONTENT


def test_more_than_was_announced_is_refused(server: Server, tmp_path: Path) -> None:
    server.publish(FILE.repo, FILE.name, CONTENT)
    for headers in server.headers.values():
        headers["X-Linked-Size"] = "100"
    with pytest.raises(download.FetchFailed, match="16,384 bytes came, 100 were announced"):
        download.fetch(FILE, tmp_path)
    assert entries(tmp_path) == set()


def test_a_corrupted_file_is_refused(server: Server, tmp_path: Path) -> None:
    path = server.publish(FILE.repo, FILE.name, CONTENT)
    server.faults[path.replace("main", COMMIT)] = ["corrupt"]
    with pytest.raises(download.FetchFailed, match=f"{SHA256} is published: it was altered on the way"):
        download.fetch(FILE, tmp_path)
    assert entries(tmp_path) == set()
    assert len(server.spans(FILE.name)) == 1


def test_a_wrong_beginning_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.publish(FILE.repo, FILE.name, CONTENT)
    (tmp_path / f"{FILE.name}.{SHA256[:12]}.incomplete").write_bytes(b"wrong")
    assert download.fetch(FILE, tmp_path).read_bytes() == CONTENT
    assert server.spans(FILE.name) == ["bytes=5-", ""]


def test_a_server_in_trouble_is_asked_again(server: Server, tmp_path: Path) -> None:
    path = server.publish(FILE.repo, FILE.name, CONTENT)
    server.faults[path] = [500, 503]
    server.faults[path.replace("main", COMMIT)] = [429]
    assert download.fetch(FILE, tmp_path).read_bytes() == CONTENT


def test_a_server_that_stays_in_trouble_is_given_up(server: Server, tmp_path: Path) -> None:
    path = server.publish(FILE.repo, FILE.name, CONTENT)
    server.faults[path] = [500] * 20
    with pytest.raises(download.FetchFailed, match=r"127.0.0.1 answers 500: try again later"):
        download.fetch(FILE, tmp_path)
    assert len(server.asked) == download.RETRIES + 1


@pytest.mark.parametrize(("status", "sentence"), [(401, "set HF_TOKEN"), (403, "set HF_TOKEN"), (418, "HF_ENDPOINT")])
def test_a_refusal_is_final(server: Server, tmp_path: Path, status: int, sentence: str) -> None:
    path = server.publish(FILE.repo, FILE.name, CONTENT)
    server.faults[path] = [status]
    with pytest.raises(download.FetchFailed, match=sentence):
        download.fetch(FILE, tmp_path)
    assert len(server.asked) == 1


def test_a_file_that_is_not_there_is_not_published(server: Server, tmp_path: Path) -> None:
    with pytest.raises(download.NotPublished, match="404"):
        download.fetch(FILE, tmp_path)


def test_the_token_goes_to_the_hub_alone(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.publish(FILE.repo, FILE.name, CONTENT)
    download.fetch(FILE, tmp_path)
    download.fetch(UrlFile(server.release("faces.pt", CONTENT)), tmp_path)
    for asked in server.asked:
        assert asked.token == ("Bearer hf_secret" if "/resolve/" in asked.path else "")


def test_a_refused_connection_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(monkeypatch) as server:
        gone = server.endpoint
    point_at(gone, monkeypatch)
    with pytest.raises(download.FetchFailed, match=r"127.0.0.1 cannot be reached .*check the network"):
        download.fetch(FILE, tmp_path)
    huggingface_hub.close_session()


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://127.0.0.1"])
def test_an_endpoint_that_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    point_at(endpoint, monkeypatch)
    with pytest.raises(download.FetchFailed, match=r"cannot be followed .*check HF_ENDPOINT"):
        download.fetch(FILE, tmp_path)
    huggingface_hub.close_session()


def test_offline_nothing_is_asked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    url = server.release("faces.pt", CONTENT)
    for source in (FILE, UrlFile(url)):
        with pytest.raises(download.FetchFailed, match="HF_HUB_OFFLINE is set"):
            download.fetch(source, tmp_path)
    assert server.asked == []


def test_a_proxy_is_asked_instead(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.publish(FILE.repo, FILE.name, CONTENT)
    proxy = server.endpoint
    point_at("http://hub.invalid", monkeypatch)
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    assert download.fetch(FILE, tmp_path).read_bytes() == CONTENT


def test_a_release_is_followed_resumed_and_verified(server: Server, tmp_path: Path) -> None:
    url = server.release("faces.pt", CONTENT)
    server.faults["/assets/faces.pt"] = ["cut"]
    download.fetch(UrlFile(url, SHA256), tmp_path)
    assert server.spans("faces.pt") == ["", f"bytes={len(CONTENT) // 2}-"]
    record = manifest.read(tmp_path)["faces.pt"]
    assert (record.source, record.verified) == (url, "sha256")


def test_the_first_digits_of_a_checksum_are_enough_to_refuse(server: Server, tmp_path: Path) -> None:
    url = server.release("faces.pt", CONTENT)
    with pytest.raises(download.FetchFailed, match="altered on the way"):
        download.fetch(UrlFile(url, "00000000"), tmp_path)
    assert entries(tmp_path) == set()


def test_without_a_checksum_the_length_counts_and_the_log_tells_the_sum(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.release("faces.pt", CONTENT)
    with caplog.at_level(logging.INFO):
        download.fetch(UrlFile(url), tmp_path)
    assert manifest.read(tmp_path)["faces.pt"].verified == "size"
    assert f"only its length was verified. Its sha256 is {SHA256}" in caplog.text


def test_a_whole_release_without_its_name_is_kept(server: Server, tmp_path: Path) -> None:
    url = server.release("faces.pt", CONTENT)
    (tmp_path / "faces.pt.part.incomplete").write_bytes(CONTENT)
    assert download.fetch(UrlFile(url), tmp_path).read_bytes() == CONTENT
    (tmp_path / "faces.pt.part.incomplete").write_bytes(CONTENT + b"too much")
    assert download.fetch(UrlFile(url), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar_on_a_terminal_alone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    server.publish(FILE.repo, FILE.name, CONTENT)
    download.fetch(FILE, tmp_path)
    assert (f"{FILE.name}: 100%" in screen.getvalue()) == terminal


def test_a_full_disk_is_seen_before_it_is_full(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.publish(FILE.repo, FILE.name, CONTENT)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(download.FetchFailed, match=r"the disk is full .*0.0 MB are free.*make room"):
        download.fetch(FILE, tmp_path)
    assert (tmp_path / FILE.name).exists() is False


@pytest.mark.parametrize(("offline", "printed"), [("0", "sha256"), ("1", "HF_HUB_OFFLINE is set")])
def test_the_environment_is_honoured(tmp_path: Path, offline: str, printed: str) -> None:
    program = f"""
import sys, pathlib
from engines import download, manifest
folder = pathlib.Path(sys.argv[1])
try:
    download.fetch(download.HubFile("{FILE.repo}", "{FILE.name}"), folder)
    print(manifest.read(folder)["{FILE.name}"].verified)
except download.FetchFailed as error:
    print(error)
"""
    with serving() as server:
        server.publish(FILE.repo, FILE.name, CONTENT)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "HF_ENDPOINT": server.endpoint,
            "HF_HUB_OFFLINE": offline,
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        done = subprocess.run(  # noqa: S603 - the program is the one above
            [sys.executable, "-c", program, tmp_path],
            env=environment,
            cwd=Path(download.__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stdout.startswith(printed), done.stderr
    assert (tmp_path / FILE.name).exists() == (offline == "0")


# Where the process is killed: the name that is looked up there, and how.
STAGES = {
    "before a byte has come": "download._check_space = die",
    "in the middle": "progress.received = die",
    "before the last byte is on the disk": "os.fsync = die",
    "before it is verified": "manifest.sha256 = die",
    "before it has its name": "pathlib.Path.replace = die",
    "before it is recorded": "manifest.write = die",
}
KILLED = """
import os, pathlib, signal, sys
from engines import download, manifest, progress
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
{stage}
download.fetch(download.UrlFile(sys.argv[1], sys.argv[2]), pathlib.Path(sys.argv[3]))
"""


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_process_that_is_killed_leaves_what_the_next_one_completes(
    server: Server, tmp_path: Path, stage: str
) -> None:
    url = server.release("weights.pt", CONTENT)
    done = subprocess.run(  # noqa: S603 - the program is the one above
        [sys.executable, "-c", KILLED.format(stage=stage), url, SHA256, tmp_path],
        cwd=Path(download.__file__).parents[1],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    unverified = tmp_path / "weights.pt"
    assert not unverified.exists() or unverified.read_bytes() == CONTENT, "nothing has its name before it is whole"
    path = download.fetch(UrlFile(url, SHA256), tmp_path)
    assert path.read_bytes() == CONTENT
    assert manifest.read(tmp_path)["weights.pt"].sha256 == SHA256
    assert entries(tmp_path) == {"weights.pt", manifest.FILE}

"""The images: both Dockerfiles, compose.yaml and .dockerignore are held against the code, the pins and each other."""

import configparser
import importlib.util
import re
import sys
from fnmatch import fnmatchcase
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML ships no types
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from server import health
from server.settings import PREFIX, Settings, advice, variable
from tests.dockerfile import Dockerfile, Instruction
from tests.server.test_floors import imports

ROOT = Path(__file__).parents[1]
NAMES = ["Dockerfile.cpu", "Dockerfile.cuda"]


def dockerfile(name: str) -> Dockerfile:
    return Dockerfile((ROOT / name).read_text(encoding="utf-8"))


def pins(name: str = "constraints.txt") -> dict[str, str]:
    """Return the versions in a constraints file by the plain names of the packages."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {plain(package): version for package, version in pairs}


def plain(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def setup() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg", encoding="utf-8")
    return parsed


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def hidden(path: str) -> bool:
    """Return whether .dockerignore keeps a path at the top of the repository out of the build."""
    out = False
    for pattern in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if pattern and not pattern.startswith("#") and fnmatchcase(path, pattern.lstrip("!")):
            out = not pattern.startswith("!")
    return out


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([sm])", text).groups()  # type: ignore[union-attr]  # anything else fails here
    return float(number) * {"s": 1, "m": 60}[unit]


def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return parsed


SERVICES = compose()["services"]


def test_a_dockerfile_is_split_into_stages_and_instructions() -> None:
    split = Dockerfile(
        'ARG BASE=x:1\n# no\nFROM ${BASE} AS one\nRUN a \\\n    # no\n    && b\nFROM one\nCMD ["c", "d"]\n'
    )
    assert split.head == [Instruction("ARG", "BASE=x:1")]
    assert [[one.name for one in stage] for stage in split.stages] == [["FROM", "RUN"], ["FROM", "CMD"]]
    assert split.values("RUN", split.stage("one")) == ["a      && b"]
    assert split.last[1].json() == ["c", "d"]


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_stands_on_one_pinned_base(name: str) -> None:
    file = dockerfile(name)
    names = {"${BASE}"}
    for stage in file.stages:
        below, *alias = re.split(r"\s+AS\s+", stage[0].value)
        assert below in names
        names.update(alias)
    assert re.fullmatch(r"docker\.io/[a-z/]+:\d+\.\d+-slim", file.assigned("ARG", file.head)["BASE"])


def test_both_images_stand_on_the_same_base() -> None:
    assert len({dockerfile(name).assigned("ARG", dockerfile(name).head)["BASE"] for name in NAMES}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_path_that_is_copied_exists_and_reaches_the_build(name: str) -> None:
    file = dockerfile(name)
    copies = [one for one in file.all if one.name == "COPY"]
    assert len(copies) >= 5
    for copy in copies:
        *sources, _ = copy.words()
        stage = copy.option("from")
        for source in sources:
            if stage is None:
                assert (ROOT / source).exists(), source
                assert not hidden(source), source
            else:
                assert any(source in run for run in file.values("RUN", file.stage(stage)))


def test_nothing_else_reaches_the_build() -> None:
    copied = {source for name in NAMES for one in dockerfile(name).all if one.name == "COPY" for source in one.words()}
    there = {path.name for path in ROOT.iterdir() if not hidden(path.name)}
    assert there <= copied
    assert hidden(".git")
    assert hidden("engine.py")
    assert not hidden("engines")


@pytest.mark.parametrize("name", NAMES)
def test_dependencies_come_before_the_project_and_from_the_constraints(name: str) -> None:
    file = dockerfile(name)
    first = next(i for i, one in enumerate(file.all) if one.name == "COPY" and one.words()[0] == "engines")
    installs = [i for i, one in enumerate(file.all) if one.name == "RUN" and "pip install" in one.value]
    assert installs
    assert max(installs) < first
    assert first > file.all.index(file.last[0])
    folder = file.values("WORKDIR", file.stage("dependencies"))[0]
    environ = file.assigned("ENV", file.stage("dependencies"))
    assert environ["PIP_CONSTRAINT"] == f"{folder}/constraints.txt"


@pytest.mark.parametrize("name", NAMES)
def test_every_module_that_is_run_is_there(name: str) -> None:
    file = dockerfile(name)
    commands = [one.json() for one in file.last if one.name in {"CMD", "HEALTHCHECK"}]
    assert [command[:2] for command in commands] == [["python", "-m"]] * 2
    assert {command[2] for command in commands} == {"server", "server.health"}
    for module in (command[2] for command in commands):
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        path = Path(spec.origin)
        program = path.with_name("__main__.py") if spec.submodule_search_locations else path
        assert '__name__ == "__main__"' in program.read_text(encoding="utf-8")
    (entry,) = [one.json() for one in file.last if one.name == "ENTRYPOINT"]
    assert entry == ["tini", "--"]
    assert "tini" in file.installed()


@pytest.mark.parametrize("name", NAMES)
def test_no_engine_is_baked_in_and_the_server_builds_them(name: str) -> None:
    file = dockerfile(name)
    assert not any("scripts" in run or "-m server" in run for run in file.values("RUN"))
    assert file.assigned("ENV", file.last)[f"{PREFIX}BUILD"] == "background"


@pytest.mark.parametrize("name", NAMES)
def test_the_check_waits_longer_than_the_server_may_take(name: str) -> None:
    (check,) = [one for one in dockerfile(name).last if one.name == "HEALTHCHECK"]
    timeout, interval = check.option("timeout"), check.option("interval")
    assert timeout is not None
    assert interval is not None
    assert health.TIMEOUT_S < seconds(timeout) < seconds(interval)


@pytest.mark.parametrize("name", NAMES)
def test_its_settings_are_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = dockerfile(name)
    environ = {key: value for key, value in file.assigned("ENV", file.last).items() if key.startswith(PREFIX)}
    assert advice(environ) == []
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    settings = Settings()
    assert file.values("VOLUME") == [str(settings.cache_folder)]
    assert file.values("EXPOSE") == [str(settings.port)]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_as_nobody_special_and_ends_on_the_signal_that_the_server_knows(name: str) -> None:
    file = dockerfile(name)
    (user,) = file.values("USER")
    uid, _ = user.split(":")
    assert int(uid) > 0
    runs = " ".join(file.values("RUN", file.last))
    assert f"useradd --uid {uid} " in runs
    assert f"--owner=facet --group=facet {file.values('VOLUME')[0]}" in runs
    assert file.values("STOPSIGNAL") == ["SIGTERM"]


@pytest.mark.parametrize("name", NAMES)
def test_the_python_is_one_that_the_project_supports(name: str) -> None:
    file = dockerfile(name)
    (python,) = {package for package in file.installed() if re.fullmatch(r"python3\.\d+", package)}
    assert python.removeprefix("python") in SpecifierSet(setup()["options"]["python_requires"])
    assert f"{python} -m venv" in " ".join(file.values("RUN"))
    versions = set(re.findall(r"python3\.\d+", " ".join(one.value for one in file.all)))
    assert versions == {python}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_installed_is_pinned_within_the_ranges(name: str) -> None:
    file = dockerfile(name)
    runs = " ".join(file.values("RUN"))
    extras = setup()["options.extras_require"]
    wanted = requirements(setup()["options"]["install_requires"]) + requirements(extras["tracing"])
    assert re.search(r"extras=openvino,tracing |\.\[tracing\]", runs)
    if "extras=openvino" in runs:
        wanted += requirements(extras["openvino"])
    for requirement in wanted:
        assert pins()[plain(requirement.name)] in requirement.specifier, requirement
    assert all(word in extras for words in re.findall(r"extras=([\w,]+)", runs) for word in words.split(","))
    assert pins()["setuptools"] in SpecifierSet(">=77"), "pyproject.toml builds with it"


def test_the_image_for_ipex_has_the_torch_that_it_needs() -> None:
    runs = " ".join(dockerfile("Dockerfile.cpu").values("RUN"))
    assert "extras=openvino,tracing,ipex; mv constraints-ipex.txt constraints.txt" in runs
    extras = setup()["options.extras_require"]
    base = requirements(setup()["options"]["install_requires"])
    named = (requirement for extra in ("openvino", "tracing", "ipex") for requirement in requirements(extras[extra]))
    for requirement in [*base, *named]:
        assert pins("constraints-ipex.txt")[plain(requirement.name)] in requirement.specifier, requirement


def test_tensorrt_goes_with_the_torch_and_the_cuda_of_the_constraints() -> None:
    file = dockerfile("Dockerfile.cuda")
    arguments = file.assigned("ARG", file.stage("dependencies"))
    (requirement,) = requirements(setup()["options.extras_require"]["cuda"])
    assert str(requirement.specifier) == f"=={arguments['TORCH_TENSORRT']}"
    minor = arguments["TORCH_TENSORRT"].rsplit(".", 1)[0]
    assert pins()["torch"].startswith(f"{minor}."), "torch-tensorrt goes with one minor of torch"
    runs = " ".join(file.values("RUN", file.stage("dependencies")))
    (cuda,) = set(re.findall(r"tensorrt-cu(\d+)", runs))
    assert pins()["nvidia-cuda-runtime"].startswith(f"{cuda}.")
    assert f"/nvidia/cu{cuda}" in file.assigned("ENV", file.last)["CUDA_HOME"]
    assert "psutil" in pins()


def test_what_the_images_run_needs_only_what_they_install() -> None:
    extras = setup()["options.extras_require"]
    texts = [
        setup()["options"]["install_requires"],
        *(extras[extra] for extra in ("cuda", "openvino", "ipex", "tracing")),
    ]
    installed = {plain(requirement.name) for text in texts for requirement in requirements(text)}
    ours = {"engines", "scripts", "server"}
    distributions = packages_distributions()
    programs = [ROOT / "scripts" / f"{script}.py" for script in ("build_engines", "fetch_weights")]
    paths = [*programs, *(ROOT / "engines").rglob("*.py"), *(ROOT / "server").rglob("*.py")]
    for path in paths:
        for package in imports(path) - set(sys.stdlib_module_names) - ours:
            # An extra that is not installed here goes by the name of its package.
            found = {plain(name) for name in distributions.get(package, [package])}
            assert found & installed, f"{path} imports {package}, which the images do not have"


@pytest.mark.parametrize("name", NAMES)
def test_its_label_says_the_version(name: str) -> None:
    labels = dockerfile(name).assigned("LABEL", dockerfile(name).last)
    assert labels["org.opencontainers.image.version"] == setup()["metadata"]["version"]
    assert labels["org.opencontainers.image.licenses"] == setup()["metadata"]["license"]


def test_compose_has_a_profile_for_each_image() -> None:
    assert {service["build"]["dockerfile"]: service["profiles"] for service in SERVICES.values()} == {
        f"Dockerfile.{hardware}": [hardware] for hardware in ("cpu", "cuda")
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_agrees_with_its_image(name: str) -> None:
    service = SERVICES[name]
    file = dockerfile(service["build"]["dockerfile"])
    known = {key for one in file.all if one.name == "ARG" for key in file.assigned("ARG", [one])}
    assert set(service["build"].get("args", {})) <= known
    port = "${" + variable("port") + ":-" + file.values("EXPOSE")[0] + "}"
    assert service["ports"] == [f"{port}:{port}"]
    (volume,) = [volume.split(":") for volume in service["volumes"]]
    assert volume[0] in compose()["volumes"]
    assert volume[1:] == file.values("VOLUME")
    (temporary,) = service["tmpfs"]
    assert temporary.partition(":")[0] == file.assigned("ENV", file.last)["HOME"]
    assert advice(service.get("environment", {})) == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_the_name_that_immich_looks_for(name: str) -> None:
    aliases = SERVICES[name].get("networks", {}).get("default", {}).get("aliases", [])
    assert "immich-machine-learning" in [name, *aliases]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_may_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    (user,) = dockerfile(service["build"]["dockerfile"]).values("USER")
    assert service["user"] == user == "1000:1000"
    assert not service.get("privileges")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_gets_the_time_that_the_server_takes_to_end(name: str) -> None:
    assert seconds(SERVICES[name]["stop_grace_period"]) > Settings().shutdown_grace_s + 5


def test_the_image_for_gpus_gets_them_and_may_run_what_it_compiles() -> None:
    service = SERVICES["immich-machine-learning-cuda"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert service["tmpfs"] == ["/tmp:exec"]  # noqa: S108 - a path in the container
    assert {"g++", "libpython3.11-dev"} <= dockerfile("Dockerfile.cuda").installed()


def test_a_container_started_by_hand_may_do_no_more_than_one_of_compose() -> None:
    text = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
    hardened = re.findall(
        r"--user (\S+) --read-only --tmpfs (/tmp\S*) --cap-drop (\S+) --security-opt (\S+) (\S+)", text
    )
    assert {image: options for *options, image in hardened} == {
        service["image"]: [service["user"], *service["tmpfs"], *service["cap_drop"], "no-new-privileges"]
        for service in SERVICES.values()
    }


def test_what_the_document_on_images_names_exists() -> None:
    text = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
    arguments = {key for name in NAMES for one in dockerfile(name).all for key in _argument(one)}
    assert set(re.findall(r"--build-arg (\w+)=", text)) <= arguments
    assert set(re.findall(r"-f (Dockerfile\.\w+)", text)) == set(NAMES)
    profiles = {profile for service in SERVICES.values() for profile in service["profiles"]}
    assert set(re.findall(r"--profile (\w+)", text)) == profiles
    assert set(re.findall(r"immich-machine-learning[\w-]*", text)) <= set(SERVICES)


def _argument(instruction: Instruction) -> list[str]:
    return [instruction.value.partition("=")[0]] if instruction.name == "ARG" else []

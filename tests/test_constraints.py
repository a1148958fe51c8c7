"""The environment of torch 2.8 differs from the main one in torch and its companions alone, so both test one thing."""

import configparser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OF_TORCH = {"torch", "torchvision", "triton"}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {package.lower().replace("_", "-"): version for package, version in pairs}


def test_what_both_environments_have_has_the_same_version() -> None:
    main, ipex = pins("constraints.txt"), pins("constraints-ipex.txt")
    shared = set(main) & set(ipex)
    assert len(shared) > 90
    assert {name: ipex[name] for name in shared - OF_TORCH} == {name: main[name] for name in shared - OF_TORCH}
    assert all(main[name] != ipex[name] for name in OF_TORCH)


def test_every_package_of_the_main_environment_is_pinned_for_the_other_one_too() -> None:
    missing = set(pins("constraints.txt")) - set(pins("constraints-ipex.txt"))
    assert all(name.startswith(("nvidia-", "cuda-")) for name in missing), missing


def test_the_pins_of_the_extra_are_those_of_the_environment() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    wanted = [line.partition("==") for line in config["options.extras_require"]["ipex"].split("\n") if "==" in line]
    assert len(wanted) == 3
    ipex = pins("constraints-ipex.txt")
    assert {name.strip(): version.strip() for name, _, version in wanted} == {
        name.strip(): ipex[name.strip()] for name, _, _ in wanted
    }

"""Our engines against OpenVINO's own tool: what it prints is understood, and the same model runs in both."""

from pathlib import Path

import orjson
import pytest

from scripts import bench_openvino, build_engines

PRINTED = """
[Step 11/11] Dumping statistics report
[ INFO ] Execution Devices:['CPU']
[ INFO ] Count:            120 iterations
[ INFO ] Duration:         3000.50 ms
[ INFO ] Throughput:   39.99 FPS
"""


def test_items_per_second_count_whole_batches() -> None:
    assert bench_openvino.items_per_second(PRINTED, 8) == pytest.approx(120 * 8 / 3.0005)
    with pytest.raises(ValueError, match="neither count nor duration"):
        bench_openvino.items_per_second("[ ERROR ] no such file", 8)


def test_without_an_engine_it_says_how_to_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MACHINE_LEARNING_CACHE_FOLDER", str(tmp_path))
    assert bench_openvino.main(["demo"]) == 1
    assert "python -m scripts.build_engines demo --backend openvino" in capsys.readouterr().err


def test_both_run_the_saved_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MACHINE_LEARNING_CACHE_FOLDER", str(tmp_path))
    monkeypatch.setattr(bench_openvino, "ROUNDS", 1)
    wanted = ["demo", "--kind", "visual"]
    built = build_engines.main([*wanted, "--backend", "openvino", "--precision", "float32", "--batch", "1,2"])
    assert built == 0
    assert bench_openvino.main([*wanted, "--seconds", "0.2"]) == 0
    (record,) = orjson.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["precision"] == "float32"
    assert record["ours"] > 0
    assert record["benchmark_app"] > 0
    assert record["share"] == pytest.approx(record["ours"] / record["benchmark_app"])

import subprocess
import sys

LEAN = """
import sys
from engines import lean
lean.import_open_clip()
assert "transformers" not in sys.modules
import torch
assert ("triton" in sys.modules) <= (torch.cuda.is_available() or torch.xpu.is_available())
from engines import catalog, towers
with torch.device("meta"):
    # One text side is open_clip's own, the other from transformers.
    for name in ("ViT-B-32__openai", "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k"):
        print(type(towers.textual(catalog.clip(name)).tower).__name__)
assert "transformers" in sys.modules
lean.import_open_clip()
assert sys.modules["transformers"].__name__ == "transformers"
"""


def test_open_clip_is_imported_without_transformers_and_triton_and_every_text_side_is_built_all_the_same() -> None:
    run = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True, check=False)  # noqa: S603 - our own text
    assert run.stdout.split() == ["TextTransformer", "MaskedText"], run.stderr

"""The networks of the baseline server as ONNX files, with the same untrained weights as ours, and its tokenizer.

Knows how a tower is exported, and CLIP's tokenizer in the terms of the tokenizers library. Deliberately does not know
how the baseline server runs them (baseline.py).
"""

import json
import shutil
import warnings
from pathlib import Path

import onnx
import torch
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from engines import bpe, catalog, clip, tokenizer, towers
from engines.catalog import Clip
from engines.model import Config
from engines.towers import Tower
from scripts.bench.sentences import searches
from scripts.bench.show import tell
from scripts.bench.turns import Ended

OPSET = 17
COMPARED = 200  # texts that the tokenizer is held against ours with


class FromPixels(nn.Module):
    """A picture tower from normalised pixels (B, 3, S, S) float32 on, which is where files for ONNX Runtime begin."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower.tower
        self.centre = tower.centre

    def forward(self, pixels: Tensor) -> Tensor:
        vectors: Tensor = self.tower(pixels)
        return nn.functional.normalize(vectors if self.centre is None else vectors - self.centre, dim=-1)


def export(name: str, cache: Path) -> Path:
    """Return the folder with visual.onnx, textual.onnx, tokenizer.json and model.json of `name`, made if need be.

    Raises UnknownModel, and Ended for a model whose tokenizer is not CLIP's.
    """
    entry = catalog.clip(name)
    if entry.tokenizer != "CLIP-BPE":
        raise Ended(f"the baseline has no tokenizer for {name}: measure a model with CLIP's own")
    # By version: another torch may draw other untrained weights.
    folder = cache / "baseline" / f"{entry.name}-torch{torch.__version__}"
    if folder.exists():
        return folder
    tell(f"exports {entry.name} for the baseline")
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    config = Config(cache_folder=cache, untrained=True)
    (visual,) = clip.visual_subject(entry, config, torch.device("cpu")).networks
    assert isinstance(visual.module, Tower)  # noqa: S101 - the pictures' side of CLIP is one
    pixels = torch.rand(2, 3, entry.image_size, entry.image_size)
    _write(FromPixels(visual.module), pixels, draft / "visual.onnx")
    tokenize, _ = tokenizer.load(entry, config)
    (textual,) = clip.textual_subject(entry, config, torch.device("cpu"), tokenize).networks
    _write(textual.module, textual.example, draft / "textual.onnx")
    words = fast_tokenizer(entry)
    for text in searches(COMPARED):
        if words.encode(text).ids != tokenize(text, None).tolist():
            raise Ended(f"the baseline's tokenizer has other ids than ours for {text!r}: it is not the same model")
    words.save(str(draft / "tokenizer.json"))
    mean, std = towers.mean_and_std(entry)
    about = {"size": entry.image_size, "mean": mean, "std": std, "squash": entry.resize == "squash"}
    (draft / "model.json").write_text(json.dumps(about))
    draft.rename(folder)
    return folder


def _write(module: nn.Module, example: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        # The exporter that needs no further package is the older one, which says so, and that it traces.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (example,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["vectors"],
            dynamic_axes={"input": {0: "rows"}, "vectors": {0: "rows"}},
        )
    onnx.checker.check_model(str(path))


def fast_tokenizer(entry: Clip) -> Tokenizer:
    """Return CLIP's tokenizer as the tokenizer.json of such models describes it, from the table that open_clip ships.

    Ids are those of engines.bpe for texts that need no cleaning.
    """
    table = SimpleTokenizer()
    start, end = bpe.SPECIAL_WORDS
    words = Tokenizer(
        models.BPE(vocab=table.encoder, merges=list(table.bpe_ranks), end_of_word_suffix="</w>", unk_token=end)
    )
    words.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    words.decoder = decoders.ByteLevel()
    words.post_processor = processors.RobertaProcessing(
        (end, table.encoder[end]), (start, table.encoder[start]), trim_offsets=False, add_prefix_space=False
    )
    words.enable_truncation(entry.context_length)
    words.enable_padding(pad_id=0, length=entry.context_length)
    return words

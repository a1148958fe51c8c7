"""Which files a model needs, where each is published, and where it lies in the cache folder.

Knows open_clip's table of checkpoints, the naming on the Hugging Face hub and the layout of the cache folder:
clip/<model>/, faces/<model>/, tokenizers/<repository>/. Deliberately knows neither the network nor whether a file is
there.
"""

from dataclasses import dataclass
from pathlib import Path

import open_clip
from open_clip.pretrained import get_pretrained_cfg

from engines.catalog import Clip, Face
from engines.download import HubFile, Source, UrlFile

# open_clip's own names for the checkpoint in a repository (open_clip.constants), the safer format first.
_OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_MCLIP_FILES = ("model.safetensors", "pytorch_model.bin")
# M-CLIP's text sides are these transformers, fine-tuned, with their tokenizers unchanged.
_MCLIP_TOKENIZERS = {
    "M-CLIP xlm-roberta-large": "xlm-roberta-large",
    "M-CLIP bert (LaBSE)": "sentence-transformers/LaBSE",
}
# A repository has some of these beside tokenizer.json; config.json tells the kind of tokenizer where nothing else does.
_TOKENIZER_EXTRAS = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "vocab.txt",
)
_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Need:
    """One file that `model` needs in `folder`: any one of `sources`, the first that is published.

    An extra of another file (`extra_of` is that one's name) comes before it, and only where a source has it.
    """

    model: str
    folder: Path
    sources: tuple[Source, ...]
    extra_of: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The file names under which it may lie in the folder, the preferred one first."""
        return tuple(source.name for source in self.sources)


def visual(entry: Clip, cache_folder: Path) -> Need:
    """Return the open_clip checkpoint, which holds both towers, except for M-CLIP, where it is the visual one alone.

    M-CLIP models lie upon checkpoints of other entries: they share the folder, so that it is fetched once.
    """
    folder = f"{entry.arch}__{entry.tag}" if entry.mclip_repo else entry.name
    return Need(entry.name, cache_folder / "clip" / folder, _open_clip_sources(entry.arch, entry.tag))


def textual(entry: Clip, cache_folder: Path) -> Need:
    """Return the checkpoint with the text tower: the same as the visual one, except for M-CLIP."""
    if not entry.mclip_repo:
        return visual(entry, cache_folder)
    files = tuple(HubFile(entry.mclip_repo, name) for name in _MCLIP_FILES)
    return Need(entry.name, cache_folder / "clip" / entry.name, files)


def tokenizer(entry: Clip, cache_folder: Path) -> tuple[Need, ...]:
    """Return the tokenizer files, tokenizer.json last, so that its presence says that all were asked for.

    Empty for models with CLIP's own tokenizer, which comes with open_clip.
    """
    repo = _tokenizer_repo(entry)
    if not repo:
        return ()
    folder = cache_folder / "tokenizers" / repo.replace("/", "__")
    extras = (Need(entry.name, folder, (HubFile(repo, name),), extra_of=_TOKENIZER) for name in _TOKENIZER_EXTRAS)
    return (*extras, Need(entry.name, folder, (HubFile(repo, _TOKENIZER),)))


def face(entry: Face, cache_folder: Path) -> Need:
    """Return the weights of the face recogniser; ValueError for the demo, which has none."""
    if not entry.url:
        raise ValueError(f"the face model {entry.name} has no published weights")
    return Need(entry.name, cache_folder / "faces" / entry.name, (UrlFile(entry.url, entry.sha256),))


def needs(entry: Clip | Face, cache_folder: Path) -> tuple[Need, ...]:
    """Return all files that `entry` needs, each once; none for the demo, whose weights come with the package."""
    if isinstance(entry, Face):
        return (face(entry, cache_folder),) if entry.url else ()
    if not entry.tag:
        return ()
    towers = dict.fromkeys((visual(entry, cache_folder), textual(entry, cache_folder)))
    return (*towers, *tokenizer(entry, cache_folder))


def _open_clip_sources(arch: str, tag: str) -> tuple[Source, ...]:
    """Return where open_clip's table says that the checkpoint lies; ValueError if it does not have it."""
    published: dict[str, str] = get_pretrained_cfg(arch, tag)
    sources: list[Source] = []
    # "owner/repository/" or, where the file has another name than usual, "owner/repository/file".
    repo, _, file = published.get("hf_hub", "").rpartition("/")
    if repo and not _of_another_tag(repo, tag):
        sources += [HubFile(repo, name) for name in ((file,) if file else _OPEN_CLIP_FILES)]
    url = published.get("url", "")
    # OpenAI's own files are TorchScript archives, which are programs: never fetched, never loaded.
    if url and "openaipublic" not in url:
        # Release assets carry the first eight digits of their sha256 as the last part of their name.
        sources.append(UrlFile(url, url.rsplit(".", 1)[0].rsplit("-", 1)[-1]))
    if not sources:
        raise ValueError(f"open_clip knows no safe checkpoint for {arch} with the tag {tag}")
    return tuple(sources)


def _of_another_tag(repo: str, tag: str) -> bool:
    # timm's repositories are called <architecture>.<tag>. The row ViT-B-16-plus-240, laion400m_e32 of open_clip 3.3.0
    # names the repository of laion400m_e31: other weights. Its URL is the right one.
    _, dot, suffix = repo.rpartition(".")
    return bool(dot) and suffix != tag


def _tokenizer_repo(entry: Clip) -> str:
    if entry.mclip_repo:
        return _MCLIP_TOKENIZERS[entry.tokenizer]
    config = open_clip.get_model_config(entry.arch)
    if config is None:
        raise ValueError(f"open_clip has no architecture {entry.arch}")
    repo: str = config["text_cfg"].get("hf_tokenizer_name", "")
    return repo

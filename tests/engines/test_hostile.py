"""Pictures from strangers, on the whole way to a square of CLIP and to the detector: odd, damaged, and in disguise."""

import io
import itertools
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

from engines import images, jpeg
from engines.errors import ImageError
from scripts.endure.mutations import mutated
from scripts.endure.specimens import ICC, KINDS, SIZE, encode, picture, specimens, tiff, transparent
from tests.engines import hostile
from tests.engines.hostile import chunk, decoded_by_pillow, gif, png, resized, segment

MAX_PIXELS = 2_000_000
PHOTO = picture()
BRANDS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")

# Pillow warns of damaged metadata; the filter of engines.images is set before that of pytest.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def outcome(data: bytes, exif: bool = False) -> str | tuple[int, ...]:
    """Return the shape of what is decoded, or what is said; anything else than an ImageError is raised."""
    try:
        return images.decode(data, MAX_PIXELS, exif).shape
    except ImageError as error:
        return str(error)


def test_the_formats_are_those_of_the_protocol_and_all_that_pillow_has_of_them() -> None:
    assert set(images.FORMATS) <= set(BRANDS)
    assert {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"} <= set(images.FORMATS)
    assert set(KINDS) <= set(images.FORMATS)


# What files of other formats begin with, where Pillow cannot write them.
FOREIGN = [
    *(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", b"\xc5\xd0\xd3\xc6" + bytes(28)),
    *(b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3), b"SIMPLE  =                    T".ljust(2880)),
    *(b"DanM" + bytes(28), b"LinS" + bytes(28), b"\x0a\5\1\x08" + bytes(124), b"\xb1\x68\xde\x3a" + bytes(1020)),
    *(b"BLP2" + bytes(200), b"DDS " + struct.pack("<I", 124) + bytes(120), b"FTEX" + bytes(40), b"qoif" + bytes(20)),
    *(b"\0\0\2\0" + bytes(40), b"icns\0\0\0\x20" + bytes(24), b"\x89HDF\r\n\x1a\n" + bytes(40)),
    *(b"GRIB\0\0\0\1" + bytes(20), b"BUFR" + bytes(20), b"\x28\0\0\0\0\0\0\0 EMF" + bytes(80)),
    *(b"\xd7\xcd\xc6\x9a\0\0" + bytes(40), b"/* XPM */\nstatic char *", b"#define w_width 9\n#define w_height 9\n"),
    *(b"P7 332\n#end\n9 9 255\n", b"P6 9 9 255\n", b"\x59\xa6\x6a\x95" + bytes(40), b"\0\0\1\xba" + bytes(20)),
    *(b"\0\0\1\xb3" + bytes(20), bytes(4) + b"\x11\xaf" + bytes(200), b"\x1c\x02\x05\0\x01a"),
    *(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), b"\xff\x4f\xff\x51" + bytes(60), b"PCD_IPI".rjust(2055)),
]
# Of those that it can, in the modes that they have.
WRITTEN = {"P": ("ICO", "PCX", "TGA"), "1": ("MSP", "XBM"), "RGB": ("EPS", "SGI", "JPEG2000", "ICNS", "DIB", "PPM")}


def test_no_other_reader_of_pillow_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []

    def factory(name: str) -> object:
        def open_(*_: object) -> None:
            reached.append(name)
            raise SyntaxError

        return open_

    others = [name for name in Image.OPEN if name not in images.FORMATS]
    assert len(others) > 30
    written = [encode(PHOTO.convert(mode), kind) for mode, kinds in WRITTEN.items() for kind in kinds]
    files = [*FOREIGN, *written, *(data for kind in KINDS for data in specimens(kind))]
    for name in others:
        monkeypatch.setitem(Image.OPEN, name, (factory(name), Image.OPEN[name][1]))
    for data in files:
        outcome(data)
    assert reached == []
    # The check itself finds something: without our list of formats they would be reached.
    for data in FOREIGN:
        with pytest.raises(UnidentifiedImageError):
            Image.open(io.BytesIO(data))
    assert len(set(reached)) > 15


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_at_every_tenth_is_refused_and_its_header_harms_nobody(kind: str) -> None:
    data = encode(PHOTO, kind)
    for tenth in range(10):
        part = data[: len(data) * tenth // 10]
        with pytest.raises(ImageError, match="send"):
            images.decode(part, MAX_PIXELS)
        try:
            assert images.probe(part, MAX_PIXELS) == images.Header(kind, *SIZE)
        except ImageError:
            assert tenth < 9 or kind in ("WEBP", "AVIF")  # these tell their size only of a whole file


@pytest.mark.parametrize("kind", KINDS)
def test_further_variants_cut_off_end_in_a_picture_or_in_our_error(kind: str) -> None:
    for data in specimens(kind):
        assert outcome(data) == (SIZE[1], SIZE[0], 3)
        refused = [isinstance(outcome(data[: len(data) * tenth // 10], exif=True), str) for tenth in range(10)]
        assert all(refused[:4])


@pytest.mark.parametrize("kind", KINDS)
def test_the_header_of_another_format_is_no_disguise(kind: str) -> None:
    data = encode(PHOTO, kind)
    for other in KINDS:
        for length in (4, 12, 32):
            disguised = encode(PHOTO, other)[:length] + data[length:]
            assert (outcome(disguised) == (SIZE[1], SIZE[0], 3)) >= (other == kind)


def test_much_metadata_neither_hides_nor_hurts_a_picture() -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "x" * 60_000, 6
    icc = ICC + bytes(2_000_000)
    for kind, options in {
        "JPEG": {"icc_profile": icc},
        "WEBP": {"icc_profile": icc},
        "TIFF": {"icc_profile": icc},
    }.items():
        data = encode(PHOTO, kind, exif=exif.tobytes(), **options)
        assert outcome(data) == (SIZE[1], SIZE[0], 3)
        assert outcome(data, exif=True) == (SIZE[0], SIZE[1], 3)
    # A megabyte of profile at most is unpacked of a PNG; more is refused, however small it came.
    packed = zlib.compress(bytes(200 << 20))
    assert len(packed) < 250_000
    assert "PNG" in str(outcome(png(before=chunk(b"iCCP", b"icc\0\0" + packed))))
    # EXIF that is too much to be looked into leaves the picture as it is.
    large = b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 3, 1, 6) + bytes(images.MOST_EXIF_BYTES)
    data = encode(PHOTO, "PNG")
    begin = data.index(b"IDAT") - 4
    small = data[:begin] + chunk(b"eXIf", large[:1000]) + data[begin:]
    assert outcome(small, exif=True) == (SIZE[0], SIZE[1], 3)
    assert outcome(data[:begin] + chunk(b"eXIf", large) + data[begin:], exif=True) == (SIZE[1], SIZE[0], 3)


ANIMATED: dict[str, dict[str, Any]] = {
    "GIF": {"loop": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "AVIF": {"speed": 10},
    "TIFF": {},
    "MPO": {},
}


@pytest.mark.parametrize("kind", ANIMATED)
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("black", "white", "red", "lime")]
    disposals: list[dict[str, int]] = [{"disposal": 2}, {"disposal": 3}] if kind == "GIF" else [{}]
    for disposal in disposals:
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **ANIMATED[kind], **disposal)
        assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 4
        assert images.decode(data, MAX_PIXELS).max() < 8


def test_colours_of_16_bits_keep_their_high_bytes() -> None:
    deep = np.random.default_rng(5).integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    for planes, kind in (
        (deep, 2),
        (deep[..., :1], 0),
        (np.concatenate([deep, deep[..., :1]], 2), 6),
        (deep[..., :2], 4),
    ):
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in planes)
        colours = planes[..., :3] if planes.shape[2] > 2 else np.repeat(planes[..., :1], 3, 2)
        decoded = images.decode(png(7, 9, data=rows, kind=kind, bits=16), MAX_PIXELS)
        assert np.array_equal(decoded, colours >> 8)
    entries = [(256, 3, 1, 7), (257, 3, 1, 9), (259, 3, 1, 1), (262, 3, 1, 2), (277, 3, 1, 3), (278, 3, 1, 9)]
    begin = 8 + 2 + 12 * 9 + 4
    entries += [(258, 3, 3, begin), (273, 4, 1, begin + 6), (279, 4, 1, deep.nbytes)]
    data = tiff(sorted(entries), struct.pack("<3H", 16, 16, 16) + deep.astype("<u2").tobytes())
    assert np.array_equal(images.decode(data, MAX_PIXELS), deep >> 8)


def test_four_colours_and_their_kind_by_adobe_are_read_as_pillow_reads_them() -> None:
    plain = encode(PHOTO.convert("CMYK"), "JPEG", quality=95)
    inks = 255 - np.asarray(PHOTO.convert("CMYK"))  # as Adobe's programs store them
    mixed = simplejpeg.encode_jpeg(np.ascontiguousarray(inks), 95, "CMYK", "444")
    assert simplejpeg.decode_jpeg_header(mixed)[2] == "YCCK"
    assert b"Adobe" in mixed
    for data in (plain, mixed, encode(PHOTO.convert("CMYK"), "TIFF")):
        decoded = images.decode(data, MAX_PIXELS)
        assert np.array_equal(decoded, decoded_by_pillow(data))
        assert np.abs(decoded.astype(int) - np.asarray(PHOTO)).mean() < 5


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF"])
def test_palettes_with_transparency_keep_their_colours(kind: str) -> None:
    image = transparent(3) if kind == "GIF" else transparent()
    image = image.convert("RGBA") if kind == "WEBP" else image
    data = encode(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    opaque = transparent().copy()
    del opaque.info["transparency"]
    assert np.array_equal(images.decode(data, MAX_PIXELS), np.asarray(opaque.convert("RGB")))


@pytest.mark.parametrize("size", [(0, 0), (0, 64), (96, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_of_nothing_are_refused(kind: str, size: tuple[int, int]) -> None:
    data = resized(encode(PHOTO, kind), size)
    for read in (images.probe, images.decode):
        with pytest.raises(ImageError):
            read(data, MAX_PIXELS)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_are_not_those_of_the_pixels_end_in_a_picture_or_in_our_error(kind: str) -> None:
    data = encode(PHOTO, kind)
    assert outcome(resized(data, SIZE)) == (SIZE[1], SIZE[0], 3)
    for size in itertools.product((1, 95, 97, 1000), (1, 63, 65, 1000)):
        assert outcome(resized(data, size)) in ((size[1], size[0], 3), (SIZE[1], SIZE[0], 3)) or "send" in str(
            outcome(resized(data, size))
        )


def test_frames_of_an_avif_are_decoded_one_at_a_time_since_they_may_be_larger_than_it_says() -> None:
    data = resized(encode(PHOTO.resize((600, 400)), "AVIF", speed=10), (8, 8))
    assert images.probe(data, MAX_PIXELS) == images.Header("AVIF", 8, 8)
    assert outcome(data) == (8, 8, 3)
    with images._AVIF_TURN:
        waiting = threading.Thread(target=outcome, args=(data,))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        assert outcome(encode(PHOTO, "PNG")) == (SIZE[1], SIZE[0], 3)
    waiting.join(20)
    assert not waiting.is_alive()


def test_polyglots_are_the_picture_they_begin_as_or_nothing() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "x" * 1000)
    script, page = b"=1;alert(1)//", b"<html><script>alert(1)</script>"
    photo = encode(PHOTO, "JPEG")
    for kind in KINDS:
        data = encode(PHOTO, kind)
        for tail in (archive.getvalue(), page, photo, data):
            assert np.array_equal(images.decode(data + tail, MAX_PIXELS), images.decode(data, MAX_PIXELS)), kind
    document = b"%PDF-1.7\n1 0 obj\n<< /Length 9 >>\nstream\n"
    for front in (document, archive.getvalue(), page, b"MZ", b"#!/bin/sh\n", b"\0"):
        with pytest.raises(ImageError):
            images.decode(front + photo, MAX_PIXELS)
    inside = photo[:2] + segment(0xFE, document) + segment(0xFE, page) + photo[2:]
    assert np.array_equal(images.decode(inside, MAX_PIXELS), images.decode(photo, MAX_PIXELS))
    # GIF89a/* … */=1: a comment of JavaScript where the size of the screen stands; the frame says how large it is.
    told = outcome(b"GIF89a" + b"/*" + gif((0, 0, 1, 1))[8:] + b"*/" + script)
    assert "send" in str(told) or told[1:] == (ord("/") + 256 * ord("*"), 3)


@pytest.mark.parametrize("seed", range(3))
def test_the_fast_decoder_gives_what_pillow_gives_or_leaves_it_to_pillow(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [*specimens("JPEG"), *mutated(specimens("JPEG"), 150, seed)]
    files += [data[: len(data) * tenth // 10] for data in specimens("JPEG") for tenth in range(10)]
    fast = [_pixels(data) for data in files]
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "decode", lambda *_: None)
        slow = [_pixels(data) for data in files]
    for number, (one, other) in enumerate(zip(fast, slow, strict=True)):
        assert (one is None) == (other is None), number
        assert one is None or other is None or np.array_equal(one, other), number
    assert sum(one is not None for one in fast) > 30
    assert sum(one is None for one in fast) > 30


def _pixels(data: bytes) -> images.Pixels | None:
    try:
        return images.decode(data, MAX_PIXELS)
    except ImageError:
        return None


def test_the_fast_decoder_makes_no_memory_for_a_size_that_was_not_checked() -> None:
    data = resized(hostile.jpeg(), (65_500, 65_500))
    assert jpeg.decode(data, 64, 64) is None
    assert jpeg.decode(data, 64, 64, 8) is None


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_end_in_a_picture_or_in_our_error(kind: str) -> None:
    told = [outcome(data, exif=bool(number % 2)) for number, data in enumerate(mutated(specimens(kind), 150, 7))]
    assert any(isinstance(one, str) for one in told)
    assert all(isinstance(one, str) or one[2] == 3 for one in told)


SILENT = """
import sys
from engines import images
from engines.errors import ImageError
from scripts.endure.mutations import mutated
from scripts.endure.specimens import specimens
refused = 0
for data in [*mutated(specimens("TIFF"), 300, 1), *mutated(specimens("JPEG"), 50, 1)]:
    try:
        images.decode(data, 1_000_000)
    except ImageError:
        refused += 1
print(refused)
"""


def test_broken_files_write_nothing_past_the_log() -> None:
    run = subprocess.run([sys.executable, "-W", "default", "-c", SILENT], capture_output=True, text=True, check=True)  # noqa: S603 - our own text
    assert run.stderr == ""
    assert int(run.stdout) > 100


def test_pictures_are_read_whole_or_not_at_all() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False

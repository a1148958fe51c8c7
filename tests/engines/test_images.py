import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from engines import images, jpeg
from engines.errors import ImageError, ImageTooLarge

LIMIT = 1_000_000
RANDOM = np.random.default_rng(3)
PHOTO = Image.fromarray(RANDOM.integers(0, 256, (15, 20, 3), dtype=np.uint8)).resize((160, 120))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


WRITABLE = [kind for kind in images.FORMATS if kind not in ("HEIF", "MPO")]


@pytest.mark.parametrize("kind", WRITABLE)
def test_every_format_is_read_and_its_header_told(kind: str) -> None:
    data = encoded(PHOTO, kind)
    assert images.probe(data, LIMIT) == images.Header(kind, 160, 120)
    decoded = images.decode(data, LIMIT)
    assert decoded.shape == (120, 160, 3)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert decoded.flags.writeable
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decoded, expected)


def test_of_an_mpo_the_first_picture_is_taken() -> None:
    second = PHOTO.transpose(Image.Transpose.ROTATE_180)
    data = encoded(PHOTO, "MPO", save_all=True, append_images=[second])
    assert images.probe(data, LIMIT).format == "MPO"
    first = images.decode(data, LIMIT).astype(int)
    assert np.abs(first - np.asarray(PHOTO)).mean() < np.abs(first - np.asarray(second)).mean()


def test_of_an_animation_the_first_frame_is_taken() -> None:
    black, white = Image.new("RGB", (30, 20)), Image.new("RGB", (30, 20), "white")
    data = encoded(black, "GIF", save_all=True, append_images=[white])
    assert images.decode(data, LIMIT).max() == 0


def palette_with_transparency() -> Image.Image:
    image = PHOTO.convert("P")
    image.info["transparency"] = bytes(range(256))
    return image


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (PHOTO.convert("RGBA"), "PNG"),
        (PHOTO.convert("LA"), "PNG"),
        (PHOTO.convert("L"), "PNG"),
        (PHOTO.convert("1"), "PNG"),
        (palette_with_transparency(), "PNG"),
        (PHOTO.convert("CMYK"), "JPEG"),
        (PHOTO.convert("L"), "JPEG"),
        (PHOTO.convert("F"), "TIFF"),
        (PHOTO.convert("RGBA"), "WEBP"),
    ],
)
def test_other_modes_become_rgb_as_open_clip_makes_them(image: Image.Image, kind: str) -> None:
    data = encoded(image, kind)
    stored = Image.open(io.BytesIO(data))
    stored.load()
    stored.info.pop("transparency", None)  # Pillow warns of it, and converts the colours alike without it
    assert np.array_equal(images.decode(data, LIMIT), np.asarray(stored.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_keeps_its_high_byte(kind: str) -> None:
    grey = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    decoded = images.decode(encoded(Image.fromarray(grey), kind), LIMIT)
    assert np.array_equal(decoded, np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_as_sent_unless_exif_is_asked_for(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PHOTO, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(images.decode(data, LIMIT), np.asarray(PHOTO))
    assert np.array_equal(images.decode(data, LIMIT, exif=True), np.asarray(upright))


def test_the_limit_is_checked_by_the_header_alone() -> None:
    # A PNG header that announces 30000x30000 pixels, and no pixels behind it.
    header = b"IHDR" + (30000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    bomb = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    bomb += encoded(Image.new("RGB", (1, 1)), "PNG")[33:]
    for read in (images.probe, images.decode):
        with pytest.raises(ImageTooLarge, match=r"30000x30000.*MACHINE_LEARNING_MAX_PIXELS"):
            read(bomb, 200_000_000)
    with pytest.raises(ImageTooLarge):
        images.decode(encoded(PHOTO, "PNG"), 160 * 120 - 1)
    assert images.decode(encoded(PHOTO, "PNG"), 160 * 120).shape == (120, 160, 3)


@pytest.mark.parametrize("kind", WRITABLE)
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_a_file_that_is_cut_off_is_refused(kind: str, kept: float) -> None:
    data = encoded(PHOTO, kind)
    with pytest.raises(ImageError):
        images.decode(data[: int(len(data) * kept)], LIMIT)


@pytest.mark.parametrize("progressive", [False, True])
def test_half_a_jpeg_is_refused_with_a_sentence(progressive: bool) -> None:
    data = encoded(PHOTO, "JPEG", progressive=progressive)
    with pytest.raises(ImageError, match="JPEG picture is cut off or damaged: send the whole file"):
        images.decode(data[: len(data) // 2], LIMIT)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "empty"),
        (b"not a picture at all", "no picture"),
        (b"<html><body>404</body></html>", "markup"),
        (b"%PDF-1.7 and so on", "a PDF"),
        (b"\x00\x00\x00\x18ftypmp42secret", "a video"),
        (b"\xff\xd8\xffsecret", "a JPEG"),
    ],
)
def test_what_is_no_picture_is_called_by_its_kind_and_never_quoted(data: bytes, told: str) -> None:
    for read in (images.probe, images.decode):
        with pytest.raises(ImageError, match=told) as caught:
            read(data, LIMIT)
        assert "secret" not in str(caught.value)


def test_a_picture_without_pixels_is_refused() -> None:
    png = bytearray(encoded(PHOTO, "PNG"))
    png[16:20] = bytes(4)  # the width
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    bmp = bytearray(encoded(PHOTO, "BMP"))
    bmp[18:22] = bytes(4)
    for data in (png, bmp):
        with pytest.raises(ImageError):
            images.decode(bytes(data), LIMIT)


def test_formats_that_are_not_served_are_refused() -> None:
    for kind in ("PPM", "TGA", "ICO", "PCX"):
        with pytest.raises(ImageError, match="send a whole JPEG"):
            images.decode(encoded(PHOTO, kind), LIMIT)


# pytest puts its own filter before the one that engines.images sets for Pillow's warnings.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", WRITABLE)
def test_damaged_files_end_in_a_picture_or_in_our_error(kind: str) -> None:
    whole = encoded(PHOTO.resize((40, 30)), kind)
    random = np.random.default_rng(11)
    outcomes = set()
    for _ in range(100):
        data = bytearray(whole)
        for position in random.integers(0, min(len(data), int(random.choice([60, 400, len(data)]))), 3):
            data[position] = random.integers(0, 256)
        try:
            assert images.decode(bytes(data), LIMIT, exif=True).shape[2:] == (3,)
            outcomes.add("picture")
        except ImageError:
            outcomes.add("error")
    assert "error" in outcomes


CORRUPT_EXIF = """
import sys
from engines import images, jpeg
print(images.decode(sys.stdin.buffer.read(), 1_000_000, exif=True).shape)
"""


def test_damaged_exif_costs_neither_the_picture_nor_a_warning() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description that is long enough to be stored outside of its entry"
    data = encoded(PHOTO, "JPEG", exif=exif.tobytes()[:-40])
    run = subprocess.run(  # noqa: S603 - our own text
        [sys.executable, "-W", "error", "-c", CORRUPT_EXIF], input=data, capture_output=True, check=False
    )
    assert run.stderr == b""
    assert run.stdout.decode().strip() in ("(160, 120, 3)", "(120, 160, 3)")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "PNG", "WEBP"])
def test_pixels_are_as_sent_and_turned_only_when_asked(kind: str, orientation: int) -> None:
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:8, :16] = (250, 10, 10)  # the corner tells how the picture was turned
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    as_sent = images.decode(out.getvalue(), 10**6)
    assert as_sent.shape == (40, 64, 3)
    assert np.abs(as_sent.astype(int) - pixels).mean() < 4
    upright = images.decode(out.getvalue(), 10**6, exif=True)
    height, width = upright.shape[:2]
    assert (width, height) == ((64, 40) if orientation < 5 else (40, 64))
    corner = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[orientation]
    x, y = (share * (side - 8) + 4 for share, side in zip(corner, (width, height), strict=True))
    assert upright[int(y), int(x), 0] > 200


SMOOTH = Image.fromarray(RANDOM.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
    (1600, 1200), Image.Resampling.BICUBIC
)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(160, 120), (161, 121), (1, 1), (17, 300)])
def test_jpegs_have_the_pixels_that_pillow_decodes(size: tuple[int, int], subsampling: int, progressive: bool) -> None:
    data = encoded(PHOTO.resize(size), "JPEG", subsampling=subsampling, progressive=progressive, quality=85)
    assert jpeg.decode(data, *size) is not None
    assert np.array_equal(images.decode(data, LIMIT), np.asarray(Image.open(io.BytesIO(data))))


def test_a_jpeg_with_stray_bytes_is_read_as_pillow_reads_it() -> None:
    whole = encoded(PHOTO, "JPEG")
    tables = whole.index(b"\xff\xdb")
    data = whole[:tables] + b"\x00\x00" + whole[tables:]
    assert jpeg.decode(data, *PHOTO.size) is None
    assert np.array_equal(images.decode(data, LIMIT), images.decode(whole, LIMIT))


@pytest.mark.parametrize("exif", [False, True])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_may_come_smaller_and_tells_its_size_in_full(orientation: int, exif: bool) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    data = encoded(SMOOTH, "JPEG", exif=tags)
    pixels, size = images.reduced(data, 2_000_000, 300, exif)
    sideways = exif and orientation == 6
    assert size == ((1200, 1600) if sideways else (1600, 1200))
    assert pixels.shape == ((400, 300, 3) if sideways else (300, 400, 3))
    assert pixels.flags.c_contiguous
    in_full = Image.fromarray(images.decode(data, 2_000_000, exif))
    expected = np.asarray(in_full.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BOX)).astype(int)
    assert np.abs(pixels - expected).max() <= 3


@pytest.mark.parametrize(
    ("shortest", "height"), [(600, 600), (601, 1200), (400, 600), (300, 300), (150, 150), (9, 150)]
)
def test_a_jpeg_is_halved_as_often_as_leaves_it_large_enough(shortest: int, height: int) -> None:
    # Of 1200 rows. The decoder could scale to 7/8 or 3/8 as well, and would take longer than in full for that.
    pixels, _ = images.reduced(encoded(SMOOTH, "JPEG"), 2_000_000, shortest)
    assert pixels.shape == (height, height * 4 // 3, 3)


@pytest.mark.parametrize(
    ("kind", "shortest"), [("JPEG", 0), ("JPEG", 700), ("JPEG", 1100), ("JPEG", 5000), ("PNG", 100)]
)
def test_a_picture_comes_in_full_where_it_has_no_pixels_to_spare(kind: str, shortest: int) -> None:
    data = encoded(SMOOTH, kind)
    pixels, size = images.reduced(data, 2_000_000, shortest)
    assert size == (1600, 1200)
    assert np.array_equal(pixels, images.decode(data, 2_000_000))

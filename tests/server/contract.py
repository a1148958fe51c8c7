"""The contract's cases: the pictures they name, the forms they send, the shapes they expect."""

import io
import json
import math
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import skimage.data
from PIL import Image

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "cases.json").read_text(encoding="utf-8"))
BOUNDARY = "immich-7c9e6679-7425-40de-944b-e07fc1f90ae7"


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the picture's bytes in a format of Pillow's."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def photo(name: str = "astronaut.png") -> Image.Image:
    """Return a photo that comes with scikit-image; the astronaut is a real photo of a person, 512x512."""
    return Image.open(Path(skimage.data.data_dir, name)).convert("RGB")


def picture(kind: str) -> bytes:
    """Return the bytes that the contract calls `kind`."""
    rng = np.random.default_rng(0)
    match kind:
        case "jpeg" | "photo-one-face":
            return encode(photo(), "JPEG", quality=90)
        case "png-rgba":
            return encode(photo().convert("RGBA"), "PNG")
        case "png-i16":
            return encode(Image.fromarray(rng.integers(0, 65536, (48, 64), dtype=np.uint16)), "PNG")
        case "jpeg-cmyk":
            return encode(photo().convert("CMYK"), "JPEG")
        case "webp":
            return encode(photo(), "WEBP")
        case "png-1x1":
            return encode(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG")
        case "png-4000x3":
            return encode(Image.fromarray(rng.integers(0, 256, (3, 4000, 3), dtype=np.uint8)), "PNG")
        case "png-20000x1":
            return encode(Image.fromarray(rng.integers(0, 256, (1, 20000, 3), dtype=np.uint8)), "PNG")
        case "jpeg-exif6":
            exif = Image.Exif()
            exif[0x0112] = 6  # orientation: to be turned by a quarter
            return encode(photo().resize((640, 480)), "JPEG", exif=exif)
        case "black":
            return encode(Image.new("RGB", (600, 800)), "JPEG")
        case "jpeg-truncated":
            whole = encode(photo(), "JPEG", quality=90)
            return whole[: len(whole) // 2]
        case "png-bomb":
            return encode(Image.new("1", (30000, 30000)), "PNG")
    raise ValueError(f"the contract names a picture that this file does not know: {kind}")


def body(case: dict[str, Any]) -> tuple[bytes, str]:
    """Return a case's body and Content-Type, built by hand as clients do."""
    fields = case["form"]
    if case["encoding"] == "urlencoded":
        return urlencode(fields).encode(), "application/x-www-form-urlencoded"
    return multipart({name: _value(value) for name, value in fields.items()})


def multipart(fields: dict[str, bytes], boundary: str = BOUNDARY) -> tuple[bytes, str]:
    """Return a multipart body with `fields` in their order, and its Content-Type."""
    pieces = []
    for name, value in fields.items():
        pieces.append(f"--{boundary}\r\n".encode())
        if name == "image":
            pieces.append(b'Content-Disposition: form-data; name="image"; filename="blob"\r\n')
            pieces.append(b"Content-Type: application/octet-stream\r\n\r\n")
        else:
            pieces.append(f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode())
        pieces += [value, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return b"".join(pieces), f"multipart/form-data; boundary={boundary}"


def _value(value: Any) -> bytes:
    match value:
        case {"@image": kind}:
            return picture(kind)
        case {"@bytes": text}:
            return str(text).encode()
        case {"@repeat": text, "times": times}:
            return (str(text) * int(times)).encode()
        case str():
            return value.encode()
    raise ValueError(f"the contract has a value that this file does not know: {value}")


def check_shape(answer: Any, shape: Any) -> None:
    """Assert that an answer has the shape that a case names."""
    if isinstance(shape, str):
        _check(answer, shape)
        return
    assert set(answer) == set(shape)
    for key, wanted in shape.items():
        _check(answer[key], wanted)


def _check(value: Any, wanted: str) -> None:
    match wanted:
        case "string of array":
            assert isinstance(value, str)
            assert " " not in value
            _check_vector(json.loads(value))
        case "array of numbers":
            _check_vector(value)
        case "int":
            assert type(value) is int
        case "faces, at least 1" | "boxes, at least 1" | "old faces, at least 1":
            assert value
            keys = {
                "faces": {"boundingBox", "embedding", "score"},
                "boxes": {"boundingBox", "score"},
                "old faces": {"boundingBox", "embedding", "score", "imageWidth", "imageHeight"},
            }[wanted.split(",")[0]]
            assert [face["score"] for face in value] == sorted((face["score"] for face in value), reverse=True)
            for face in value:
                assert set(face) == keys
                assert set(face["boundingBox"]) == {"x1", "y1", "x2", "y2"}
                assert all(type(number) is int for number in face["boundingBox"].values())
                assert 0 < face["score"] <= 1
                if "embedding" in keys:
                    vector = face["embedding"] if wanted.startswith("old") else json.loads(face["embedding"])
                    _check_vector(vector)
                    assert len(vector) == 512
        case "faces, none" | "old faces, none":
            assert value == []
        case number if number.isdecimal():
            assert value == int(number)
        case _:
            raise ValueError(f"the contract has a shape that this file does not know: {wanted}")


def _check_vector(vector: Any) -> None:
    assert isinstance(vector, list)
    assert all(isinstance(number, float | int) and math.isfinite(number) for number in vector)
    assert abs(np.linalg.norm(vector) - 1) < 1e-3

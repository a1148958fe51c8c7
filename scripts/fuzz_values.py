"""What random requests are made of beside random text: names of models and bytes of pictures, good and bad.

Loaded by Schemathesis as its hooks (see scripts/fuzz_api.py). Without these nearly all requests would end at an unknown
name or at bytes that are no picture, and nothing behind would ever be reached.
"""

import io
import json
from typing import Any

import schemathesis
from hypothesis import strategies as st
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
NAMES = ("/demo", "d.emo", "buffalo_l", "RN50::openai", "facenet-vggface2", "demoo", "../demo")


@st.composite
def pictures(draw: st.DrawFn) -> bytes:
    """Draw a small picture of a random format and size: whole, cut off, or with a byte changed."""
    size = draw(st.tuples(st.integers(1, 300), st.integers(1, 300)))
    mode = draw(st.sampled_from(("RGB", "L")))
    out = io.BytesIO()
    Image.new(mode, size, draw(st.integers(0, 255))).save(out, draw(st.sampled_from(FORMATS)))
    data = bytearray(out.getvalue())
    damage = draw(st.sampled_from(("none", "none", "none", "cut", "change")))
    place = draw(st.integers(0, len(data) - 1))
    if damage == "cut":
        del data[place:]
    elif damage == "change":
        data[place] ^= draw(st.integers(1, 255))
    return bytes(data)


def names() -> st.SearchStrategy[str]:
    """Draw a name, that of the demo most of the time: a request may name four."""
    demo = [st.just("demo")] * 8
    return st.one_of(*demo, st.sampled_from(NAMES), st.text(max_size=20))


def in_one_field(body: Any) -> Any:
    """Return the fields of a form with objects as JSON, as openapi.json says that they are encoded."""
    if not isinstance(body, dict):
        return body
    return {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in body.items()}


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Encode objects in URL-encoded forms, which Schemathesis does in multipart ones alone."""
    if case.media_type == "application/x-www-form-urlencoded":
        case.body = in_one_field(case.body)


schemathesis.openapi.format("model-name", names())
schemathesis.openapi.format("binary", st.one_of(*[pictures()] * 5, st.binary(max_size=200)))

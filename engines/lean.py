"""open_clip imported without transformers, which it does without, and which takes a second and 20 MB.

Only its own text encoders for transformers' models need that package, and engines.towers builds those by itself. To be
called before anything else imports open_clip. Knows no network.
"""

import importlib
import sys


def import_open_clip() -> None:
    """Import open_clip as if transformers were not installed; that can be imported as usual afterwards."""
    if "transformers" in sys.modules:
        return
    # Python refuses to import what is None here.
    sys.modules["transformers"] = None  # type: ignore[assignment]  # typeshed: only modules
    try:
        importlib.import_module("open_clip")
    finally:
        del sys.modules["transformers"]

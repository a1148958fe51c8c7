"""Bytes to pixels, pixels to vectors, on whatever hardware is there. Knows nothing of HTTP or queues."""

import os

# A photo server tells nobody that it runs. huggingface_hub reads this once, when the first of its users imports it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

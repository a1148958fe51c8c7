"""Bytes to pixels, pixels to vectors, on whatever hardware is there. Knows nothing of HTTP or queues."""

"""The texts that are measured with: what people type to find photos, 3 to 8 words, all different."""

import numpy as np

SEED = 20261123
SUBJECTS = ("dog", "cat", "child", "family", "birthday cake", "bicycle", "old house", "red car", "boat", "bride")
DOINGS = ("", "running", "sleeping", "smiling", "jumping", "waiting", "playing", "dancing")
PLACES = ("on the beach", "in the snow", "at night", "in the garden", "under a tree", "by the lake", "at home")
TIMES = ("", "in summer", "at sunset", "last winter", "in Italy", "in black and white")


def searches(count: int) -> list[str]:
    """Return `count` different texts, of which there are at most 3,360; the same ones at every call."""
    texts = [
        " ".join(part for part in (subject, doing, place, time) if part)
        for subject in SUBJECTS
        for doing in DOINGS
        for place in PLACES
        for time in TIMES
    ]
    texts = [text for text in texts if 3 <= len(text.split()) <= 8]
    if count > len(texts):
        raise ValueError(f"there are {len(texts)} texts, not {count}")
    return [str(text) for text in np.random.default_rng(SEED).permutation(texts)[:count]]

"""Means over rectangles of pictures: what the detector's pyramid levels and crops are made of.

torch's interpolate with mode "area" makes pixel i of n the mean of the source pixels floor(i * size / n) up to, not
including, ceil((i + 1) * size / n). Here one summed-area table per picture serves every size: the sum over a rectangle
is four look-ups, whatever its size (Crow, Summed-Area Tables for Texture Mapping, 1984).

Two forms of it: on a processor one table for one picture, in which one number holds the sums of all three colours, so
that they are looked up, added and subtracted together; on other devices one tensor for all pictures of a batch.
Deliberately knows nothing of faces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]
Whole = NDArray[np.int64]

_BITS = 21  # for the sum of one colour: three of them fit into a number of 64 bits
_MASK = (1 << _BITS) - 1
_MOST = _MASK // 255  # white pixels that a sum of so many bits holds: 8,224
_ROWS = 32  # at a time, so that what is computed on the way stays in the cache


class PackedTable:
    """Sums over rectangles of one RGB picture, on the processor."""

    def __init__(self, picture: Pixels) -> None:
        """`picture` is (H, W, 3)."""
        height, width = picture.shape[:2]
        self.sizes = ((height, width),)
        # Entries wrap around at 2^64; differences are exact as long as no colour of one rectangle exceeds its bits.
        self._sums = np.zeros((height + 1, width + 1), np.int64)
        packed, colour = np.empty((2, min(_ROWS, height), width), np.int64)
        for top in range(0, height, _ROWS):
            rows = picture[top : top + _ROWS]
            block, one = packed[: len(rows)], colour[: len(rows)]
            block[...] = rows[..., 2]
            for channel in (1, 0):
                block <<= _BITS
                one[...] = rows[..., channel]
                block |= one
            np.cumsum(block, axis=1, out=self._sums[top + 1 : top + 1 + len(rows), 1:])
            for row in range(top, top + len(rows)):
                self._sums[row + 1] += self._sums[row]

    def level(self, k: int, height: int, width: int) -> Tensor:
        """Return the picture scaled to (1, 3, height, width) float32 in levels 0 to 255; `k` is 0."""
        rows, columns = self.sizes[0]
        tops, bottoms = _edges(np.zeros(1, np.int64), np.array([rows]), height)
        lefts, rights = _edges(np.zeros(1, np.int64), np.array([columns]), width)
        means = np.empty((3, height, width), np.float32)
        for top in range(0, height, _ROWS):
            part = slice(top, top + _ROWS)
            self._means(tops[0, part], bottoms[0, part], lefts[0], rights[0], means[:, part])
        return torch.from_numpy(means)[None]

    def crops(self, owners: Tensor, boxes: Tensor, side: int) -> Tensor:
        """Return the inside of each box scaled to (N, 3, side, side) float32 in levels 0 to 255.

        `boxes` (N, 4) int64 are x1, y1, x2, y2 within the picture, the last two exclusive, none empty; `owners` are 0.
        """
        x1, y1, x2, y2 = boxes.numpy().T
        tops, bottoms = _edges(y1, y2, side)
        lefts, rights = _edges(x1, x2, side)
        means = np.empty((3, len(boxes), side, side), np.float32)
        # A crop at a time would be a loop over faces, all of them at once leave the cache.
        for first in range(0, len(boxes), _ROWS):
            part = slice(first, first + _ROWS)
            self._means(tops[part], bottoms[part], lefts[part], rights[part], means[:, part])
        return torch.from_numpy(means.transpose(1, 0, 2, 3))

    def _means(self, tops: Whole, bottoms: Whole, lefts: Whole, rights: Whole, out: NDArray[np.float32]) -> None:
        """Write the means over the rectangles of (…, rows) by (…, columns) to `out` (3, …, rows, columns)."""
        # A rectangle that is too large for the bits is the sum of parts of it.
        parts = 1
        highest, widest = int((bottoms - tops).max()), int((rights - lefts).max())
        while -(-highest // parts) * -(-widest // parts) > _MOST:
            parts += 1
        if parts == 1:
            _unpack(self._between(tops, bottoms, lefts, rights), out)
        else:
            out[...] = 0
            one = np.empty_like(out)
            for upper, lower in _split(tops, bottoms, parts):
                for left, right in _split(lefts, rights, parts):
                    _unpack(self._between(upper, lower, left, right), one)
                    out += one
        out /= ((bottoms - tops)[..., :, None] * (rights - lefts)[..., None, :]).astype(np.float32)

    def _between(self, tops: Whole, bottoms: Whole, lefts: Whole, rights: Whole) -> Whole:
        if tops.ndim == 1:  # of the whole picture: rows and columns one after the other are fewer look-ups
            rows = self._sums.take(bottoms, 0)
            rows -= self._sums.take(tops, 0)
            sums: Whole = rows.take(rights, 1)
            sums -= rows.take(lefts, 1)
            return sums
        stride = self._sums.shape[1]
        upper, lower = (tops * stride)[:, :, None], (bottoms * stride)[:, :, None]
        left, right = lefts[:, None, :], rights[:, None, :]
        flat = self._sums.reshape(-1)
        sums = flat.take(lower + right)
        sums -= flat.take(lower + left)
        sums -= flat.take(upper + right)
        sums += flat.take(upper + left)
        return sums


@dataclass(frozen=True, slots=True)
class AreaTable:
    """Sums over rectangles of several RGB pictures, on any device.

    `sums` is (P, 3) int32: the tables of all pictures one after another, each of (H + 1) * (W + 1) entries by rows;
    picture k begins at `starts[k]`, and its H, W are `sizes[k]`. In a large picture entries pass 2^31 and wrap around.
    Differences modulo 2^32 are still exact as long as one rectangle sums up to less, which is 8.4 million white
    pixels: a table of half the memory.
    """

    sums: Tensor
    starts: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, pictures: Sequence[Pixels], device: torch.device) -> "AreaTable":
        """Return the table of `pictures`, each (H, W, 3), on `device`."""
        sizes = tuple((p.shape[0], p.shape[1]) for p in pictures)
        ends = np.cumsum([(h + 1) * (w + 1) for h, w in sizes]).tolist()
        starts = (0, *ends[:-1])
        sums = torch.zeros(ends[-1], 3, dtype=torch.int32, device=device)
        for picture, start, end, (height, width) in zip(pictures, starts, ends, sizes, strict=True):
            table = sums[start:end].view(height + 1, width + 1, 3)
            table[1:, 1:] = torch.from_numpy(picture).to(device)
            table.copy_(table.cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32))
        return cls(sums, starts, sizes)

    def level(self, k: int, height: int, width: int) -> Tensor:
        """Return picture `k` scaled to (1, 3, height, width) float32 in levels 0 to 255, channels last in memory."""
        rows, columns = self.sizes[k]
        owner = torch.tensor([k], device=self.sums.device)
        return self._means(owner, torch.tensor([[0, 0, columns, rows]], device=self.sums.device), height, width)

    def crops(self, owners: Tensor, boxes: Tensor, side: int) -> Tensor:
        """Return the inside of each box scaled to (N, 3, side, side) float32 in levels 0 to 255, channels last.

        `owners` (N,) int64 says of which picture, `boxes` (N, 4) int64 are x1, y1, x2, y2 within it, the last two
        exclusive, none empty.
        """
        return self._means(owners, boxes, side, side)

    def _means(self, owners: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
        x1, y1, x2, y2 = boxes.unbind(1)
        lefts, rights = _device_edges(x1, x2, width)
        tops, bottoms = _device_edges(y1, y2, height)
        starts = torch.tensor(self.starts, device=boxes.device)[owners, None]
        strides = torch.tensor([w + 1 for _, w in self.sizes], device=boxes.device)[owners, None]
        upper, lower = starts + tops * strides, starts + bottoms * strides

        def corners(rows: Tensor, columns: Tensor) -> Tensor:
            places = rows[:, :, None] + columns[:, None, :]
            return self.sums.index_select(0, places.view(-1))

        sums = corners(lower, rights).sub_(corners(lower, lefts)).sub_(corners(upper, rights))
        sums.add_(corners(upper, lefts))
        counts = (bottoms - tops)[:, :, None] * (rights - lefts)[:, None, :]
        means = sums.view(-1, height, width, 3).float().div_(counts[..., None])  # (N, height, width, 3)
        return means.permute(0, 3, 1, 2)


def _edges(first: Whole, last: Whole, count: int) -> tuple[Whole, Whole]:
    """Return where each of `count` bins between `first` and `last` (N,) begins and ends, (N, count) each."""
    steps = np.arange(count + 1) * (last - first)[:, None]
    return first[:, None] + steps[:, :-1] // count, first[:, None] + (steps[:, 1:] + count - 1) // count


def _device_edges(first: Tensor, last: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Do as `_edges` for tensors."""
    steps = torch.arange(count + 1, device=first.device) * (last - first)[:, None]
    return first[:, None] + steps[:, :-1] // count, first[:, None] + (steps[:, 1:] + count - 1) // count


def _split(first: Whole, last: Whole, parts: int) -> list[tuple[Whole, Whole]]:
    """Return the `parts` intervals that follow one another between `first` and `last`."""
    ends = [first + (last - first) * part // parts for part in range(parts + 1)]
    return list(pairwise(ends))


def _unpack(sums: Whole, out: NDArray[np.float32]) -> None:
    """Write the three sums in each number (…) to `out` (3, …); `sums` is used up."""
    for colour in out[:2]:
        colour[...] = sums & _MASK
        sums >>= _BITS
    out[2] = sums & _MASK

"""MTCNN over a batch of pictures of any sizes: boxes and scores of faces.

Knows the three networks that facenet-pytorch ships, the pyramid before them and the bookkeeping between them. The
arithmetic follows facenet-pytorch's detect_face step by step, so that the same faces come out: boxes in its
conventions, areas with one pixel added where it adds one. What is new: one summed-area table per picture serves every
pyramid level and every crop, all crops of a batch go through R-Net and O-Net together, thresholds belong to a picture.
Deliberately knows nothing of Pillow, of models in memory, or of what is done with a face.

Method: Zhang et al., Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks (2016).
Summed-area tables: Crow, Summed-Area Tables for Texture Mapping (1984).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import nms

# The constants of facenet-pytorch's MTCNN; the threshold of the last stage comes with each picture.
PYRAMID_FACTOR = 0.709
PROPOSAL_CELL = 12  # P-Net looks at windows of 12 x 12 pixels, 2 apart
PROPOSAL_STRIDE = 2
PROPOSAL_THRESHOLD = 0.6
REFINE_THRESHOLD = 0.7
OVERLAP_IN_LEVEL = 0.5
OVERLAP = 0.7
REFINE_SIZE = 24
OUTPUT_SIZE = 48
CROPS_AT_ONCE = 512  # bounds memory when a batch has thousands of candidates


class Stage(nn.Module):
    """P-, R- or O-Net with its preprocessing; `body` is what lower precisions cast.

    Levels 0 to 255 (N, 3, H, W) float32 in; out comes (N, 5) float32, for P-Net (N, 5, h, w): four shifts and the
    probability of a face.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, levels: Tensor) -> Tensor:
        standardised = (levels - 127.5) * 0.0078125
        # O-Net has five landmarks between shifts and probabilities, which nobody asks for.
        shifts, *_, probabilities = self.body(standardised.to(next(self.body.parameters()).dtype))
        return torch.cat([shifts, probabilities[:, 1:]], dim=1).float()


@dataclass(frozen=True, slots=True)
class Nets:
    """The three stages on one device, each (N, 3, H, W) to (N, 5, …) as Stage says."""

    proposal: Callable[[Tensor], Tensor]
    refine: Callable[[Tensor], Tensor]
    output: Callable[[Tensor], Tensor]
    device: torch.device


@dataclass(frozen=True, slots=True)
class AreaTable:
    """Sums over rectangles of several RGB pictures, four look-ups each.

    `sums` is (P, 3) int32: the tables of all pictures one after another, each of (H + 1) * (W + 1) entries by rows;
    picture k begins at `starts[k]`, and its H, W are `sizes[k]`. In a large picture entries pass 2^31 and wrap around.
    Differences modulo 2^32 are still exact as long as one rectangle sums up to less, which is 8.4 million white
    pixels: a table of half the memory.
    """

    sums: Tensor
    starts: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]


def load_stages() -> tuple[Stage, Stage, Stage]:
    """Return P-, R- and O-Net on the CPU with the weights that facenet-pytorch ships."""
    proposal, refine, output = (
        Stage(net().to(memory_format=torch.channels_last)).eval().requires_grad_(False) for net in (PNet, RNet, ONet)
    )
    return proposal, refine, output


@torch.inference_mode()
def detect(
    nets: Nets, pictures: Sequence[NDArray[np.uint8]], min_scores: Sequence[float], min_face: int
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return the boxes (N, 4) and scores (N,) of the faces in each picture, highest score first.

    Pictures are (H, W, 3) RGB. Boxes are x1, y1, x2, y2 in pixels and may reach past the edge. `min_scores[k]` is what
    O-Net must exceed in picture k, `min_face` the side in pixels of the smallest face to look for. A picture with a
    side below `min_face` has none.
    """
    table = area_table(pictures, nets.device)
    proposals = [_propose(nets.proposal, table, k, min_face) for k in range(len(pictures))]
    boxes = torch.cat(proposals)
    owners = torch.cat([torch.full((len(p),), k, device=nets.device) for k, p in enumerate(proposals)])

    boxes, owners, shifts, scores = _examine(nets.refine, table, boxes, owners, REFINE_SIZE)
    keep = scores > REFINE_THRESHOLD
    boxes, owners, shifts, scores = boxes[keep], owners[keep], shifts[keep], scores[keep]
    keep = _suppress_by_picture(boxes, scores, owners, len(pictures))
    boxes, owners = _squared(_shifted(boxes[keep], shifts[keep])), owners[keep]

    boxes, owners, shifts, scores = _examine(nets.output, table, boxes, owners, OUTPUT_SIZE)
    keep = scores > torch.tensor(min_scores, dtype=torch.float32, device=nets.device)[owners]
    boxes, owners, scores = _shifted(boxes[keep], shifts[keep]), owners[keep], scores[keep]
    found, ranks, owner = boxes.cpu().numpy(), scores.cpu().numpy(), owners.cpu().numpy()
    faces = []
    for k in range(len(pictures)):
        own_boxes, own_ranks = found[owner == k], ranks[owner == k]
        picks = suppress_by_smaller(own_boxes, own_ranks, OVERLAP)
        faces.append((own_boxes[picks], own_ranks[picks]))
    return faces


def area_table(pictures: Sequence[NDArray[np.uint8]], device: torch.device) -> AreaTable:
    """Return the summed-area table of `pictures`, each (H, W, 3), on `device`."""
    sizes = tuple((p.shape[0], p.shape[1]) for p in pictures)
    ends = np.cumsum([(h + 1) * (w + 1) for h, w in sizes]).tolist()
    starts = (0, *ends[:-1])
    sums = torch.zeros(ends[-1], 3, dtype=torch.int32, device=device)
    for picture, start, end, (height, width) in zip(pictures, starts, ends, sizes, strict=True):
        table = sums[start:end].view(height + 1, width + 1, 3)
        table[1:, 1:] = torch.from_numpy(picture).to(device)
        if device.type == "cpu":
            # torch.cumsum down the columns of a wide table misses the cache at each step: adding rows and summing up
            # one channel at a time takes a quarter of the time.
            rows = table.view(height + 1, -1).unbind(0)
            for above, row in pairwise(rows):
                row.add_(above)
            for channel in table.unbind(2):
                torch.cumsum(channel, 1, dtype=torch.int32, out=channel)
        else:
            table.copy_(table.cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32))
    return AreaTable(sums, starts, sizes)


def resample(table: AreaTable, owners: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Return the inside of each box as (N, 3, height, width) float32 in levels 0 to 255, channels last in memory.

    `owners` (N,) int64 says of which picture, `boxes` (N, 4) int64 are x1, y1, x2, y2 within it, the last two
    exclusive, none empty. This is torch's interpolate with mode "area": pixel i of n is the mean of the source
    pixels floor(i * size / n) up to, not including, ceil((i + 1) * size / n).
    """
    x1, y1, x2, y2 = boxes.unbind(1)
    lefts, rights = _edges(x1, x2, width)
    tops, bottoms = _edges(y1, y2, height)
    starts = torch.tensor(table.starts, device=boxes.device)[owners, None]
    strides = torch.tensor([w + 1 for _, w in table.sizes], device=boxes.device)[owners, None]
    upper, lower = starts + tops * strides, starts + bottoms * strides

    def corners(rows: Tensor, columns: Tensor) -> Tensor:
        places = rows[:, :, None] + columns[:, None, :]
        return table.sums.index_select(0, places.view(-1))

    sums = corners(lower, rights).sub_(corners(lower, lefts)).sub_(corners(upper, rights)).add_(corners(upper, lefts))
    counts = (bottoms - tops)[:, :, None] * (rights - lefts)[:, None, :]
    means = sums.view(-1, height, width, 3).float().div_(counts[..., None])  # (N, height, width, 3)
    return means.permute(0, 3, 1, 2)


def pyramid(height: int, width: int, min_face: int) -> Iterator[tuple[float, int, int]]:
    """Yield scale, height and width of the levels at which faces of `min_face` pixels and more fill P-Net's window."""
    scale = PROPOSAL_CELL / min_face
    side = min(height, width) * scale
    while side >= PROPOSAL_CELL:
        yield scale, int(height * scale + 1), int(width * scale + 1)
        scale *= PYRAMID_FACTOR
        side *= PYRAMID_FACTOR


def suppress_by_smaller(boxes: NDArray[np.float32], scores: NDArray[np.float32], overlap: float) -> NDArray[np.intp]:
    """Return the indices of the boxes (N, 4) to keep, highest score first.

    A box goes if it shares more than `overlap` of the smaller of both areas with a better one: facenet-pytorch's "Min"
    criterion, which drops a face inside a face. Pixels count whole, so a side is x2 - x1 + 1.
    """
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    # Two boxes that differ by parts of a pixel have the same crop and equal scores. NumPy's default sort, which depends
    # on the CPU, then chooses between them exactly as in facenet-pytorch; a stable one would choose the other at times.
    waiting = np.argsort(scores)[::-1]
    picks = []
    while waiting.size:
        best, rest = waiting[0], waiting[1:]
        picks.append(best)
        widths = np.maximum(np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest]) + 1, 0)
        heights = np.maximum(np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest]) + 1, 0)
        waiting = rest[widths * heights / np.minimum(areas[best], areas[rest]) <= overlap]
    return np.array(picks, dtype=np.intp)


def _propose(net: Callable[[Tensor], Tensor], table: AreaTable, k: int, min_face: int) -> Tensor:
    """Return P-Net's candidates in picture `k` as squares (N, 4)."""
    device = table.sums.device
    height, width = table.sizes[k]
    owner = torch.tensor([k], device=device)
    whole = torch.tensor([[0, 0, width, height]], device=device)
    levels = [torch.zeros(0, 9, device=device)]
    for scale, level_height, level_width in pyramid(height, width, min_face):
        maps = net(resample(table, owner, whole, level_height, level_width))[0]  # (5, h, w)
        found = _windows(maps[:4], maps[4], scale)
        levels.append(found[nms(found[:, :4], found[:, 4], OVERLAP_IN_LEVEL)])
    found = torch.cat(levels)
    found = found[nms(found[:, :4], found[:, 4], OVERLAP)]
    boxes, shifts = found[:, :4], found[:, 5:]
    # Unlike the later stages P-Net's shifts are in sides of x2 - x1, without the extra pixel.
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return _squared(boxes + shifts * sides)


def _windows(shifts: Tensor, scores: Tensor, scale: float) -> Tensor:
    """Return box, score and shifts (N, 9) of the windows of one level, from maps (4, h, w) and (h, w)."""
    hits = scores >= PROPOSAL_THRESHOLD
    corners = hits.nonzero().flip(1).float() * PROPOSAL_STRIDE + 1  # (N, 2) as x, y
    # Divided by a tensor: CUDA would multiply by the reciprocal of a number, and floor would fall on the other side.
    divisor = torch.tensor(scale, device=scores.device)
    boxes = torch.cat([corners / divisor, (corners + (PROPOSAL_CELL - 1)) / divisor], 1).floor()
    return torch.cat([boxes, scores[hits][:, None], shifts[:, hits].T], 1)


def _examine(
    net: Callable[[Tensor], Tensor], table: AreaTable, boxes: Tensor, owners: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Show the crops of `boxes` (N, 4) to R-Net or O-Net.

    Return the boxes and owners of which something lies inside the picture, with their shifts (M, 4) and scores (M,).
    """
    inside = _inside(boxes, owners, table.sizes)
    keep = ((inside[:, 2:] > inside[:, :2]).all(1)).nonzero()[:, 0]
    boxes, owners, inside = boxes[keep], owners[keep], inside[keep]
    shifts, scores = [boxes.new_zeros(0, 4)], [boxes.new_zeros(0)]
    for i in range(0, len(boxes), CROPS_AT_ONCE):
        part = slice(i, i + CROPS_AT_ONCE)
        rows = net(resample(table, owners[part], inside[part], size, size))  # (M, 5)
        shifts.append(rows[:, :4])
        scores.append(rows[:, 4])
    return boxes, owners, torch.cat(shifts), torch.cat(scores)


def _inside(boxes: Tensor, owners: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Return the pixels (N, 4) int64 of `boxes` within their pictures, x1, y1 inclusive and x2, y2 exclusive."""
    # Coordinates count from 1 and both ends belong to the box, so what is cut off first is one pixel less.
    limits = torch.tensor([(w, h) for h, w in sizes], device=boxes.device)[owners]
    whole = boxes.trunc().long()
    return torch.cat([whole[:, :2].clamp(min=1) - 1, torch.minimum(whole[:, 2:], limits)], 1)


def _suppress_by_picture(boxes: Tensor, scores: Tensor, owners: Tensor, pictures: int) -> Tensor:
    # One call per picture: offsets that keep the pictures apart in one call would round coordinates, and then a
    # result would depend on the neighbours in the batch.
    own = [(owners == k).nonzero()[:, 0] for k in range(pictures)]
    return torch.cat([o[nms(boxes[o], scores[o], OVERLAP)] for o in own])


def _shifted(boxes: Tensor, shifts: Tensor) -> Tensor:
    return boxes + shifts * (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)


def _squared(boxes: Tensor) -> Tensor:
    sides = boxes[:, 2:] - boxes[:, :2]
    side = sides.max(1, keepdim=True).values
    corners = boxes[:, :2] + sides * 0.5 - side * 0.5
    return torch.cat([corners, corners + side], 1)


def _edges(first: Tensor, last: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return where each of `count` bins between `first` and `last` (N,) begins and ends, (N, count) each."""
    steps = torch.arange(count + 1, device=first.device)
    spans = (last - first)[:, None]
    return first[:, None] + steps[:-1] * spans // count, first[:, None] + (steps[1:] * spans + count - 1) // count

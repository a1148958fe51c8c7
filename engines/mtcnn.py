"""MTCNN over a batch of pictures of any sizes: boxes and scores of faces.

Knows the three networks that facenet-pytorch ships, the pyramid before them and the bookkeeping between them. The
arithmetic follows facenet-pytorch's detect_face step by step, so that the same faces come out: boxes in its
conventions, areas with one pixel added where it adds one. What is new: all crops go through R-Net and O-Net together,
levels and crops come from one table per picture (area.py), thresholds belong to a picture. On a processor pictures and
levels are spread over threads, each of which does its own work from the pixels to the boxes: that scales, the many
small operations in between do not. On a GPU the pictures of a batch share their operations.
Deliberately knows nothing of Pillow, of models in memory, or of what is done with a face.

Method: Zhang et al., Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks (2016).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import nms

from engines.area import AreaTable, PackedTable

T = TypeVar("T")
Table = AreaTable | PackedTable
Found = tuple[NDArray[np.float32], NDArray[np.float32]]  # boxes and scores of one picture

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
# A probability of two exceeds the threshold where the difference of their logits exceeds this.
_PROPOSAL_LOGIT = math.log(PROPOSAL_THRESHOLD / (1 - PROPOSAL_THRESHOLD))
_CENTRE, _SCALE = 127.5, 0.0078125  # of the levels that the networks were trained with


class Proposal(nn.Module):
    """P-Net with its preprocessing; `body` is what lower precisions cast.

    Levels 0 to 255 (N, 3, H, W) float32 in; out comes (N, 5, h, w) float32: four shifts, and by how much the logit of a
    face exceeds that of none. The scaling of levels is folded into the first convolution, whose bias it only moves
    since nothing is padded, and the two logits into one: the same function of maps that need not be made.
    """

    def __init__(self, network: PNet) -> None:
        super().__init__()
        first, shifts, logits = network.conv1, network.conv4_2, network.conv4_1
        scaled = nn.Conv2d(3, first.out_channels, first.kernel_size)
        last = nn.Conv2d(shifts.in_channels, 5, 1)
        with torch.no_grad():
            scaled.weight.copy_(first.weight * _SCALE)
            scaled.bias.copy_(first.bias - _CENTRE * scaled.weight.sum((1, 2, 3)))  # type: ignore[union-attr]  # has one
            last.weight.copy_(torch.cat([shifts.weight, logits.weight[1:] - logits.weight[:1]]))
            last.bias.copy_(torch.cat([shifts.bias, logits.bias[1:] - logits.bias[:1]]))  # type: ignore[union-attr]  # the same
        self.body = nn.Sequential(
            *(scaled, network.prelu1, network.pool1),
            *(network.conv2, network.prelu2, network.conv3, network.prelu3),
            last,
        )

    def forward(self, levels: Tensor) -> Tensor:
        maps: Tensor = self.body(levels.to(next(self.body.parameters()).dtype))
        return maps.float()


class Stage(nn.Module):
    """R- or O-Net with its preprocessing; `body` is what lower precisions cast.

    Levels 0 to 255 (N, 3, side, side) float32 in; out comes (N, 5) float32: four shifts and the probability of a face.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, levels: Tensor) -> Tensor:
        standardised = (levels - _CENTRE) * _SCALE
        # O-Net has five landmarks between shifts and probabilities, which nobody asks for.
        shifts, *_, probabilities = self.body(standardised.to(next(self.body.parameters()).dtype))
        return torch.cat([shifts, probabilities[:, 1:]], dim=1).float()


@dataclass(frozen=True, slots=True)
class Nets:
    """The three networks on one device, as Proposal and Stage say.

    With a `pool` they may be called by several of its threads at the same time.
    """

    proposal: Callable[[Tensor], Tensor]
    refine: Callable[[Tensor], Tensor]
    output: Callable[[Tensor], Tensor]
    device: torch.device
    pool: Executor | None = None


def load_stages() -> tuple[Proposal, Stage, Stage]:
    """Return P-, R- and O-Net on the CPU with the weights that facenet-pytorch ships."""
    proposal, refine, output = Proposal(PNet()), Stage(RNet()), Stage(ONet())
    for network in (proposal, refine, output):
        body: Any = network.body  # its overloads know no memory formats
        body.to(memory_format=torch.channels_last)
        network.eval().requires_grad_(False)
    return proposal, refine, output


def detect(
    nets: Nets, pictures: Sequence[NDArray[np.uint8]], min_scores: Sequence[float], min_face: int
) -> list[Found]:
    """Return the boxes (N, 4) and scores (N,) of the faces in each picture, highest score first.

    Pictures are (H, W, 3) RGB. Boxes are x1, y1, x2, y2 in pixels and may reach past the edge. `min_scores[k]` is what
    O-Net must exceed in picture k, `min_face` the side in pixels of the smallest face to look for. A picture with a
    side below `min_face` has none.
    """
    run = _apart if nets.device.type == "cpu" else _together
    return run(nets, pictures, min_scores, min_face)


def _apart(
    nets: Nets, pictures: Sequence[NDArray[np.uint8]], min_scores: Sequence[float], min_face: int
) -> list[Found]:
    """Do as `detect`: picture by picture, spread over the pool where there is one."""

    def spread(function: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
        return list((nets.pool.map if nets.pool else map)(function, *arguments))

    tables = spread(PackedTable, pictures)
    levels = [(k, level) for k, table in enumerate(tables) for level in pyramid(*table.sizes[0], min_face)]
    found = spread(
        lambda k, level: _proposed(nets.proposal, tables[k], 0, *level),
        *(zip(*levels, strict=True) if levels else ((), ())),
    )
    own = [[windows for (k, _), windows in zip(levels, found, strict=True) if k == j] for j in range(len(tables))]

    def decided(table: PackedTable, windows: Sequence[Tensor], min_score: float) -> Found:
        (faces,) = _decided(nets, table, [_merged(windows, nets.device)], [min_score])
        return faces

    return spread(decided, tables, own, min_scores)


def _together(
    nets: Nets, pictures: Sequence[NDArray[np.uint8]], min_scores: Sequence[float], min_face: int
) -> list[Found]:
    """Do as `detect`: the candidates of all pictures go through R-Net and O-Net together."""
    table = AreaTable.of(pictures, nets.device)
    proposals = [
        _merged([_proposed(nets.proposal, table, k, *level) for level in pyramid(*size, min_face)], nets.device)
        for k, size in enumerate(table.sizes)
    ]
    return _decided(nets, table, proposals, min_scores)


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


@torch.inference_mode()
def _proposed(net: Callable[[Tensor], Tensor], table: Table, k: int, scale: float, height: int, width: int) -> Tensor:
    """Return the windows of one level of picture `k` that P-Net takes for faces: box, score, shifts (N, 9)."""
    maps = net(table.level(k, height, width))[0]  # (5, h, w)
    found = _windows(maps[:4], maps[4], scale)
    return found[nms(found[:, :4], found[:, 4], OVERLAP_IN_LEVEL)]


@torch.inference_mode()
def _merged(levels: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the candidates of all levels of a picture as squares (N, 4)."""
    found = torch.cat([torch.zeros(0, 9, device=device), *levels])
    found = found[nms(found[:, :4], found[:, 4], OVERLAP)]
    boxes, shifts = found[:, :4], found[:, 5:]
    # Unlike the later stages P-Net's shifts are in sides of x2 - x1, without the extra pixel.
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return _squared(boxes + shifts * sides)


@torch.inference_mode()
def _decided(nets: Nets, table: Table, proposals: Sequence[Tensor], min_scores: Sequence[float]) -> list[Found]:
    """Return boxes and scores of the faces among the candidates (N, 4) of each picture."""
    boxes = torch.cat(list(proposals))
    owners = torch.cat([torch.full((len(p),), k, device=nets.device) for k, p in enumerate(proposals)])

    boxes, owners, shifts, scores = _examine(nets.refine, table, boxes, owners, REFINE_SIZE)
    keep = scores > REFINE_THRESHOLD
    boxes, owners, shifts, scores = boxes[keep], owners[keep], shifts[keep], scores[keep]
    keep = _suppress_by_picture(boxes, scores, owners, len(proposals))
    boxes, owners = _squared(_shifted(boxes[keep], shifts[keep])), owners[keep]

    boxes, owners, shifts, scores = _examine(nets.output, table, boxes, owners, OUTPUT_SIZE)
    keep = scores > torch.tensor(min_scores, dtype=torch.float32, device=nets.device)[owners]
    boxes, owners, scores = _shifted(boxes[keep], shifts[keep]), owners[keep], scores[keep]
    found, ranks, owner = boxes.cpu().numpy(), scores.cpu().numpy(), owners.cpu().numpy()
    faces = []
    for k in range(len(proposals)):
        own_boxes, own_ranks = found[owner == k], ranks[owner == k]
        picks = suppress_by_smaller(own_boxes, own_ranks, OVERLAP)
        faces.append((own_boxes[picks], own_ranks[picks]))
    return faces


def _windows(shifts: Tensor, logits: Tensor, scale: float) -> Tensor:
    """Return box, score and shifts (N, 9) of the windows of one level, from maps (4, h, w) and (h, w)."""
    hits = (logits >= _PROPOSAL_LOGIT).nonzero()
    rows, columns = hits.unbind(1)
    corners = hits.flip(1).float() * PROPOSAL_STRIDE + 1  # (N, 2) as x, y
    # Divided by a tensor: CUDA would multiply by the reciprocal of a number, and floor would fall on the other side.
    divisor = torch.tensor(scale, device=logits.device)
    boxes = torch.cat([corners / divisor, (corners + (PROPOSAL_CELL - 1)) / divisor], 1).floor()
    return torch.cat([boxes, logits[rows, columns].sigmoid()[:, None], shifts[:, rows, columns].T], 1)


def _examine(
    net: Callable[[Tensor], Tensor], table: Table, boxes: Tensor, owners: Tensor, size: int
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
        rows = net(table.crops(owners[part], inside[part], size))  # (M, 5)
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

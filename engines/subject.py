"""What is built, examined and stored as one: a network that turns rows into vectors, or the detector's three.

Knows how each sort is held against eager float32 and timed. Does not know how engines are made, nor where they are
kept.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engines import machine, mtcnn, parity, samples
from engines.engine import (
    MAX_BATCH,
    Choice,
    Engine,
    Layout,
    Network,
    Precision,
    Spec,
    Subject,
    given,
    host_of,
    powers_of_two,
)
from engines.errors import BuildFailed
from engines.fitting import Fitting
from engines.key import weights_hash
from engines.model import Info, Kind
from engines.parity import Report
from engines.transfer import Transfer

FEWEST = 8  # inputs that int8 is calibrated on: fewer leave too much of what will come outside of the ranges
PICTURES_AT_ONCE = 8  # more do not run faster on a CPU, and the tables of eight large photos fill a gigabyte
SIDES = {"refine": mtcnn.REFINE_SIZE, "output": mtcnn.OUTPUT_SIZE}  # of crops, by network
SCORE = 0.7  # what a face must exceed where a detector is examined
# Crops come in any number, and the nearest of these above it is filled up: with 3 to 10 % where there are many.
CROP_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, *range(24, 65, 8), *range(96, mtcnn.CROPS_AT_ONCE + 1, 32))


@dataclass(frozen=True, slots=True)
class Cut:
    """Some of the inputs in the shape in which the server runs them, as texts that are cut to a length."""

    label: str
    rows: tuple[int, ...]
    inputs: Tensor  # (len(rows), …)


class Vectors:
    """One network that turns rows into vectors: a tower, or the recogniser."""

    buckets = powers_of_two(MAX_BATCH)
    splits = True
    no_int8 = ""

    def __init__(
        self,
        model: str,
        kind: Kind,
        network: Network,
        inputs: Tensor,
        cuts: Sequence[Cut],
        preparation: str,
        untrained: bool,
        weights: str,
        device: torch.device,
        calibrate: Callable[[], Sequence[Tensor]],
    ) -> None:
        """`inputs` (N, *item) are real ones, in full; `cuts` are those that fit shorter shapes, the shortest first.

        `calibrate` returns others to measure the ranges of int8 on, each in the shape in which the server runs it.
        """
        self.model = model
        self.kind = kind
        self.networks: tuple[Network, ...] = (network,)
        self.preparation = preparation
        self.weights = weights
        self.untrained = untrained
        self.device = device
        self._calibrate = calibrate
        self._inputs = inputs
        self._cuts = (*cuts, Cut("in full", tuple(range(len(inputs))), inputs))

    @cached_property
    def expected(self) -> Tensor:
        """What eager float32 says to all inputs in full, one by one: (N, dim)."""
        (module,) = _in_float32(self.networks, self.device)
        return _one_by_one(module, self._inputs, self.device)

    def specs(self, precision: Precision, layout: Layout, buckets: Sequence[int]) -> tuple[Spec, ...]:
        """Return what to build, for batches of `buckets` rows."""
        return (self.networks[0].spec(precision, self.device, layout, tuple(buckets)),)

    def calibration(self) -> tuple[Tensor, ...]:
        """Return batches (1, …) to measure the ranges of int8 on, none of which the gate examines; BuildFailed."""
        examined = [row for cut in self._cuts for row in cut.inputs]
        rows = [row for row in self._calibrate() if not any(torch.equal(row, other) for other in examined)]
        if len(rows) < FEWEST:
            raise BuildFailed(f"{len(rows)} inputs are too few to calibrate int8 on: give at least {FEWEST} others.")
        return tuple(row[None] for row in rows)

    def examine(self, engines: Sequence[Engine], precision: Precision, buckets: Sequence[int]) -> Report:
        """Hold the engine against eager float32 in every shape that the server uses."""
        run = Fitting(engines[0], buckets)
        return parity.worst(
            {
                cut.label: parity.examine(self.expected[list(cut.rows)], run, cut.inputs, buckets, precision)
                for cut in self._cuts
            }
        )

    def batch(self, engines: Sequence[Engine], items: int) -> Callable[[], object]:
        """Return a function that runs `items` rows of the shortest shape to the end."""
        inputs = self._cuts[0].inputs.numpy()
        rows = [inputs[i % len(inputs)] for i in range(items)]
        engine = Fitting(engines[0], (items,))
        transfer = Transfer(host_of(self.device), (items,))
        return lambda: transfer.run(engine, transfer.upload(rows))


class Stages:
    """P-, R- and O-Net, which find the same faces together or not at all."""

    model = "mtcnn"
    kind: Kind = "detection"
    preparation = "a pyramid and crops of the picture by area means"
    untrained = False
    buckets = powers_of_two(PICTURES_AT_ONCE)
    splits = False  # its streams are not measured but given
    no_int8 = "the detector is not built in it, since its boxes move in bfloat16 already"
    min_face = 20  # of a picture that is examined or timed: the hardest that is usual

    def __init__(self, stages: tuple[mtcnn.Proposal, mtcnn.Stage, mtcnn.Stage], device: torch.device) -> None:
        self.device = device
        self._pictures = samples.crowds()
        self._crops = {name: _levels(side) for name, side in SIDES.items()}
        proposal, *others = stages
        crops = [
            Network(
                name=name, make=given(stage), item=(3, side, side), dtype=torch.float32, example=self._crops[name][:2]
            )
            for stage, (name, side) in zip(others, SIDES.items(), strict=True)
        ]
        self.networks = (_proposal(proposal), *crops)
        self.weights = weights_hash(self.networks)

    @cached_property
    def expected(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """The faces that eager float32 finds, picture by picture."""
        proposal, refine, output = _in_float32(self.networks, self.device)
        return self._singly(mtcnn.Nets(proposal, refine, output, host_of(self.device)))

    def specs(self, precision: Precision, layout: Layout, buckets: Sequence[int]) -> tuple[Spec, ...]:
        """Return what to build of each stage; the number of pictures in a batch changes nothing of it.

        On a processor each core has a copy: pictures, and levels of one, run beside each other.
        """
        if self.device.type == "cpu":
            layout = replace(layout, streams=1, copies=layout.threads or machine.cores())
        rows = ((1,), CROP_BUCKETS, CROP_BUCKETS)
        return tuple(
            network.spec(precision, self.device, layout, own) for network, own in zip(self.networks, rows, strict=True)
        )

    def calibration(self) -> tuple[Tensor, ...]:
        """Raise BuildFailed."""
        raise BuildFailed(f"No int8: {self.no_int8}.")

    def examine(self, engines: Sequence[Engine], precision: Precision, buckets: Sequence[int]) -> Report:
        """Hold the three against eager float32: the same faces, picture by picture and all in one batch."""
        nets = detector_nets(engines)
        scores = [SCORE] * len(self._pictures)
        together = mtcnn.detect(nets, self._pictures, scores, self.min_face)
        reports = {"faces": parity.examine_faces(self.expected, self._singly(nets), together, precision)}
        # The pictures have crops in some numbers; a photo may have them in any.
        for network, engine in zip(self.networks[1:], engines[1:], strict=True):
            (module,) = _in_float32([network], self.device)
            crops = self._crops[network.name]
            answers = _one_by_one(module, crops, self.device)
            run = Fitting(engine, CROP_BUCKETS)
            reports[network.name] = parity.examine(answers, run, crops, CROP_BUCKETS, precision)
        return parity.worst(reports)

    def batch(self, engines: Sequence[Engine], items: int) -> Callable[[], object]:
        """Return a function that looks for faces in `items` copies of a picture with many."""
        nets = detector_nets(engines)
        return lambda: mtcnn.detect(nets, [self._pictures[1]] * items, [SCORE] * items, self.min_face)

    def _singly(self, nets: mtcnn.Nets) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        return [face for picture in self._pictures for face in mtcnn.detect(nets, [picture], [SCORE], self.min_face)]


def info_of(subject: Subject, choice: Choice, remark: str = "") -> Info:
    """Return what a model that runs on `choice` tells of itself; `remark` is added to the reason."""
    first = choice.engines[0]
    return Info(
        name=subject.model,
        kind=subject.kind,
        device=str(first.device),
        backend=first.backend,
        precision=first.precision,
        reason="; ".join(part for part in (choice.reason, remark) if part),
        untrained=subject.untrained,
        bytes=choice.bytes,
        built=choice.built,
    )


def detector_nets(engines: Sequence[Engine]) -> mtcnn.Nets:
    """Return the engines of P-, R- and O-Net as the detector takes them: compiled ones get few numbers of crops."""
    proposal, refine, output = engines
    device = host_of(refine.device)
    if refine.backend == "eager" and device.type == "cpu":  # takes any number as it is
        return mtcnn.Nets(proposal, refine, output, device)
    fitted = (Fitting(proposal, (1,)), Fitting(refine, CROP_BUCKETS), Fitting(output, CROP_BUCKETS))
    # PyTorch's own operations spread over the cores by themselves, which threads beside each other would fight for.
    beside = refine.backend == "openvino" and device.type == "cpu"
    return mtcnn.Nets(*fitted, device, ThreadPoolExecutor(machine.cores(), "faces") if beside else None)


def _in_float32(networks: Sequence[Network], device: torch.device) -> list[nn.Module]:
    """Return the networks where they are compared: on a GPU of CUDA as copies, else as they are."""
    if device.type != "cuda":
        return [network.module for network in networks]
    return [deepcopy(network.module).to(device) for network in networks]


@torch.inference_mode()
def _one_by_one(module: nn.Module, rows: Tensor, device: torch.device) -> Tensor:
    """Return what `module` says to each of `rows` (N, …) alone, (N, …) on the host."""
    return torch.cat([module(row.to(host_of(device))[None]).cpu() for row in rows])


def _proposal(stage: mtcnn.Proposal) -> Network:
    picture = samples.crowds()[0]
    levels = torch.from_numpy(picture[:96, :120]).permute(2, 0, 1)[None].float()
    return Network(
        name="proposal",
        make=given(stage),
        item=(3, 96, 120),
        dtype=torch.float32,
        example=torch.cat([levels, levels.flip(3)]),
        # The pyramid adds a pixel to each side of a level.
        free=((1, mtcnn.PROPOSAL_CELL + 1, 65_536), (2, mtcnn.PROPOSAL_CELL + 1, 65_536)),
    )


def _levels(side: int) -> Tensor:
    """Return crops as the detector cuts them out, (N, 3, side, side) float32."""
    return torch.from_numpy(samples.faces(side)).permute(0, 3, 1, 2).float()

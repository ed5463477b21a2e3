"""Validation within the time: which cases are predicted, where it ends early, and what is chosen on them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.cache import CaseRecord
from metaseg_cli.core.counts import counted
from metaseg_cli.core.model_file import Pruned
from metaseg_cli.core.models.network import Network, Prunable
from metaseg_cli.core.training.detections import CaseDetections, ValidationScore
from metaseg_cli.core.training.experiment import Experiment, Session
from metaseg_cli.core.training.full_volume import CasePart, CasePredictor, OutOfTime, PreviewSlice, Watch
from metaseg_cli.core.training.select_postprocessing import (
    SelectedPostprocessing,
    best_threshold_score,
    select_postprocessing,
)

_SELECTION = 15  # times as long the selection of post-processing takes as the score of an epoch
_WARM_UP = 0.05  # of the time: where the first measurement takes less, a second one, without the warming up, counts

Item = TypeVar("Item")
Keep = Callable[[CasePart, NDArray[np.float16]], None]


@dataclass(frozen=True)
class Validation:
    """Score (None where nothing could be validated), detections and slices of one epoch."""

    score: ValidationScore | None
    cases: list[CaseDetections]
    previews: list[PreviewSlice]


class Validator:
    """Predicts the validation cases of *experiment*: all of them, or what a limit of time allows.

    ``parts`` are what every validation predicts, so that the scores of epochs can be compared. ``best_cases`` are the
    detections by the best weights, empty in a resumed run until an epoch is better.
    """

    def __init__(self, experiment: Experiment, session: Session, predictor: CasePredictor) -> None:
        self.experiment, self.session, self.predictor = experiment, session, predictor
        self.parts = [CasePart.whole(record) for record in spread(experiment.data.validation)]
        self.best_cases: list[CaseDetections] = []
        self.selection_seconds = 0.0  # that the selection of post-processing is expected to take

    @property
    def is_reduced(self) -> bool:
        """Whether cases or slices are left out."""
        return self.voxels < sum(CasePart.whole(record).voxels for record in self.experiment.data.validation)

    @property
    def voxels(self) -> int:
        """Voxels of a validation."""
        return sum(part.voxels for part in self.parts)

    def measure(self, model: Network) -> None:
        """Predict some slices of one case to see what a validation takes, and leave out what is too much."""
        plan, record = self.experiment.plan, self.parts[0].record
        # For a 2D network as many as half a step has: a third of its time goes forwards.
        of_half_a_step = plan.batch_size * math.prod(plan.patch) / 2
        part = self._cut(record, of_half_a_step / math.prod(record.shape) if plan.dims == 2 else 0.0)
        for _ in range(2):
            began = self.session.budget.clock()
            self.predictor.detections(model, [part], self._no_watch())
            took = self.session.group.all_reduce_max([self.session.budget.clock() - began])[0]
            if took > _WARM_UP * self.session.budget.limit:
                break
        self.session.budget.validation_took(took, part.voxels)
        self._choose_parts()

    def score_epoch(self, model: Network, best_score: float) -> tuple[Validation, float]:
        """Score *model* with the threshold that suits it best; return also the score to exceed.

        This is *best_score*, or that of ``best_cases`` where now fewer cases are validated.
        """
        previews: list[PreviewSlice] = []
        first = best_score < 0
        following = self.experiment.final_validations - 1
        cases = self._run(model, following=following, required=first, previews=previews)
        if len(cases) < len(self.parts):
            self._reduce(len(cases))
            names = {case.case for case in cases}
            self.best_cases = [case for case in self.best_cases if case.case in names]
            if self.best_cases:
                best_score = self._score(self.best_cases).score
        return Validation(self._score(cases) if cases else None, cases, previews), best_score

    def select(self, model: Network, keep: Keep) -> tuple[SelectedPostprocessing, int]:
        """Choose post-processing and temperature for the best *model*; return also on how many cases."""
        cases = self._run(model, following=0, required=True, keep=keep)
        if len(cases) < len(self.best_cases):  # time ran out: these are of the same weights
            cases = self.best_cases
        return self._selected(cases), len(cases)

    def score_depths(self, model: Network) -> dict[int, Pruned]:
        """Score a prunable network at each depth below its full one, as far as time allows."""
        if not isinstance(model, Prunable) or not model.deep_supervision:
            return {}
        scored = {}
        for depth in range(1, model.depth):
            cases = self._run(model.pruned(depth), following=0, required=False)
            if len(cases) < len(self.parts):
                self.session.progress.say("no time is left to score the network at lower depths")
                break
            selected = self._selected(cases)
            assert selected.score is not None
            scored[depth] = Pruned(
                score=selected.score.score,
                temperature=selected.temperature,
                postprocessing=selected.postprocessing,
                operating_points=selected.operating_points,
            )
        return scored

    def _run(
        self,
        model: Network,
        *,
        following: int,
        required: bool,
        previews: list[PreviewSlice] | None = None,
        keep: Keep | None = None,
    ) -> list[CaseDetections]:
        """Return what *model* detects in ``parts``, or in the first of them where time runs out.

        So much is predicted that *following* more validations can do the same in what is left. *required*: at least one
        part is, whatever it takes.
        """
        limited = _LimitedWatch(self.session, following=following, required=required)
        watch = limited.watch() if self.session.budget.limited else self._no_watch()
        watch = dataclasses.replace(watch, measured=_Announced(watch.measured, self.session, len(self.parts)))
        return self.predictor.detections(model, self.parts, watch, previews=previews, keep=keep)

    def _score(self, cases: list[CaseDetections]) -> ValidationScore:
        began = self.session.budget.clock()
        # What a filter removes in the end must not choose the epoch.
        score = best_threshold_score(cases)
        self.selection_seconds = _SELECTION * (self.session.budget.clock() - began)
        return score

    def _selected(self, cases: list[CaseDetections]) -> SelectedPostprocessing:
        data, regions = self.experiment.data, tuple(self.experiment.card.regions)
        smallest = data.prepared.smallest_lesions(data.training)
        return select_postprocessing(cases, smallest, regions, self.experiment.config.operating_point)

    def _reduce(self, count: int) -> None:
        """Validate the first *count* parts from now on."""
        self.parts = self.parts[: max(1, count)]
        self._reserve()
        self._say("validation takes longer than expected")

    def is_time_to_mine(self, cases: Iterable[CaseRecord]) -> bool:
        """Return, alike in all processes, whether *cases* can be searched for hard negatives before training ends.

        Where time is too short to validate all, no more voxels than those of a validation are worth it.
        """
        voxels = sum(math.prod(case.shape) for case in cases)
        if self.is_reduced and voxels > self.voxels:
            return False
        budget, group = self.session.budget, self.session.group
        ends = budget.elapsed() + budget.validation_seconds(voxels / group.size) + budget.reserve()
        return group.all_reduce_max([ends])[0] <= budget.limit

    def to_json(self) -> list[list[int]]:
        """Return the parts as the checkpoint keeps them: case, first and last slice."""
        numbers = {record.case: number for number, record in enumerate(self.experiment.data.validation)}
        return [[numbers[part.record.case], part.first, part.last] for part in self.parts]

    def load_json(self, parts: list[list[int]] | None) -> None:
        """Take over what ``to_json`` gave; None: all cases. Raises IndexError and TypeError for other values."""
        if parts is not None:
            self.parts = [CasePart(self.experiment.data.validation[n], first, last) for n, first, last in parts]
        self._reserve()

    def _choose_parts(self) -> None:
        """Leave out slices, then cases, where all of them take too much of the time."""
        possible = self.session.group.size * self.session.budget.validation_voxels(self.experiment.final_validations)
        possible = -self.session.group.all_reduce_max([-possible])[0]
        fraction = possible / max(1, self.voxels)
        if fraction < 1:
            parts = [self._cut(part.record, fraction) for part in self.parts]
            together = itertools.accumulate(part.voxels for part in parts)
            fitting = sum(voxels <= possible for voxels in together)
            self.parts = parts[: max(1, fitting)]
            self._say(f"validating all would take {1 / fraction:.1f} times what these minutes allow")
        self._reserve()

    def _cut(self, record: CaseRecord, fraction: float) -> CasePart:
        """Return a *fraction* of the slices of *record*, around its lesions, and as many as the network needs."""
        plan, depth = self.experiment.plan, record.shape[0]
        slices = min(depth, max(plan.patch[0], int(fraction * depth)))
        points = self.experiment.data.prepared.lesion_points(record)
        centre = int(np.median(points[:, 1])) if len(points) else depth // 2
        first = min(max(0, centre - slices // 2), depth - slices)
        return CasePart(record, first, first + slices)

    def _reserve(self) -> None:
        passes = self.experiment.final_validations
        self.session.budget.voxels_at_end = passes * self.voxels / self.session.group.size

    def _say(self, reason: str) -> None:
        total = self.experiment.data.validation
        slices = sum(part.last - part.first for part in self.parts)
        whole = sum(part.record.shape[0] for part in self.parts)
        of_slices = f", {slices} of {whole} slices" if slices < whole else ""
        cases = f"{len(self.parts)} of {counted(len(total), 'case')}"
        self.session.progress.say(f"{reason}: scored on {cases}{of_slices}")

    def _no_watch(self) -> Watch:
        clock = self.session.budget.clock
        return Watch(may_start=lambda _: True, measured=lambda *_: None, after_window=None, clock=clock)


class _LimitedWatch:
    """Ends one validation early enough for *following* more of the same length."""

    def __init__(self, session: Session, *, following: int, required: bool) -> None:
        self.budget, self.group, self.following, self.required = session.budget, session.group, following, required
        self.seconds, self.voxels, self.chunks = 0.0, 0, 0
        self.expected = session.budget.validation_seconds_per_voxel()

    def watch(self) -> Watch:
        return Watch(
            may_start=self._may_start,
            measured=self._measured,
            after_window=self._after_window,
            clock=self.budget.clock,
        )

    def _may_start(self, voxels: int) -> bool:
        self.chunks += 1
        if self._must():
            return True
        coming = voxels + self.following * (self.voxels + voxels)
        needed = self.budget.validation_seconds(coming) + self.budget.bookkeeping
        elapsed, needed = self.group.all_reduce_max([self.budget.elapsed(), needed])
        return self.budget.is_time_for(elapsed, needed)

    def _measured(self, seconds: float, voxels: int) -> None:
        self.seconds += seconds
        self.voxels += voxels
        self.budget.validation_took(self.seconds, self.voxels, self.expected)

    def _after_window(self, done: int, total: int) -> None:
        if not self._must() and not self.budget.is_time_for(self.budget.elapsed(), 0.0):
            raise OutOfTime

    def _must(self) -> bool:
        """Return whether the first part is going on; alike in all processes, also in one that has no share of it."""
        return self.required and self.chunks == 1


class _Announced:
    """Passes measurements on, and shows how many of *total* parts are validated."""

    def __init__(self, measured: Callable[[float, int], None], session: Session, total: int) -> None:
        self._measured, self._session, self._total, self._done = measured, session, total, 0

    def __call__(self, seconds: float, voxels: int) -> None:
        self._measured(seconds, voxels)
        self._done += self._session.group.size
        self._session.progress.within(min(self._done, self._total), self._total, "validation case")


def spread(records: Sequence[CaseRecord]) -> list[CaseRecord]:
    """Return *records* in an order of which every beginning is spread over patients and over amounts of lesion."""
    patients: dict[str, list[CaseRecord]] = {}
    for record in sorted(records, key=lambda each: (-sum(each.lesion_voxels), each.case)):
        patients.setdefault(record.patient, []).append(record)
    rounds = itertools.zip_longest(*(_spread(own) for own in _spread(list(patients.values()))))
    return [record for one_of_each in rounds for record in one_of_each if record is not None]


def _spread(items: Sequence[Item]) -> Iterator[Item]:
    """Yield first, middle, quarters, eighths …: the numbers with their bits reversed (van der Corput)."""
    bits = max(1, (len(items) - 1).bit_length())
    for number in range(2**bits):
        index = int(f"{number:0{bits}b}"[::-1], 2)
        if index < len(items):
            yield items[index]

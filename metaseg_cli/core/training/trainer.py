"""The training loop. Its state is what a checkpoint holds, so that stopping anywhere loses nothing.

Random generators are not part of it: batch and augmentation follow from the seed and the number of the step.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from torch import Tensor

from metaseg_cli.core.counts import counted
from metaseg_cli.core.model_file import save_model
from metaseg_cli.core.models.network import Network
from metaseg_cli.core.run_folder import MODEL_FILE
from metaseg_cli.core.sampling import Batch, PatchSampler, ReadAhead
from metaseg_cli.core.training.batch_augmentation import BatchAugmentation
from metaseg_cli.core.training.checkpoint import load_checkpoint, save_checkpoint
from metaseg_cli.core.training.ema import EmaModel
from metaseg_cli.core.training.experiment import Experiment, Session
from metaseg_cli.core.training.full_volume import CasePredictor
from metaseg_cli.core.training.hard_negatives import HardNegatives
from metaseg_cli.core.training.lr_schedule import learning_rate_factor
from metaseg_cli.core.training.optimizer import base_learning_rate
from metaseg_cli.core.training.precision import ComputeFormat
from metaseg_cli.core.training.run_writer import RunWriter
from metaseg_cli.core.training.select_postprocessing import validation_of
from metaseg_cli.core.training.state import EpochRecord, FitResult, TrainingState
from metaseg_cli.core.training.step import TrainStep
from metaseg_cli.core.training.validation import Validation, Validator
from metaseg_cli.errors import InputError, Interrupted

# In half precision a gradient overflows now and then and the scale is halved; ten halvings are a factor of a thousand,
# after which the cause is another one.
_MAX_BAD_STEPS = 10


class Trainer:
    """Trains *model* for *experiment*, keeping best and last weights in the run's folder."""

    def __init__(
        self, experiment: Experiment, session: Session, files: RunWriter, model: Network, compute: ComputeFormat
    ) -> None:
        config, data, plan, card = experiment.config, experiment.data, experiment.plan, experiment.card
        self.experiment, self.config, self.data, self.plan, self.card = experiment, config, data, plan, card
        self.session, self.group, self.progress, self.files = session, session.group, session.progress, files
        self.model, self.ema, self.compute = model, EmaModel(model, config.ema), compute
        for network in (self.model, self.ema.model):
            network.to(memory_format=compute.memory_format(plan.dims))  # type: ignore[call-overload]
        self.train_step = TrainStep(model, config, compute, self.group, self.progress.say)
        self.sampler = PatchSampler(
            data.prepared,
            data.training,
            plan.patch,
            seed=config.seed,
            foreground_fraction=config.lesion_share,
            hard_negative_fraction=config.hard_share,
            context=plan.context,
        )
        self.batches = ReadAhead(self.sampler, 0, plan.batch_size, slice(self.group.rank, None, self.group.size))
        self.augment = BatchAugmentation(config, dims=plan.dims, availability=card.presence, rank=self.group.rank)
        self.predictor = CasePredictor(
            data.prepared, card, device=session.device, precision=compute.precision, group=self.group
        )
        self.validator = Validator(experiment, session, self.predictor)
        self.hard_negatives = HardNegatives(len(data.training), len(data.validation))
        self.best: dict[str, Tensor] = {}
        self.state = TrainingState()
        self._bad_steps = 0
        self._time_is_up = False

    @classmethod
    def from_checkpoint(
        cls, experiment: Experiment, session: Session, files: RunWriter, model: Network
    ) -> tuple[Trainer, str]:
        """Return a trainer that continues the run, and a note for the user. Raises InputError when none can."""

        def restored(saved: dict[str, Any]) -> Trainer:
            setting = json.loads(saved["setting"])
            micro_batches = setting.pop("pieces")
            trainer = cls(experiment, session, files, model, ComputeFormat(**setting))
            trainer.train_step.micro_batches = micro_batches
            trainer._load_state_dict(saved)
            return trainer

        return load_checkpoint(files.folder, restored)

    @property
    def eval_model(self) -> Network:
        """The network that is validated and kept: the EMA model, unless it is switched off."""
        return self.ema.model if self.config.ema else self.model

    def fit(self) -> FitResult:
        """Train to the end of epochs, minutes or patience.

        Raises Interrupted when a stop is requested, with the checkpoint saved.
        """
        self._begin()
        try:
            while not (reason := self._reason_to_stop()):
                seconds, patches = self._train_epoch()
                validation = self._validate()
                began = self.session.budget.clock()
                better = self._record(validation, seconds, patches)
                if better:
                    self._keep_best(validation)
                mining = self._mine_hard_negatives()
                self._save_checkpoint()
                self._report(better=better)
                # The end takes as long, and a thorough search.
                kept = self.session.budget.clock() - began - mining
                self.session.budget.bookkeeping = kept + self.validator.selection_seconds
            return self._finish(reason)
        finally:
            self.batches.close()

    def _begin(self) -> None:
        if self.state.step == 0:
            self._save_checkpoint()  # so that even a run that is killed at once can be resumed
        elif self.state.history and self.group.is_main:
            self.files.history(self.state.history)  # it may have been killed between its checkpoint and its curves
        self.progress.start("training", self.experiment.steps, self.session.budget.remaining())
        self.progress.advance(self.state.step)

    def _reason_to_stop(self) -> str:
        """Return what ends the training, or an empty text; asked before each epoch, as a run is resumed anywhere."""
        state, config = self.state, self.config
        if self._time_is_up:
            return counted(self.session.budget.minutes, "minute")
        if config.patience and state.epoch - state.best_epoch >= config.patience:
            return f"no better score for {counted(config.patience, 'epoch')}"
        if state.step >= self.experiment.steps and not self._validation_is_due():
            return counted(config.epochs, "epoch")
        return ""

    def _validation_is_due(self) -> bool:
        """Return whether a stop came after the last step of an epoch, before its validation."""
        return self.state.loss_count > 0 and self.state.step % self.plan.steps_per_epoch == 0

    def _train_epoch(self) -> tuple[float, int]:
        """Take the steps that are left of this epoch, fewer when the time is up; return seconds and patches.

        Raises Interrupted.
        """
        began, patches = self.session.budget.clock(), 0
        left = self.plan.steps_per_epoch - self.state.step % self.plan.steps_per_epoch
        if self._validation_is_due():
            left = 0
            self._check_time_and_stop()
        for _ in range(left):
            step_began = self.session.budget.clock()
            self._step()
            patches += self.plan.batch_size
            self._measure(self.session.budget.clock() - step_began)
            self._check_time_and_stop()
            if self._time_is_up:
                break
        return self.session.budget.clock() - began, patches

    def _measure(self, seconds: float) -> None:
        """Take note of what a step took; after the first one, measure what validation will take at the end."""
        budget = self.session.budget
        budget.step_took(seconds)
        if budget.limited and self.data.validation and not budget.seconds_per_voxel:
            self.validator.measure(self.eval_model)

    def _check_time_and_stop(self) -> None:
        """Decide alike in all processes whether the time is up. Raises Interrupted when any was asked to stop."""
        budget, stop = self.session.budget, self.session.stop
        ends, stopped = self.group.all_reduce_max([budget.elapsed() + budget.reserve(), float(stop.requested)])
        if stopped:
            self._save_checkpoint()
            raise Interrupted(
                f"stopped in epoch {self.state.epoch + 1} of {self.config.epochs}; everything is saved",
                where=self.files.folder,
                remedy=f"resume with: metaseg train --resume {self.files.folder}",
            )
        self._time_is_up = ends >= budget.limit

    def _step(self) -> None:
        """Take one step with the next batch."""
        state, timer = self.state, self.train_step.timer
        self.train_step.set_learning_rate(self._learning_rate())
        timer.next_step()
        with timer.phase("loading"):
            batch = self.batches.take()
            image, target = (tensor.to(self.session.device).float() for tensor in (batch.image, batch.target))
            available = batch.available.to(self.session.device)
        with timer.phase("augmentation"):
            image, target = self.augment(image, target, available, state.step)
        loss, finite = self.train_step(image, target)
        if finite:
            with timer.phase("backward"):
                self.ema.update(self.model)
            state.loss_sum += loss
            state.loss_count += 1
            self._bad_steps = 0
        else:
            self._skip(batch)
        state.step += 1
        self.progress.advance(1, self._progress_note(loss))

    def _learning_rate(self) -> float:
        by_steps = self.state.step / self.experiment.steps
        progress = self.group.all_reduce_max([max(by_steps, self.session.budget.fraction())])[0]
        factor = learning_rate_factor(
            progress, self.state.step, schedule=self.config.schedule, warmup_steps=self.config.warmup_steps
        )
        return base_learning_rate(self.config) * factor

    def _skip(self, batch: Batch) -> None:
        """Say that a step had no finite loss. Raises InputError when that does not end."""
        self._bad_steps += 1
        cases = ", ".join(dict.fromkeys(batch.cases))
        self.progress.say(f"step {self.state.step}: the loss is not finite (cases {cases}); step skipped")
        if self._bad_steps >= _MAX_BAD_STEPS:
            raise InputError(
                f"the loss was not finite in {_MAX_BAD_STEPS} steps in a row",
                where=self.files.folder,
                remedy="lower --learning-rate, or try --precision fp32",
            )

    def _progress_note(self, loss: float) -> str:
        if not self.state.history or not self.data.validation:
            return f"loss {loss:.3f}"
        last = self.state.history[-1]
        best = self.state.history[self.state.best_epoch - 1]
        # The score that decides is the one that is shown as the best: Dice alone may be higher elsewhere.
        return f"loss {loss:.3f}  Dice {last.dice:.3f}  best score {best.score:.3f} (epoch {best.epoch})"

    def _validate(self) -> Validation:
        validation, best = self.validator.score_epoch(self.eval_model, self.state.best_score)
        self.state.best_score = best
        return validation

    def _record(self, validation: Validation, seconds: float, patches: int) -> bool:
        """Add the epoch to the history; return whether it is the best so far."""
        state, score = self.state, validation.score
        loss_sum, loss_count = self.group.all_reduce_sum([state.loss_sum, state.loss_count])
        state.loss_sum, state.loss_count = 0.0, 0
        state.epoch += 1
        nan = float("nan")
        state.history.append(
            EpochRecord(
                epoch=state.epoch,
                loss=loss_sum / max(1, loss_count),
                dice=score.dice if score else nan,
                lesion_recall=score.lesion_recall if score else nan,
                lesion_precision=score.lesion_precision if score else nan,
                lesion_f1=score.lesion_f1 if score else nan,
                score=score.score if score else nan,
                learning_rate=self.train_step.learning_rate,
                seconds=seconds,
                images_per_second=patches / max(1e-9, seconds),
                small_lesion_recall=score.small_lesion_recall if score else nan,
            )
        )
        if score is None:
            return not self.data.validation
        return score.score > state.best_score

    def _keep_best(self, validation: Validation) -> None:
        self.state.best_score = validation.score.score if validation.score else -1.0
        self.state.best_epoch = self.state.epoch
        self.validator.best_cases = validation.cases
        self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.eval_model.state_dict().items()}
        if self.group.is_main:
            save_model(self.files.folder / MODEL_FILE, self.eval_model, self.card)
            if validation.previews:
                self.files.previews(validation.previews, self.experiment.card)

    def _mine_hard_negatives(self) -> float:
        """Predict a few training cases, a different few after each epoch, and feed their false positives back.

        Return the seconds that it took.
        """
        began = self.session.budget.clock()
        last = self._time_is_up or self.state.step >= self.experiment.steps
        if last or not self.config.hard_share or not self.data.validation:
            return 0.0
        searched = self.hard_negatives.cases_to_search()
        cases = [(number, self.data.training[number]) for number in searched]
        if not self.validator.is_time_to_mine(case for _, case in cases):
            return 0.0
        self.hard_negatives.update(searched, self.predictor.false_positives(self.eval_model, cases))
        self.sampler.hard_negatives = self.hard_negatives.centres
        self.batches.restart(self.state.step)
        return self.session.budget.clock() - began

    def _report(self, *, better: bool) -> None:
        if self.group.is_main:
            self.files.history(self.state.history)
        record = self.state.history[-1]
        validated = not math.isnan(record.score)
        scores = (
            f"Dice {record.dice:.3f}  lesion F1 {record.lesion_f1:.3f}  small-lesion recall "
            f"{record.small_lesion_recall:.3f}  score {record.score:.3f}"
            if validated
            else "not validated: no time is left"
            if self.data.validation
            else "not validated"
        )
        self.progress.say(
            f"epoch {record.epoch:3d}  loss {record.loss:.4f}  {scores}  {record.images_per_second:.1f} images/s"
            + ("  best score so far" if better and validated else "")
        )

    def _finish(self, stopped: str) -> FitResult:
        """Choose post-processing and temperature for the best weights and write the final model file."""
        model = self.eval_model
        model.load_state_dict(self.best)
        selected, cases = self.validator.select(model, self.files.out_of_fold)
        card = dataclasses.replace(
            self.card,
            postprocessing=selected.postprocessing,
            temperature=selected.temperature,
            depths=self.validator.score_depths(model) if cases else {},
            operating_point=selected.default,
            operating_points=selected.operating_points,
            froc=selected.froc,
            validation=validation_of(selected),
        )
        if self.group.is_main:
            save_model(self.files.folder / MODEL_FILE, model, card)
        return FitResult(
            state=self.state,
            selected=selected,
            milliseconds_per_step=self.train_step.timer.milliseconds_per_step(),
            compute=self.compute,
            validation_cases=cases,
            stopped=stopped,
        )

    def _save_checkpoint(self) -> None:
        if self.group.is_main:
            save_checkpoint(self.files.folder, self._state_dict())

    def _state_dict(self) -> dict[str, Any]:
        step = self.train_step
        return {
            "model": self.model.state_dict(),
            "averaged": self.ema.model.state_dict(),
            "averaged_updates": self.ema.updates,
            "best": self.best,
            "optimizer": step.optimizer.state_dict(),
            "scaler": step.scaler.state_dict(),
            "setting": json.dumps({**dataclasses.asdict(self.compute), "pieces": step.micro_batches}),
            "mistakes": self.hard_negatives.to_json(),
            "state": self.state.to_json(self.session.budget),
            # Only where validation was reduced: otherwise a checkpoint is as it always was.
            **({"validated": json.dumps(self.validator.to_json())} if self.validator.is_reduced else {}),
        }

    def _load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue where *saved* was. Raises whatever comes of a damaged one."""
        state = TrainingState.from_json(saved["state"], self.session.budget)
        if state.step < 0 or len(state.history) != state.epoch or not 0 <= state.best_epoch <= state.epoch:
            raise ValueError("its counts are inconsistent")
        if saved["best"].keys() - self.model.state_dict().keys():
            raise ValueError("the best weights are those of another network")
        self.model.load_state_dict(saved["model"])
        self.ema.model.load_state_dict(saved["averaged"])
        self.ema.updates = saved["averaged_updates"]
        self.train_step.optimizer.load_state_dict(saved["optimizer"])
        self.train_step.scaler.load_state_dict(saved["scaler"])
        self.best = saved["best"]
        self.validator.load_json(json.loads(saved.get("validated", "null")))
        self.hard_negatives.load_json(saved["mistakes"])
        self.sampler.hard_negatives = self.hard_negatives.centres
        self.batches.restart(state.step)
        self.state = state

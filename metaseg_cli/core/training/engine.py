"""The one training loop. Its state is what a checkpoint holds, so that stopping anywhere loses nothing.

No state of a random generator is among it: batch and augmentation follow from the seed and the number of the step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metaseg_cli.config import TrainConfig
from metaseg_cli.core import augmentation
from metaseg_cli.core.cache import CaseRecord, Prepared
from metaseg_cli.core.choices import NETWORKS
from metaseg_cli.core.losses import build_loss
from metaseg_cli.core.model_file import ModelCard, Pruned, save_model
from metaseg_cli.core.models.network import Prunable, can_be_pruned
from metaseg_cli.core.models.presence import with_presence
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.sampling import Batch, PatchSampler, Place, ReadAhead
from metaseg_cli.core.training.averaging import AveragedModel
from metaseg_cli.core.training.budget import Budget
from metaseg_cli.core.training.checkpoint import load_checkpoint, save_checkpoint
from metaseg_cli.core.training.distributed import Group
from metaseg_cli.core.training.numerics import Numerics, choose_numerics
from metaseg_cli.core.training.plan import Plan
from metaseg_cli.core.training.schedule import base_rate, build_optimizer, learning_rate_factor
from metaseg_cli.core.training.state import EpochRecord, Fitted, State
from metaseg_cli.core.training.stepping import Stepper, Stopwatch
from metaseg_cli.core.training.tuning import choose_postprocessing, lesion_sizes, tune
from metaseg_cli.core.training.validation import CaseFindings
from metaseg_cli.core.training.whole_cases import Example, WholeCases
from metaseg_cli.errors import InputError, Interrupted

MODEL_FILE = "model.safetensors"
_BAD_STEPS_IN_A_ROW = 10
_SEARCHED_FOR_MISTAKES = 0.5  # training cases looked at after an epoch, per validation case
_MOST_MISTAKES = 64


class Trainer:
    """Trains by *plan* and *config*, keeping best and last in *run*; ``ask_to_stop`` ends it after the current step."""

    def __init__(
        self,
        run: Path,
        prepared: Prepared,
        training: Sequence[CaseRecord],
        validation: Sequence[CaseRecord],
        plan: Plan,
        config: TrainConfig,
        card: ModelCard,
        *,
        device: torch.device,
        progress: Progress,
        on_epoch: Callable[[list[EpochRecord]], None],
        on_best: Callable[[list[Example]], None] = lambda examples: None,
        on_numerics: Callable[[Numerics], None] = lambda numerics: None,
        on_final: Callable[[str, NDArray[np.float16]], None] = lambda case, probabilities: None,
        group: Group | None = None,
        budget: Budget,
    ) -> None:
        self.run, self.prepared, self.plan, self.config, self.card = run, prepared, plan, config, card
        self.training, self.validation = tuple(training), tuple(validation)
        self.device, self.progress, self.on_epoch = device, progress, on_epoch
        self.on_best, self.on_numerics, self.on_final = on_best, on_numerics, on_final
        self.group = group or Group()
        torch.manual_seed(config.seed)
        self.model = card.build().to(device)
        self.sampler = PatchSampler(
            prepared,
            training,
            plan.patch,
            seed=config.seed,
            lesion_share=config.lesion_share,
            hard_share=config.hard_share,
            context=plan.context,
        )
        self.augment = augmentation.Augmentation(
            flip_axes=(-1, -2) if plan.dims == 2 else (-1,),
            drop_sequence=config.drop_sequence,
            paste=config.paste,
        )
        self.whole_cases = WholeCases(prepared, card, device=device, group=self.group)
        self.averaged = AveragedModel(self.model, config.ema)
        self.best: dict[str, Tensor] = {}
        self.state = State()
        self.budget = budget
        self.watch = Stopwatch(device)
        self._saved: dict[str, Any] = {}  # of a checkpoint, for the stepper that is made when fit begins
        self._bad_steps = 0
        self._stop = False
        self._searched = 0

    def ask_to_stop(self) -> None:
        """Leave ``fit`` with Interrupted at the next step, after saving; safe to call from a signal handler."""
        self._stop = True

    # -- the loop ----------------------------------------------------------------------------------------------------

    def fit(self) -> Fitted:
        """Train to the end of epochs, minutes or patience.

        Raises Interrupted after ``ask_to_stop``, with the checkpoint saved.
        """
        self.stepper = self._stepper()
        self.base_rate = base_rate(self.config)
        if self.state.step == 0:
            self._save()  # so that even a run that is killed at once can be gone on with
        elif self.state.history and self.group.leads:
            self.on_epoch(self.state.history)  # it may have been killed between its checkpoint and its curves
        steps = self.config.epochs * self.plan.iterations_per_epoch
        self.progress.start("training", steps, self.budget.left())
        self.progress.advance(self.state.step)
        part = slice(self.group.rank, None, self.group.size)
        self.batches = ReadAhead(self.sampler, self.state.step, self.plan.batch_size, part)
        try:
            return self._finish(self._epochs(steps))
        finally:
            self.batches.close()

    def _epochs(self, steps: int) -> str:
        """All epochs; returns what ended them."""
        state, config, clock = self.state, self.config, self.budget.clock
        while state.step < steps or self._epoch_is_due():
            if over := self._out_of_patience():  # here, as a run may be killed after its last epoch
                return over
            epoch_began, images = clock(), 0
            while True:
                if not self._epoch_is_due():
                    images += self._step(steps)
                elapsed, stop = self.group.most([self.budget.elapsed(), float(self._stop)])
                if stop:
                    self._save()
                    raise Interrupted(
                        f"stopped in epoch {state.epoch + 1} of {config.epochs}; everything is saved",
                        where=self.run,
                        remedy=f"go on with: metaseg train --resume {self.run}",
                    )
                out_of_time = self.budget.trained_out(elapsed)
                if state.step % self.plan.iterations_per_epoch == 0 or out_of_time:
                    break
            validation_began = clock()
            self._close_epoch(validation_began - epoch_began, images, last=out_of_time or state.step >= steps)
            self._reserve(clock() - validation_began)
            if out_of_time:
                return f"{config.max_minutes:g} minutes"
        return self._out_of_patience() or f"{config.epochs} epochs"

    def _out_of_patience(self) -> str:
        """Said when as many epochs as are allowed brought no better score; else empty."""
        patience = self.config.patience
        over = patience and self.state.epoch - self.state.best_epoch >= patience
        return f"no better score for {patience} epochs" if over else ""

    def _epoch_is_due(self) -> bool:
        """Whether a stop came after the last step of an epoch, which is then still to be validated."""
        return self.state.loss_count > 0 and self.state.step % self.plan.iterations_per_epoch == 0

    def _step(self, steps: int) -> int:
        """One update; returns the number of patches that all processes together used."""
        state, config = self.state, self.config
        progress = self.group.most([max(state.step / steps, self.budget.share())])[0]
        rate = self.base_rate * learning_rate_factor(
            progress, state.step, schedule=config.schedule, warmup_steps=config.warmup_steps
        )
        for group in self.stepper.optimizer.param_groups:
            group["lr"] = rate
        self.watch.next_step()
        with self.watch.watching("loading"):
            batch = self.batches.take()
            image, target = (tensor.to(self.device).float() for tensor in (batch.image, batch.target))
            present = batch.present.to(self.device)
        with self.watch.watching("augmentation"):
            image, target = self._augmented(image, target, present)
        value, finite = self.stepper(image, target, self.watch)
        if finite:
            with self.watch.watching("backward"):
                self.averaged.update(self.model)
            state.loss_sum += value
            state.loss_count += 1
            self._bad_steps = 0
        else:
            self._skip(batch)
        state.step += 1
        self.progress.advance(1, self._note(value))
        return self.plan.batch_size

    def _augmented(self, image: Tensor, target: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.augment:
            rng = np.random.default_rng([self.config.seed, 2, self.state.step, self.group.rank])
            shape = (len(image), present.shape[1], *image.shape[2:])
            parameters = augmentation.draw(self.augment, shape, rng)
            image, target = augmentation.apply(image, target, parameters)
            if self.card.presence:
                image, present = augmentation.drop_sequences(image, present, parameters)
            else:
                image = augmentation.repeat_channels(image, parameters)
        if self.card.presence:
            image = with_presence(image, present)
        return image, target

    def _skip(self, batch: Batch) -> None:
        self._bad_steps += 1
        cases = ", ".join(dict.fromkeys(batch.cases))
        self.progress.say(f"step {self.state.step}: the loss is not finite (cases {cases}); step skipped")
        if self._bad_steps >= _BAD_STEPS_IN_A_ROW:
            raise InputError(
                f"the loss was not finite in {_BAD_STEPS_IN_A_ROW} steps in a row",
                where=self.run,
                remedy="lower --learning-rate, or try --precision fp32",
            )

    def _close_epoch(self, seconds: float, images: int, *, last: bool) -> None:
        state = self.state
        state.epoch += 1
        examples: list[Example] = []
        found = self._findings(examples=examples)
        # What post-processing removes in the end must not choose the epoch.
        score = choose_postprocessing(found, lesion_sizes(self.training), thorough=False)[1] if found else None
        loss_sum, loss_count = self.group.total([state.loss_sum, state.loss_count])
        record = EpochRecord(
            epoch=state.epoch,
            loss=loss_sum / max(1, loss_count),
            dice=score.dice if score else float("nan"),
            lesion_recall=score.lesion_recall if score else float("nan"),
            lesion_precision=score.lesion_precision if score else float("nan"),
            lesion_f1=score.lesion_f1 if score else float("nan"),
            score=score.score if score else float("nan"),
            learning_rate=self.stepper.optimizer.param_groups[0]["lr"],
            seconds=seconds,
            images_per_second=images / max(1e-9, seconds),
        )
        state.loss_sum, state.loss_count = 0.0, 0
        state.history.append(record)
        better = score is None or score.score > state.best_score
        if better:
            state.best_score = score.score if score else -1.0
            state.best_epoch = state.epoch
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self._evaluated().state_dict().items()}
            if self.group.leads:
                save_model(self.run / MODEL_FILE, self._evaluated(), self.card)
                if examples:
                    self.on_best(examples)
        if not last:
            self._look_for_mistakes()
        self._save()
        if self.group.leads:
            self.on_epoch(state.history)
        scores = f"Dice {record.dice:.3f}  lesion F1 {record.lesion_f1:.3f}" if score else "not validated"
        self.progress.say(
            f"epoch {record.epoch:3d}  loss {record.loss:.4f}  {scores}  {record.images_per_second:.1f} images/s"
            + ("  best so far" if better and score else "")
        )

    def _finish(self, stopped: str) -> Fitted:
        """Choose post-processing and temperature for the best weights and write the final model file."""
        model = self._evaluated()
        model.load_state_dict(self.best)
        found = self._findings(keep=self.on_final)
        tuned = tune(found, lesion_sizes(self.training), self.card.regions)
        values: dict[str, Any] = {
            "postprocessing": tuned.postprocessing,
            "temperature": tuned.temperature,
            "depths": self._shallower(model) if found else {},
            "validation": {"dice": tuned.score.dice, "lesion_f1": tuned.score.lesion_f1} if tuned.score else {},
        }
        if self.group.leads:
            save_model(self.run / MODEL_FILE, model, ModelCard(**{**vars(self.card), **values}))
        return Fitted(
            state=self.state,
            tuned=tuned,
            findings=tuple(found),
            milliseconds=self.watch.milliseconds_per_step(),
            numerics=self.stepper.numerics,
            stopped=stopped,
        )

    def _shallower(self, model: nn.Module) -> dict[int, Pruned]:
        """What a nested network is worth when it is cut behind an inner column."""
        if not isinstance(model, Prunable) or not can_be_pruned(model):
            return {}
        worth = {}
        for depth in range(1, model.depth):
            found = self.whole_cases.findings(model.pruned(depth), self.validation, self.stepper.numerics.precision)
            tuned = tune(found, lesion_sizes(self.training), self.card.regions)
            assert tuned.score is not None
            worth[depth] = Pruned(
                score=tuned.score.score, temperature=tuned.temperature, postprocessing=tuned.postprocessing
            )
        return worth

    def _findings(
        self, *, examples: list[Example] | None = None, keep: Callable[[str, NDArray[np.float16]], None] | None = None
    ) -> list[CaseFindings]:
        """Of every validation case; *keep* receives the probabilities."""
        precision = self.stepper.numerics.precision
        return self.whole_cases.findings(self._evaluated(), self.validation, precision, examples=examples, keep=keep)

    def _look_for_mistakes(self) -> None:
        """Predict a few training cases, others after every epoch; never validation cases, which must stay unseen."""
        if not self.config.hard_share or not self.validation:
            return
        count = max(1, round(_SEARCHED_FOR_MISTAKES * len(self.validation)))
        looked = [(self._searched + i) % len(self.training) for i in range(min(count, len(self.training)))]
        self._searched = (self._searched + len(looked)) % len(self.training)
        cases = [(number, self.training[number]) for number in looked]
        fresh = self.whole_cases.false_places(self._evaluated(), cases, self.stepper.numerics.precision)
        old = [place for place in self.sampler.mistakes if place.case not in looked]
        self.sampler.mistakes = tuple((fresh + old)[:_MOST_MISTAKES])
        self.batches.restart(self.state.step)

    def _evaluated(self) -> nn.Module:
        return self.averaged.model if self.config.ema else self.model

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _stepper(self) -> Stepper:
        config, saved = self.config, self._saved
        pieces = config.accumulate
        if saved:
            values = json.loads(saved["setting"])
            pieces = values.pop("pieces")
            numerics = Numerics(**values)
        else:
            numerics = self._measured_numerics()
        self.model.to(memory_format=numerics.layout(self.plan.dims))  # type: ignore[call-overload]
        self.averaged.model.to(memory_format=numerics.layout(self.plan.dims))  # type: ignore[call-overload]
        optimizer = build_optimizer(self.model, config)
        if saved:
            optimizer.load_state_dict(saved["optimizer"])
        stepper = Stepper(
            self.model,
            self.group.wrapped(self.model),
            build_loss(config.loss, gamma=config.focal_gamma, alpha=config.focal_alpha),
            optimizer,
            numerics,
            clip=config.clip,
            pieces=pieces,
            say=self.progress.say,
            compiled=config.compile,
        )
        if saved:
            stepper.scaler.load_state_dict(saved["scaler"])
        return stepper

    def _measured_numerics(self) -> Numerics:
        """What is faster here, measured on one patch; the same on all processes."""
        shape = (1 if self.plan.dims == 3 else 2, self.card.in_channels, *self.plan.patch[-self.plan.dims :])
        patch = torch.zeros(shape, device=self.device)
        numerics, seconds = choose_numerics(self.model, patch, self.card.norm, self.config)
        # A step is about three forward passes.
        voxels = sum(int(np.prod(case.shape)) for case in self.validation) / self.group.size
        expected = seconds[numerics] / 3 * voxels / (shape[0] * np.prod(self.plan.patch))
        self._reserve(float(expected))
        numerics = self.group.led(numerics)
        if self.group.leads:
            self.on_numerics(numerics)
        times = ", ".join(f"{each} {1000 * t:.0f} ms" for each, t in seconds.items())
        self.progress.say(f"  {numerics}: measured {times}")
        return numerics

    def _reserve(self, validation_seconds: float) -> None:
        """Keep time for the last epoch's validation and those that choose the post-processing."""
        # The shallower depths of a prunable network cost about one more.
        looks = 3 if NETWORKS[self.card.name].prunable else 2
        self.budget.reserved = looks * self.group.most([validation_seconds])[0]

    def _note(self, loss: float) -> str:
        if not self.state.history or not self.validation:
            return f"loss {loss:.3f}"
        last = self.state.history[-1]
        best = self.state.history[self.state.best_epoch - 1]
        return f"loss {loss:.3f}  Dice {last.dice:.3f}  best {best.dice:.3f} (epoch {best.epoch})"

    # -- stopping and going on ---------------------------------------------------------------------------------------

    def _save(self) -> None:
        if not self.group.leads:
            return
        save_checkpoint(
            self.run,
            {
                "model": self.model.state_dict(),
                "averaged": self.averaged.model.state_dict(),
                "averaged_updates": self.averaged.updates,
                "best": self.best,
                "optimizer": self.stepper.optimizer.state_dict(),
                "scaler": self.stepper.scaler.state_dict(),
                "setting": json.dumps({**asdict(self.stepper.numerics), "pieces": self.stepper.pieces}),
                "mistakes": json.dumps([self._searched, [asdict(place) for place in self.sampler.mistakes]]),
                "state": self.state.as_json(self.budget),
            },
        )

    def restore(self) -> str:
        """Go on where the run's checkpoint stands; returns what has to be said. Raises InputError when it cannot."""
        return load_checkpoint(self.run, self._take)

    def _take(self, saved: dict[str, Any]) -> None:
        """Stand where *saved* stands. Raises whatever comes of a damaged one."""
        state = State.from_json(saved["state"])
        if state.epoch > self.config.epochs + 10**6 or state.step < 0 or state.best_epoch > state.epoch:
            raise ValueError("its counts do not fit together")
        setting = json.loads(saved["setting"])
        Numerics(**{name: value for name, value in setting.items() if name != "pieces"})
        # An optimiser whose state does not fit fails here, not in the first step.
        build_optimizer(self.model, self.config).load_state_dict(saved["optimizer"])
        if self.best.keys() - self.model.state_dict().keys():
            raise ValueError("the best weights are those of another network")
        self.model.load_state_dict(saved["model"])
        self.averaged.model.load_state_dict(saved["averaged"])
        self.averaged.updates = saved["averaged_updates"]
        self.best = saved["best"]
        self._saved = {name: saved[name] for name in ("optimizer", "setting", "scaler")}
        self._searched, mistakes = json.loads(saved["mistakes"])
        self.sampler.mistakes = tuple(Place(m["case"], tuple(m["centre"])) for m in mistakes)
        self.state = state
        self.budget.earlier, self.budget.reserved = self.state.seconds, self.state.reserved

"""The one training loop. Its state is what a checkpoint holds, so that stopping anywhere loses nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metaseg_cli.config import TrainConfig
from metaseg_cli.core import augmentation
from metaseg_cli.core.cache import CaseRecord, Prepared
from metaseg_cli.core.inference.device import lay_out, memory_format
from metaseg_cli.core.inference.sliding_window import autocast
from metaseg_cli.core.losses import build_loss, deep_supervision_loss
from metaseg_cli.core.model_file import ModelCard, save_model
from metaseg_cli.core.models.attention_unet import AttentionUNet
from metaseg_cli.core.models.nested_unet import NestedUNet
from metaseg_cli.core.models.presence import with_presence
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.sampling import PatchSampler
from metaseg_cli.core.training.averaging import AveragedModel
from metaseg_cli.core.training.checkpoint import load_checkpoint, save_checkpoint
from metaseg_cli.core.training.plan import Plan
from metaseg_cli.core.training.schedule import learning_rate_factor
from metaseg_cli.core.training.validation import (
    CaseProbabilities,
    ValidationScore,
    choose_postprocessing,
    probabilities_of,
    score_cases,
)
from metaseg_cli.errors import InputError, Interrupted

_BAD_STEPS_IN_A_ROW = 10
MODEL_FILE = "model.safetensors"
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One row of ``history.csv``; scores are of the averaged weights on the validation fold at threshold 0.5."""

    epoch: int
    loss: float
    dice: float
    lesion_recall: float
    lesion_precision: float
    lesion_f1: float
    score: float
    learning_rate: float
    seconds: float
    images_per_second: float


@dataclass
class State:
    """Where a run stands."""

    step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    best_score: float = -1.0
    best_epoch: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    history: list[EpochRecord] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A finished training: its last state, the chosen post-processing, and the score with it (None: not validated)."""

    state: State
    postprocessing: Postprocessing
    score: ValidationScore | None
    stopped: str


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
        precision: str,
        progress: Progress,
        on_epoch: Callable[[list[EpochRecord]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run, self.prepared, self.plan, self.config, self.card = run, prepared, plan, config, card
        self.training, self.validation = tuple(training), tuple(validation)
        self.device, self.precision, self.progress, self.on_epoch = device, precision, progress, on_epoch
        torch.manual_seed(config.seed)
        self.model = self._laid_out(card.build())
        self.averaged = AveragedModel(self.model, config.ema)
        self.best: dict[str, Tensor] = {}
        self.loss = build_loss(config.loss, gamma=config.focal_gamma, alpha=config.focal_alpha)
        self.optimizer = _optimizer(self.model, config)
        self.base_rate = self.optimizer.param_groups[0]["lr"]
        self.sampler = PatchSampler(
            prepared,
            training,
            plan.patch,
            lesion_share=config.lesion_share,
            rng=np.random.default_rng([config.seed, 1]),
        )
        if not self.sampler.has_lesions:
            raise InputError(
                "no training case has any foreground",
                where=prepared.folder,
                remedy="check the masks, or the label values given to metaseg prepare",
            )
        self.augment = augmentation.Augmentation(
            flip_axes=(-1, -2) if plan.dims == 2 else (-1,),
            drop_sequence=config.drop_sequence if card.presence else 0.0,
        )
        self.augment_rng = np.random.default_rng([config.seed, 2])
        self.state = State()
        self.clock = clock
        self.began = clock()
        self._bad_steps = 0
        self._stop = False

    def ask_to_stop(self) -> None:
        """Leave ``fit`` with Interrupted at the next step, after saving; safe to call from a signal handler."""
        self._stop = True

    # -- the loop ----------------------------------------------------------------------------------------------------

    def fit(self) -> Fitted:
        """Train to the end of epochs, minutes or patience.

        Raises Interrupted after ``ask_to_stop``, with the checkpoint saved.
        """
        steps = self.config.epochs * self.plan.iterations_per_epoch
        self.progress.start("training", steps)
        self.progress.advance(self.state.step)
        validation_seconds = 0.0
        stopped = f"{self.config.epochs} epochs"
        while self.state.step < steps:
            epoch_began, images, out_of_time = self.clock(), 0, False
            while True:
                images += self._step(steps, validation_seconds)
                if self._stop:
                    self._save()
                    raise Interrupted(
                        f"stopped in epoch {self.state.epoch + 1} of {self.config.epochs}; everything is saved",
                        where=self.run,
                        remedy=f"go on with: metaseg train --resume {self.run}",
                    )
                out_of_time = self._out_of_time(validation_seconds)
                if self.state.step % self.plan.iterations_per_epoch == 0 or out_of_time:
                    break
            trained = self.clock() - epoch_began
            validation_began = self.clock()
            self._close_epoch(trained, images)
            validation_seconds = self.clock() - validation_began
            if out_of_time:
                stopped = f"{self.config.max_minutes:g} minutes"
                break
            if self.config.patience and self.state.epoch - self.state.best_epoch >= self.config.patience:
                stopped = f"no better score for {self.config.patience} epochs"
                break
        return self._finish(stopped)

    def _step(self, steps: int, reserve: float) -> int:
        """One update; returns the number of patches it used."""
        state, config = self.state, self.config
        rate = self.base_rate * learning_rate_factor(
            self._over(steps, reserve), state.step, schedule=config.schedule, warmup_steps=config.warmup_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.sampler.batch(self.plan.batch_size)
        image, target, present = (t.to(self.device) for t in (batch.image, batch.target, batch.present))
        if config.augment:
            parameters = augmentation.draw(self.augment, tuple(image.shape), self.augment_rng)
            image, target = augmentation.apply(image, target, parameters)
            image, present = augmentation.drop_sequences(image, present, parameters)
        if self.card.presence:
            image = with_presence(image, present)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.precision):
            outputs = self.model(self._image_laid_out(image))
        loss = deep_supervision_loss(outputs, target, self.loss, self.model.head_weights)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or float("inf"))
        value = float(loss.detach())  # waits for the device; once a step is cheap beside the convolutions
        if np.isfinite(value) and bool(torch.isfinite(norm)):
            self.optimizer.step()
            self.averaged.update(self.model)
            state.loss_sum += value
            state.loss_count += 1
            self._bad_steps = 0
        else:
            self._skip(batch.cases)
        state.step += 1
        self.progress.advance(1, self._note(value))
        return self.plan.batch_size

    def _skip(self, cases: Sequence[str]) -> None:
        self._bad_steps += 1
        self.progress.say(f"step {self.state.step}: the loss is not finite (cases {', '.join(cases)}); step skipped")
        if self._bad_steps >= _BAD_STEPS_IN_A_ROW:
            raise InputError(
                f"the loss was not finite in {_BAD_STEPS_IN_A_ROW} steps in a row",
                where=self.run,
                remedy="lower --learning-rate, or try --precision fp32",
            )

    def _close_epoch(self, seconds: float, images: int) -> None:
        state = self.state
        state.epoch += 1
        score = self._validate()
        record = EpochRecord(
            epoch=state.epoch,
            loss=state.loss_sum / max(1, state.loss_count),
            dice=score.dice if score else float("nan"),
            lesion_recall=score.lesion_recall if score else float("nan"),
            lesion_precision=score.lesion_precision if score else float("nan"),
            lesion_f1=score.lesion_f1 if score else float("nan"),
            score=score.score if score else float("nan"),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds=seconds,
            images_per_second=images / seconds,
        )
        state.loss_sum, state.loss_count = 0.0, 0
        state.history.append(record)
        better = score is None or score.score > state.best_score
        if better:
            state.best_score = score.score if score else -1.0
            state.best_epoch = state.epoch
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self._evaluated().state_dict().items()}
            save_model(self.run / MODEL_FILE, self._evaluated(), self.card)
        self._save()
        self.on_epoch(state.history)
        scores = f"Dice {record.dice:.3f}  lesion F1 {record.lesion_f1:.3f}" if score else "not validated"
        self.progress.say(
            f"epoch {record.epoch:3d}  loss {record.loss:.4f}  {scores}  {record.images_per_second:.1f} images/s"
            + ("  best so far" if better and score else "")
        )

    def _finish(self, stopped: str) -> Fitted:
        """Choose threshold and smallest lesion for the best weights and write the final model file."""
        model = self._evaluated()
        model.load_state_dict(self.best)
        settings, score = Postprocessing(), None
        if self.validation:
            cases = self._probabilities(model)
            lesions = [v for case in self.training for v in case.lesion_voxels]
            settings, score = choose_postprocessing(cases, lesions)
        card = {
            "threshold": settings.threshold,
            "smallest_lesion_voxels": settings.smallest_lesion_voxels,
            "validation": {"dice": score.dice, "lesion_f1": score.lesion_f1} if score else {},
        }
        save_model(self.run / MODEL_FILE, model, _replaced(self.card, card))
        return Fitted(state=self.state, postprocessing=settings, score=score, stopped=stopped)

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _evaluated(self) -> nn.Module:
        return self.averaged.model if self.config.ema else self.model

    def _validate(self) -> ValidationScore | None:
        if not self.validation:
            return None
        return score_cases(self._probabilities(self._evaluated()), Postprocessing())

    def _probabilities(self, model: nn.Module) -> list[CaseProbabilities]:
        return [
            probabilities_of(
                model,
                self.prepared,
                record,
                dims=self.plan.dims,
                patch=self.plan.patch,
                device=self.device,
                precision=self.precision,
                presence=self.card.presence,
            )
            for record in self.validation
        ]

    def _laid_out(self, model: AttentionUNet | NestedUNet) -> AttentionUNet | NestedUNet:
        return lay_out(model.to(self.device), self.plan.dims, self.card.norm)

    def _image_laid_out(self, image: Tensor) -> Tensor:
        return image.contiguous(memory_format=memory_format(self.plan.dims, self.card.norm))

    def _elapsed(self) -> float:
        return self.state.seconds + self.clock() - self.began

    def _over(self, steps: int, reserve: float) -> float:
        """Which share of the run is over, by steps or, if that comes first, by the clock."""
        by_steps = self.state.step / steps
        if not self.config.max_minutes:
            return by_steps
        budget = max(1.0, self.config.max_minutes * 60 - 2 * reserve)
        return max(by_steps, min(1.0, self._elapsed() / budget))

    def _out_of_time(self, validation_seconds: float) -> bool:
        # Two more validations must fit: this epoch's, and the one that chooses the threshold.
        if not self.config.max_minutes:
            return False
        return self._elapsed() + 2 * validation_seconds >= self.config.max_minutes * 60

    def _note(self, loss: float) -> str:
        if not self.state.history or not self.validation:
            return f"loss {loss:.3f}"
        last = self.state.history[-1]
        best = self.state.history[self.state.best_epoch - 1]
        return f"loss {loss:.3f}  Dice {last.dice:.3f}  best {best.dice:.3f} (epoch {best.epoch})"

    # -- stopping and going on ---------------------------------------------------------------------------------------

    def _save(self) -> None:
        state = self.state
        save_checkpoint(
            self.run / CHECKPOINT,
            {
                "model": self.model.state_dict(),
                "averaged": self.averaged.model.state_dict(),
                "averaged_updates": self.averaged.updates,
                "best": self.best,
                "optimizer": self.optimizer.state_dict(),
                "torch_rng": torch.get_rng_state(),
                # As JSON: numpy's states hold integers of 128 bits.
                "random": json.dumps([self.sampler.state(), self.augment_rng.bit_generator.state]),
                "state": json.dumps(
                    {**vars(state), "seconds": self._elapsed(), "history": [vars(r) for r in state.history]}
                ),
            },
        )

    def restore(self) -> None:
        """Go on where the run's checkpoint stands. Raises InputError when it cannot."""
        saved = load_checkpoint(self.run / CHECKPOINT)
        self.model.load_state_dict(saved["model"])
        self.averaged.model.load_state_dict(saved["averaged"])
        self.averaged.updates = saved["averaged_updates"]
        self.best = saved["best"]
        self.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["torch_rng"])
        sampler, augment = json.loads(saved["random"])
        self.sampler.restore(sampler)
        self.augment_rng.bit_generator.state = augment
        values: dict[str, Any] = json.loads(saved["state"])
        history = [EpochRecord(**row) for row in values.pop("history")]
        self.state = State(**values, history=history)
        self.began = self.clock()


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    # Norms and biases are not decayed: shrinking them towards 0 has no meaning.
    decayed = [p for p in model.parameters() if p.dim() > 1]
    free = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate or 1e-3)
    groups[0]["weight_decay"] = min(config.weight_decay, 3e-5)
    return torch.optim.SGD(groups, lr=config.learning_rate or 1e-2, momentum=0.99, nesterov=True)


def _replaced(card: ModelCard, values: dict[str, Any]) -> ModelCard:
    return ModelCard(**{**vars(card), **values})

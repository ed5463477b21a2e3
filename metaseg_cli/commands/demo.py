"""The whole chain on phantoms made here: prepare, train, evaluate on patients never seen, predict."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from metaseg_cli.config import DemoConfig, EvaluateConfig, PredictConfig, PrepareConfig, TrainConfig
from metaseg_cli.core.atomic import make_folder, translate_write_errors
from metaseg_cli.core.choices import network_name
from metaseg_cli.core.counts import counted
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.results import DemoResult
from metaseg_cli.errors import InputError

_TRAINING_PATIENTS = 80
_TEST_PATIENTS = 12
_SLICES = 8
_WIDTHS = (16, 32, 64)
_MARK = ".metaseg-demo"


def demo(config: DemoConfig, progress: Progress) -> DemoResult:
    """Run ``metaseg demo``. Raises InputError rather than touch a folder that is not a demo's."""
    from metaseg_cli.commands.evaluate import evaluate
    from metaseg_cli.commands.predict import predict
    from metaseg_cli.commands.prepare import prepare
    from metaseg_cli.commands.train import train

    began = time.monotonic()
    network_name(config.model)  # a misspelt name is reported before anything is made
    out, raw = config.out, config.out / "raw"
    if out.exists() and any(out.iterdir()) and not (out / _MARK).exists():
        raise InputError("not empty, and no earlier demo", where=out, remedy="choose another folder with --out")
    _clear(out)
    progress.say("Making phantom brains with metastases …")
    _make_phantoms(raw, config.seed)
    progress.say("Preparing …")
    prepare(PrepareConfig(raw=raw, out=out / "prepared", folds=10, workers=1), progress)
    progress.say(f"Training for {counted(config.minutes, 'minute')} …")
    trained = train(_training(config), progress)
    progress.say("Scoring on patients that training has not seen …")
    model = str(trained.run)
    evaluated = evaluate(
        EvaluateConfig(models=(model,), data=out / "prepared", split="test", out=out / "evaluation"), progress
    )
    scan = _scan_with_lesions(raw / "test")
    predicted = predict(PredictConfig(inputs=(str(scan),), model=model, out=out / "predictions"), progress)
    overlay = predicted.document.scans[0].overlay
    assert overlay is not None
    return DemoResult(
        out=out,
        model=trained.model,
        overlay=overlay,
        scan=scan,
        scores=evaluated.evaluation.headline,
        patients=_TEST_PATIENTS,
        seconds=time.monotonic() - began,
    )


def _make_phantoms(raw: Path, seed: int) -> None:
    from metaseg_cli.core.synthesis.phantom import PhantomSettings, write_phantom_pictures

    settings = PhantomSettings(shape=(_SLICES, 160, 160))
    with translate_write_errors(raw):
        write_phantom_pictures(raw / "train", _TRAINING_PATIENTS, _SLICES, settings, seed=seed)
        write_phantom_pictures(raw / "test", _TEST_PATIENTS, _SLICES, settings, seed=seed, first=_TRAINING_PATIENTS + 1)


def _training(config: DemoConfig) -> TrainConfig:
    """Return the settings of a training that learns something within a minute."""
    return TrainConfig(
        data=config.out / "prepared",
        model=config.model,
        out=config.out / "runs",
        max_minutes=config.minutes,
        # Fewer and longer epochs than by default, and the largest stable steps: a minute is short. Phantoms are alike
        # and as many as wanted, so that what makes much of few patients only takes time.
        steps_per_epoch=100,
        learning_rate=3e-3,
        warmup_steps=20,
        widths=_WIDTHS,
        deep_supervision=False,
        augment=False,
        patch=(64,),
        batch_size=24,
        seed=config.seed,
    )


def _clear(out: Path) -> None:
    """Empty the folder *out*, except for the mark: without it the folder would not be known as a demo's."""
    make_folder(out)
    with translate_write_errors(out):
        (out / _MARK).write_text("metaseg demo may clear this folder\n")
        for path in out.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _MARK:
                path.unlink()


def _scan_with_lesions(folder: Path) -> Path:
    """Return the scan whose mask has the most foreground: it is worth looking at."""
    from metaseg_cli.core.images import read_mask

    masks = sorted(folder.rglob("*_mask.png"))
    best = max(masks, key=lambda path: int(read_mask(path).array.sum()))
    return best.with_name(best.name.replace("_mask", ""))

"""The command line: parse, call one command, print. Everything heavy loads inside the commands."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console, RenderableType

from metaseg_cli import PROGRAM
from metaseg_cli import config as settings
from metaseg_cli.config_file import merge_config, read_yaml
from metaseg_cli.errors import Interrupted, MetasegError, Problem, disk_error
from metaseg_cli.options import ConfigFile, Json, NumbersMayFollow, Quiet, options_from
from metaseg_cli.reports.terminal_progress import TerminalProgress

Result = TypeVar("Result")

app = typer.Typer(
    help="Find and measure brain metastases in MRI: prepare, train, evaluate, predict, and look at the result.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: metaseg demo",
)


def _version(asked: bool) -> None:
    if asked:
        print(PROGRAM)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command(cls=NumbersMayFollow)
@options_from(settings.PrepareConfig)
def prepare(cli_values: dict[str, Any], config: ConfigFile = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Read a folder of images and masks, check it, and cache it for training.

    Example: metaseg prepare ./raw
    """
    checked = merge_config(settings.PrepareConfig, read_yaml(config), cli_values)
    from metaseg_cli.commands.prepare import prepare as run
    from metaseg_cli.outputs.prepare import prepare_document
    from metaseg_cli.reports.training_summary import prepare_summary

    with TerminalProgress(quiet=quiet) as progress:
        result = run(checked, progress)
    _show(prepare_summary, result, quiet=quiet, as_json=as_json, document=prepare_document)
    _exit_if_left_out(result.problems)


@app.command(cls=NumbersMayFollow)
@options_from(settings.TrainConfig)
def train(cli_values: dict[str, Any], config: ConfigFile = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Train a network on a prepared folder.

    Example: metaseg train --model attention-unet --epochs 50
    """
    began = time.monotonic()  # --max-minutes counts what loads too
    checked = merge_config(settings.TrainConfig, read_yaml(config), cli_values)  # before torch loads
    from metaseg_cli.commands.train import show_plan
    from metaseg_cli.commands.train import train as run
    from metaseg_cli.reports.training_summary import plan_summary, train_summary

    if checked.plan_only:
        _show(plan_summary, show_plan(checked), quiet=quiet, as_json=as_json)
        return
    with TerminalProgress(quiet=quiet) as progress:
        result = run(checked, progress, began=began)
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun started, the first one prints
        _show(train_summary, result, quiet=quiet, as_json=as_json)


@app.command()
@options_from(settings.EvaluateConfig)
def evaluate(
    cli_values: dict[str, Any], config: ConfigFile = None, quiet: Quiet = False, as_json: Json = False
) -> None:
    """Score models on cases they have not seen, or folders of masks against another; compare several.

    Examples: metaseg evaluate, or metaseg evaluate --predictions mine --references truth, or metaseg evaluate RUN RUN
    """
    checked = merge_config(settings.EvaluateConfig, read_yaml(config), cli_values)
    if len(checked.models) > 1:
        _compare(checked, quiet=quiet, as_json=as_json)
        return
    from metaseg_cli.commands.evaluate import evaluate as run
    from metaseg_cli.outputs.evaluation import metrics_document
    from metaseg_cli.reports.evaluation_summary import evaluate_summary

    with TerminalProgress(quiet=quiet) as progress:
        result = run(checked, progress)
    _show(evaluate_summary, result, quiet=quiet, as_json=as_json, document=metrics_document)
    _exit_if_left_out(result.problems)


def _compare(config: settings.EvaluateConfig, *, quiet: bool, as_json: bool) -> None:
    from metaseg_cli.commands.compare import compare as run
    from metaseg_cli.reports.evaluation_summary import compare_summary

    with TerminalProgress(quiet=quiet) as progress:
        result = run(config, progress)
    summary = partial(compare_summary, out=result.out, problems=result.problems)
    _show(summary, result.document, quiet=quiet, as_json=as_json)
    _exit_if_left_out(result.problems)


@app.command()
@options_from(settings.PredictConfig)
def predict(cli_values: dict[str, Any], config: ConfigFile = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Segment scans: pictures, volumes, or folders of them.

    Example: metaseg predict scan.png
    """
    checked = merge_config(settings.PredictConfig, read_yaml(config), cli_values)
    from metaseg_cli.commands.predict import predict as run
    from metaseg_cli.reports.prediction_summary import predict_summary

    with TerminalProgress(quiet=quiet) as progress:
        result = run(checked, progress)
    summary = partial(predict_summary, problems=result.problems)
    _show(summary, result.document, quiet=quiet, as_json=as_json)
    for problem in result.problems if quiet or as_json else ():
        print(f"metaseg: {problem}", file=sys.stderr)
    if result.problems:
        raise typer.Exit(1)


@app.command(name="follow-up")
@options_from(settings.FollowUpConfig)
def follow_up(
    cli_values: dict[str, Any], config: ConfigFile = None, quiet: Quiet = False, as_json: Json = False
) -> None:
    """Follow the lesions of one patient over visits, by masks or scans in order of time.

    Example: metaseg follow-up january_mask.nii.gz april_mask.nii.gz
    """
    checked = merge_config(settings.FollowUpConfig, read_yaml(config), cli_values)
    from metaseg_cli.commands.follow_up import follow_up as run
    from metaseg_cli.reports.prediction_summary import follow_up_summary

    with TerminalProgress(quiet=quiet) as progress:
        result = run(checked, progress)
    _show(follow_up_summary, result.document, quiet=quiet, as_json=as_json)


@app.command()
@options_from(settings.ExportConfig)
def export(cli_values: dict[str, Any], config: ConfigFile = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Write a model as ONNX, with a description of what to do before and after, and compare it with torch.

    Example: metaseg export runs/attention-unet-20260101-120000
    """
    checked = merge_config(settings.ExportConfig, read_yaml(config), cli_values)
    from metaseg_cli.commands.export import export as run
    from metaseg_cli.reports.training_summary import export_summary

    with TerminalProgress(quiet=quiet) as progress:
        result = run(checked, progress)
    _show(export_summary, result, quiet=quiet, as_json=as_json)


@app.command(name="serve-ui")
@options_from(settings.ServeUiConfig)
def serve_ui(
    cli_values: dict[str, Any], config: ConfigFile = None, quiet: Quiet = False, as_json: Json = False
) -> None:
    """Open the app in a browser; without --host, on this computer only.

    Example: metaseg serve-ui
    """
    from metaseg_cli.commands.serve_ui import serve_ui as run
    from metaseg_cli.commands.serve_ui import url_of

    checked = merge_config(settings.ServeUiConfig, read_yaml(config), cli_values)
    if as_json:
        print(json.dumps({"url": url_of(checked.host, checked.port)}), flush=True)
    with TerminalProgress(quiet=quiet) as progress:
        raise typer.Exit(run(checked, progress))


@app.command()
@options_from(settings.DemoConfig)
def demo(cli_values: dict[str, Any], config: ConfigFile = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Make phantom brains and run the whole chain on them, in under two minutes.

    Example: metaseg demo
    """
    checked = merge_config(settings.DemoConfig, read_yaml(config), cli_values)
    from metaseg_cli.commands.demo import demo as run
    from metaseg_cli.reports.training_summary import demo_summary

    with TerminalProgress(quiet=quiet) as progress:
        result = run(checked, progress)
    _show(demo_summary, result, quiet=quiet, as_json=as_json)


def _show(
    summary: Callable[[Result], Sequence[RenderableType]],
    result: Result,
    *,
    quiet: bool,
    as_json: bool,
    document: Callable[[Result], object] | None = None,
) -> None:
    """Print *result*: with --json as a document (by default itself), else its *summary*, unless --quiet."""
    if as_json:
        from metaseg_cli.core.typed_json import json_text

        print(json_text(result if document is None else document(result)))
    elif not quiet:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = max(console.width, 120)  # a file or pipe has no edge to wrap at
        for part in summary(result):
            console.print(part, soft_wrap=isinstance(part, str))


def _exit_if_left_out(problems: Sequence[Problem]) -> None:
    """Exit with code 1 when an input could not be used; doubts alone are not a failure."""
    if any(problem.left_out for problem in problems):
        raise typer.Exit(1)


def main() -> int:
    """Run the command line; what a user or a disk can cause is one message and exit code 1 (130 when interrupted)."""
    # Large maps in huge pages: a 3D training step takes an eighth less time. Torch looks when it is first imported.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        app(prog_name="metaseg")  # also of python -m: what --install-completion writes is named after it
    except BrokenPipeError:  # as of ``metaseg … | head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MetasegError, OSError, MemoryError) as error:
        if not isinstance(error, MetasegError) or not error.reported:
            print(f"metaseg: {_message(error)}", file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 1
    return 0


def _message(error: BaseException) -> str:
    if isinstance(error, MetasegError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return str(disk_error(error, None))
    if isinstance(error, MemoryError):
        return "there is not enough memory; close other programs, or use a machine with more"
    raise error

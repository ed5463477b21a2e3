"""What scripts outside the project may rely on: these names, with these parameters."""

from __future__ import annotations

import importlib
import inspect

import pytest

import metaseg_cli

PUBLIC = {
    "metaseg_cli.load_model": "path, device='auto', *, tta, fusion, depth, max_memory, backend",
    "metaseg_cli.Model.predict": "self, scan, threshold=None, *",
    "metaseg_cli.core.models.build_model": (
        "name, *, in_channels, out_channels, dims, widths, norm, activation, strides, deep_supervision, "
        "foreground_prior"
    ),
    "metaseg_cli.core.losses.focal_loss": "logits, target, gamma=2.0, alpha=None",
    "metaseg_cli.core.metrics.score": "reference, prediction, spacing_mm=None, protocol=None",
}


def parameters(function: object) -> str:
    """Positional parameters with their defaults, then the names of those that must be given by name."""
    parts: list[str] = []
    for each in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
        if each.kind is each.KEYWORD_ONLY:
            parts += ["*"] if "*" not in parts else []
            parts.append(each.name)
        else:
            parts.append(each.name if each.default is each.empty else f"{each.name}={each.default!r}")
    return ", ".join(parts)


def found(path: str) -> object:
    """The object of a dotted path."""
    module, names = path, list[str]()
    while True:
        try:
            value: object = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            names.insert(0, name)
    for name in names:
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("path", PUBLIC)
def test_a_public_function_keeps_its_parameters(path: str) -> None:
    """New ones may come behind, by name and with a default."""
    now = parameters(found(path))
    assert now == PUBLIC[path] or now.startswith(PUBLIC[path] + ", ") or PUBLIC[path].endswith("*"), now
    assert now.startswith(PUBLIC[path].removesuffix("*"))


def test_the_package_offers_these_names() -> None:
    assert sorted(metaseg_cli.__all__) == ["Model", "Prediction", "__version__", "load_model"]


@pytest.mark.parametrize("name", ["mask", "probabilities", "lesions"])
def test_a_prediction_has_its_parts(name: str) -> None:
    fields = inspect.getmembers(metaseg_cli.Prediction) + list(metaseg_cli.Prediction.__annotations__.items())
    assert name in dict(fields)

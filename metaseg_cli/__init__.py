"""metaseg: find and measure brain metastases in MRI.

The command line is ``metaseg``; from Python, ``load_model(path).predict(scan)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaseg_cli.core.inference.predictor import Model, Prediction, load_model

__version__ = "0.1.0"
PROGRAM = f"metaseg {__version__}"  # as results, model files and DICOM objects name it
__all__ = ["Model", "Prediction", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    # torch loads only when a model does.
    if name in ("Model", "Prediction", "load_model"):
        from metaseg_cli.core.inference import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

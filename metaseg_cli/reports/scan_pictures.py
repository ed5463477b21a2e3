"""The pictures of a predicted scan: its regions outlined, the lesions of one of them numbered."""

from __future__ import annotations

from pathlib import Path

from metaseg_cli.core.detection import find_lesions
from metaseg_cli.core.formats import is_picture
from metaseg_cli.core.images import reorient, shown_channel, to_canonical
from metaseg_cli.core.inference.predictor import Prediction
from metaseg_cli.reports.overlays import MarkedScan, RegionLayer, save_overlay, save_overview
from metaseg_cli.reports.region_colours import region_colours


def save_pictures(prediction: Prediction, overlay: Path, overview: Path | None) -> None:
    """Write *overlay*, and for a volume *overview*, its projections from three sides.

    Slices are shown as radiologists see them: axial, the patient's right on the left.
    """
    image, masks = prediction.source, prediction.masks
    regions, index_region = list(prediction.lesions), prediction.index_region
    numbers, _ = find_lesions(masks[regions.index(index_region)])
    axial = not is_picture(image.source) and image.shape[0] > 1
    if axial:
        reorientation = to_canonical(image)
        image, numbers = reorient(image, reorientation), reorientation.apply(numbers)
        masks = reorientation.apply(masks)
    colours = region_colours(regions, index_region)
    layers = [
        RegionLayer(name=name, colour=colours[name], mask=mask) for name, mask in zip(regions, masks, strict=True)
    ]
    scan = MarkedScan(
        image=image.shown,
        layers=sorted(layers, key=lambda layer: -int(layer.mask.sum())),
        numbers=numbers,
        numbered=index_region,
        spacing_mm=image.spacing_mm,
        axial=axial,
        sequence=image.sequences[shown_channel(image.sequences)] if image.sequences else "",
    )
    save_overlay(overlay, scan)
    if overview is not None:
        save_overview(overview, scan)

"""Write the measurements of lesions as a DICOM Structured Report (TID 1500) that refers to their segments in a SEG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaseg_cli import PROGRAM
from metaseg_cli.core.atomic import atomic_write
from metaseg_cli.core.dicom import quiet, read_data_set
from metaseg_cli.core.images.dicom_seg import concept_of, source_images
from metaseg_cli.errors import decoding


@dataclass(frozen=True, kw_only=True)
class LesionMeasurement:
    """One lesion: the number of its *segment*, its name and UID over all visits, and its size."""

    segment: int
    name: str
    uid: str
    longest_mm: float
    perpendicular_mm: float
    volume_mm3: float


def tracking_uid() -> str:
    """Return a new UID for a lesion that is followed over several reports."""
    import highdicom as hd

    return str(hd.UID())


def write_sr(path: Path, lesions: Sequence[LesionMeasurement], seg: Path, files: Sequence[Path], region: str) -> None:
    """Write the measurements of *lesions* of *region*, whose segments are in *seg*, found in the series *files*.

    Whole or not at all. Raises InputError when the series lacks what a report must repeat of it.
    """
    what = "the series does not give what a structured report must repeat of it"
    with decoding(files[0], what, remedy="leave out --format sr"), quiet():
        report = _report(lesions, read_data_set(seg), source_images(files)[0], region)
    atomic_write(path, report.save_as)


def _report(lesions: Sequence[LesionMeasurement], seg: Any, sources: Sequence[Any], region: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=hd.UID(), name="metaseg", manufacturer_name="metaseg", model_name=PROGRAM
    )
    observer = hd.sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=Code("24590-2", "LN", "MR Brain"),
        imaging_measurements=[_group(lesion, seg, sources[0].SeriesInstanceUID, region) for lesion in lesions],
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=sources,
    )
    return hd.sr.Comprehensive3DSR(
        evidence=[*sources, seg],
        content=content[0],
        series_instance_uid=hd.UID(),
        series_number=int(sources[0].get("SeriesNumber") or 0) + 901,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="metaseg",
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description="metaseg measurements",
    )


def _group(lesion: LesionMeasurement, seg: Any, series: str, region: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    mm, mm3 = codes.UCUM.Millimeter, codes.UCUM.CubicMillimeter
    lengths = ((codes.SCT.LongAxis, lesion.longest_mm), (codes.SCT.ShortAxis, lesion.perpendicular_mm))
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=lesion.uid, identifier=lesion.name),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=lesion.segment,
            source_series=hd.sr.SourceSeriesForSegmentation(series),
        ),
        finding_type=concept_of(region),
        finding_sites=[hd.sr.FindingSite(anatomic_location=codes.SCT.Brain)],
        measurements=[
            *(hd.sr.Measurement(name=name, value=round(value, 2), unit=mm) for name, value in lengths),
            hd.sr.Measurement(name=codes.SCT.Volume, value=round(lesion.volume_mm3, 2), unit=mm3),
        ],
    )

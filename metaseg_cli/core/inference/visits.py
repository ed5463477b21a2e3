"""The visits of one patient: masks that are read, or made by a model from scans as people have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from metaseg_cli.config import FollowUpConfig
from metaseg_cli.core.datasets import CaseSource
from metaseg_cli.core.datasets.naming import image_files, is_bare_mask_name, is_predicted, mask_key, stem
from metaseg_cli.core.dicom import dicom_files, is_dicom, read_header, text_of
from metaseg_cli.core.formats import ARCHIVES, is_image_file, is_picture, stem_of, suffix_of
from metaseg_cli.core.images import Volume, on_grid_of, read_mask, read_scan, unpacked
from metaseg_cli.core.images.dicom_masks import modality_of
from metaseg_cli.core.inference.inputs import (
    ScanFiles,
    case_of_named,
    first_taken,
    name_of,
    scan_for,
    sources_of,
    unused_notes,
)
from metaseg_cli.core.inference.visit_masks import LabelledMask, names_of_labels
from metaseg_cli.core.paths import path_exists, unusable
from metaseg_cli.core.run_folder import find_model
from metaseg_cli.errors import InputError

if TYPE_CHECKING:
    from metaseg_cli.core.inference.predictor import Model


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whose visit it is and when, as DICOM headers say; empty where they do not, or where there are none."""

    patient: str = ""
    date: str = ""  # YYYY-MM-DD


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One visit. ``scan`` is None if there is a mask alone; ``made`` says that the model made the mask.

    ``series`` are the DICOM files of the scan.
    """

    name: str
    mask: LabelledMask
    scan: Volume | None
    identity: Identity
    series: tuple[Path, ...] = ()
    made: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed while reading."""
        return self.mask.volume.notes


def _distinct(paths: Sequence[Path]) -> list[str]:
    """Return distinct names: the files' stems, else with their folders, else numbers."""
    stems = [name_of(p) if p.is_dir() else stem_of(p).removesuffix("_mask") for p in paths]
    if len(set(stems)) == len(stems):
        return stems
    longer = [f"{p.resolve().parent.name}/{stem}" for p, stem in zip(paths, stems, strict=True)]
    return longer if len(set(longer)) == len(longer) else [f"visit {i}" for i in range(1, len(paths) + 1)]


def _parts_of(text: str) -> list[tuple[str, Path]]:
    """Split ``t1c=a.nii.gz,t2f=b.nii.gz`` into sequences and files; a path alone has the empty name."""
    if path_exists(text) or "=" not in text:
        return [("", Path(text))]
    pairs = [part.partition("=") for part in text.split(",")]
    if any(not sign or not path or not name.strip().isidentifier() for name, sign, path in pairs):
        raise InputError(
            f"--visit {text!r} does not name a file for each sequence", remedy="write --visit t1c=a.nii.gz,t2f=b.nii.gz"
        )
    return [(name.strip(), Path(path.strip())) for name, _, path in pairs]


class VisitReader:
    """Reads visits; the model is loaded once, and only when a visit has no mask."""

    def __init__(self, config: FollowUpConfig, after_window: Callable[[int, int], None] | None = None) -> None:
        self.config, self._after_window = config, after_window

    @cached_property
    def model(self) -> Model:
        """The model of the config, or the newest one."""
        from metaseg_cli.core.inference.predictor import load_model  # torch loads here

        return load_model(find_model(self.config.model), self.config.device)

    @property
    def used_model(self) -> Model | None:
        """The model if a visit needed it, or if the user named it."""
        return self.model if "model" in self.__dict__ or self.config.model is not None else None

    def names(self) -> list[str]:
        """Return a name for each visit: its file's, its folder's, or that of the sequence that the model uses."""
        paths = []
        for text in self.config.visits:
            parts = _parts_of(text)
            sequence, path = parts[0]
            if sequence:
                takes = self.model.card.sequences
                path = first_taken(case_of_named(parts, takes).sequences, takes)
            paths.append(path)
        return _distinct(paths)

    def read(self, name: str, text: str) -> Visit:
        """Read the visit that *text* means: a mask, a scan, a folder, a ZIP, or files of sequences.

        Raises InputError, also for what has no size in mm.
        """
        parts = _parts_of(text)
        for _, path in parts:
            problem = unusable(path)
            if problem is not None:
                raise InputError(problem.reason, where=path, remedy=problem.remedy)
            if is_picture(path):
                raise InputError("a picture has no lengths in mm", where=path, remedy="follow up volumes")
        (sequence, path), *_ = parts
        if sequence:
            return self._checked(self._predicted(name, case_of_named(parts, self.model.card.sequences)))
        with ExitStack() as stack:
            if path.is_file() and suffix_of(path) in ARCHIVES:
                path = stack.enter_context(unpacked(path))
            return self._checked(self._in_folder(name, path) if path.is_dir() else self._of_file(name, path))

    def _checked(self, visit: Visit) -> Visit:
        if visit.mask.volume.spacing_mm is None:
            raise InputError(
                "it does not say its spacing",
                where=visit.mask.volume.source,
                remedy="follow up volumes with a spacing in mm",
            )
        return visit

    def _of_file(self, name: str, path: Path) -> Visit:
        """Read a file: a mask, or else a scan."""
        try:
            mask = LabelledMask(volume=read_mask(path), names=names_of_labels(path))
        except InputError as error:
            try:
                read_scan([path])
            except InputError:
                raise error from None
            return self._predicted(name, self._only_source(path))
        return Visit(name=name, mask=mask, scan=None, identity=_identity([path]))

    def _in_folder(self, name: str, folder: Path) -> Visit:
        """Read a case folder or DICOM study: its mask where it has one, with the scan beside it; else the scan."""
        masks = _masks_in(folder)
        if not masks:
            return self._predicted(name, self._only_source(folder))
        if len(masks) > 1:
            listed = ", ".join(str(p.relative_to(folder)) for p in masks[:5])
            raise InputError(f"it holds {len(masks)} masks: {listed}", where=folder, remedy="name one of them")
        files, scan = self._scan_beside(folder)
        volume = read_mask(masks[0], scan)
        # A SEG leaves out slices without a lesion: it is placed on its scan.
        placed = on_grid_of(volume, scan) if scan is not None else None
        shown = scan if placed is not None else None
        volume = volume if placed is None else placed
        return Visit(
            name=name,
            mask=LabelledMask(volume=volume, names=names_of_labels(masks[0])),
            scan=shown,
            identity=_identity([*masks, *files]),
            series=() if shown is None else _series(files),
        )

    def _scan_beside(self, folder: Path) -> tuple[tuple[Path, ...], Volume | None]:
        """Return the scan in *folder* to show and align by, t1c if there is one, and its files; None for several."""
        sources, _, _ = sources_of([str(folder)])
        if len(sources) != 1:
            return (), None
        sequences = sources[0].sequences
        files = sequences.get("t1c") or next(iter(sequences.values()))
        return files, read_scan(files)

    def _only_source(self, path: Path) -> CaseSource:
        """Return the one case at *path* that the model takes. Raises InputError for none and for several."""
        sources, problems, _ = sources_of([str(path)])
        if not sources:
            first = problems[0] if problems else None
            raise InputError(
                first.reason if first else "no scan in it",
                where=first.file if first else path,
                remedy=first.remedy if first else "name a folder with the scans of one visit",
            )
        fitting = [source for source in sources if len(sources) == 1 or self._takes(source)]
        if len(fitting) != 1:
            named = ", ".join(source.case for source in sources[:5])
            raise InputError(
                f"it holds {len(sources)} scans, not those of one visit: {named}",
                where=path,
                remedy="name the folder of one visit, or its files as in --visit t1c=a.nii.gz,t2f=b.nii.gz",
            )
        return fitting[0]

    def _takes(self, source: CaseSource) -> bool:
        try:
            scan_for(self.model.card, source)
        except InputError:
            return False
        return True

    def _predicted(self, name: str, source: CaseSource) -> Visit:
        with ExitStack() as stack:
            scan = scan_for(self.model.card, source)
            if source.archive is not None:
                folder = stack.enter_context(unpacked(source.archive))
                scan = _inside(scan, folder)
            files = [f for files in (scan.values() if isinstance(scan, Mapping) else [(scan,)]) for f in files]
            given = scan if isinstance(scan, Path) else {k: list(v) for k, v in scan.items()}
            prediction = self.model.predict(given, strict=self.config.strict, after_window=self._after_window)
            identity = _identity(files)
        regions = self.model.card.regions
        region = list(regions).index(self.model.card.index_region)
        volume = prediction.source
        label_map = dataclasses.replace(
            volume, array=prediction.mask[None], notes=(*prediction.notes, *unused_notes(scan, source))
        )
        if not self.config.labels and not self.config.region:
            # The region's own layer: a label map cannot hold regions that overlap against their order.
            array = prediction.masks[region][None].astype("uint8")
            label_map = dataclasses.replace(label_map, array=array)
            regions = {self.model.card.index_region: (1,)}
        mask = LabelledMask(volume=label_map, regions=regions)
        return Visit(name=name, mask=mask, scan=volume, identity=identity, series=_series(files), made=True)


def _inside(scan: ScanFiles, folder: Path) -> ScanFiles:
    if isinstance(scan, Path):
        return folder / scan
    return {name: tuple(folder / file for file in files) for name, files in scan.items()}


def _masks_in(folder: Path) -> list[Path]:
    """Return the masks under *folder*, by the names of images and by the modality of DICOM files."""
    named = [
        path
        for path in image_files(folder)
        if not is_picture(path)
        and (is_bare_mask_name(stem(path)) or mask_key(stem(path), certain=False) is not None)
        and not is_predicted(stem(path), masks=False)
    ]
    return named + [path for path in dicom_files(folder) if modality_of(path) in ("SEG", "RTSTRUCT")]


def _series(files: Sequence[Path]) -> tuple[Path, ...]:
    found = [f for path in files for f in (dicom_files(path) if path.is_dir() else [path])]
    return tuple(f for f in found if not is_image_file(f) and is_dicom(f))


def _identity(files: Sequence[Path]) -> Identity:
    """Return patient and date of the first DICOM file among *files*, or in the folder of one."""
    for path in _series(files)[:1]:
        head = read_header(path, ["PatientID", "StudyDate"])
        date = text_of(head, "StudyDate")
        valid = len(date) == 8 and date.isdecimal()
        return Identity(
            patient=text_of(head, "PatientID").strip(), date=f"{date[:4]}-{date[4:6]}-{date[6:]}" if valid else ""
        )
    return Identity()

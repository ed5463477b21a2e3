"""Which structures of an RTSTRUCT, and which segments of a SEG or ``.seg.nrrd``, are lesions: by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from metaseg_cli.core.regions import belongs
from metaseg_cli.core.words import nfc, words
from metaseg_cli.errors import InputError

Kind = Literal["lesion", "derived", "organ", "unknown"]

_GTV = {"gtv", "gtvs", "gtvp", "gtvn", "gtvt", "gtvm"}
_LESION = {
    "met", "mets", "metastasis", "metastases", "metastase", "metastasen", "metastasi", "metastatic", "metastatica",
    "metastatique", "metastaza", "metast", "meta", "metas", "brm", "bm", "bms", "brainmet", "brainmets", "lesion",
    "lesions", "lesione", "lesioni", "lesionen", "lasion", "lasionen", "laesion", "laesionen", "lesao", "lesoes",
    "les", "tumor", "tumors", "tumour", "tumours", "tumoren", "tumeur", "tumeurs", "tumore", "tumori", "tumores",
    "neoplasm", "neoplasms", "glioma", "glioblastoma", "gbm", "meningioma", "cancer", "carcinoma", "mass", "filia",
    "filiae",
}  # fmt: skip
_EDEMA = {"edema", "oedema", "odem", "oedem", "oedeme", "infiltration", "snfh", "ed"}
_REGION = {
    "et", "tc", "wt", "netc", "ncr", "enhancing", "enhancement", "nonenhancing", "core", "necrosis",
    "necrotic", "nekrose", "necrose", "necrosi", "kern",
} | _EDEMA  # fmt: skip
_DERIVED = {
    "ptv", "ptvs", "pgtv", "ctv", "ctvs", "itv", "itvs", "prv", "prvs", "margin", "margins", "marge", "saum", "ring",
    "rings", "shell", "shells", "rind", "halo", "wall", "dose", "dosis", "isodose", "iso", "exp",
    "expand", "expanded", "expansion", "exp1", "dilated", "dilate", "dil", "opt", "opti", "optim", "optptv", "eval",
    "crop", "cropped", "cropp", "help", "helper", "hilf", "hilfs", "avoid", "avoidance", "z", "mm", "cm", "overlap",
    "igtv", "cavity", "bed", "bett", "resection", "kavitat", "hohle",
}  # fmt: skip
_DOSE = {"gy", "cgy"}
_ORGAN = {
    "brain", "brains", "hirn", "gehirn", "grosshirn", "cerveau", "encephale", "encefalo", "cervello", "cerebro",
    "cerebrum", "cerebellum", "kleinhirn", "cervelet", "brainstem", "stem", "stammhirn", "hirnstamm", "tronc",
    "tronco", "pons", "medulla", "midbrain", "chiasm", "chiasma", "opticchiasm", "lens", "lenses", "linse",
    "cristallin", "cristallino", "eye", "eyes", "eyeball", "auge", "oeil", "occhio", "ojo", "globe", "globes",
    "retina", "cornea", "cochlea", "cochleae", "hippocampus", "hippocampi", "hippo", "hippocampe", "ippocampo",
    "hipocampo", "optic", "opticnerve", "opticnrv", "nerve", "opticus", "bulbus", "innenohr", "nerves", "nrv", "nerv",
    "nerf", "sehnerv", "pituitary", "hypophyse", "hypophysis", "hypothalamus", "thalamus", "ventricle", "ventricles",
    "ventrikel", "ventricule", "ventr", "csf", "liquor", "skull", "schadel", "crane", "cranium", "bone", "bones",
    "knochen", "skin", "haut", "scalp", "external", "extern", "body", "outline", "outer", "couch", "table", "tisch",
    "patient", "head", "kopf", "parotid", "parotids", "parotis", "cord", "spinal", "spinalcord", "spinalcanal",
    "myelon", "canal", "lacrimal", "lacrimalgland", "lacrimals", "gland", "lung", "lungs", "heart", "liver", "kidney",
    "oral", "oralcavity", "larynx", "mandible", "esophagus", "oesophagus", "thyroid", "submand", "submandibular",
    "artery", "arteries", "vessel", "vessels", "vein", "veins", "sinus", "dura", "falx", "meninges", "matter", "gm",
    "wm", "cortex", "caudate", "putamen", "amygdala", "insula", "callosum", "normal", "healthy", "background",
    "hintergrund", "air", "frame", "helmet", "marker", "markers", "fiducial", "bolus", "clip", "implant",
    "prosthesis", "artifact", "artifacts", "artefact", "isocenter", "isocentre",
}  # fmt: skip
_MINUS = {"-", "minus", "without", "wo", "sans", "ohne", "no", "non", "sub", "subtract", "excl", "exclude", "less"}
_PARTS = {"left", "right", "l", "r"}
# Interpreted types (DICOM PS3.3 C.8.8.8) of volumes that are planned around a lesion.
_PLANNED_TYPES = {"PTV", "CTV", "TREATED_VOLUME", "IRRAD_VOLUME", "DOSE_REGION", "CONTROL"}
_OTHER_TYPES = {"EXTERNAL", "ORGAN", "AVOIDANCE", "SUPPORT", "FIXATION", "BOLUS", "MARKER", "REGISTRATION", "CAVITY"}
_VOCABULARY = frozenset(
    (_GTV | _LESION | _REGION | _DERIVED | _DOSE | _ORGAN | {"left", "right", "minus"})
    - {"z", "et", "tc", "wt", "ed", "les"}
)
_MANY = 20  # names in a message; the others are counted


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A named structure or segment: its *number* in the file, and what else the file says it is."""

    number: int
    name: str
    type: str = ""  # RTROIInterpretedType
    concept: str = ""  # the coded meaning of a segment


def kind_of(structure: Structure) -> Kind:
    """Return what a structure is by its name or, where that does not say, by its coded concept or type.

    A lesion may be named with its place (``Met cerebellum``, ``Brain met 2``); an organ may be named with what was cut
    out of it (``Brain-GTV``). When in doubt it is not a lesion: the user is shown what was excluded.
    """
    kind = _kind_of_name(structure.name)
    interpreted = structure.type.strip().upper()
    if kind == "organ" and interpreted == "GTV" and _is_gtv_of_organ(structure.name):
        return "lesion"
    if kind == "lesion" and interpreted in ("PTV", "CTV", "DOSE_REGION"):
        return "derived"
    if kind != "unknown":
        return kind
    if interpreted == "GTV":
        return "lesion"
    if interpreted in _PLANNED_TYPES:
        return "derived"
    if interpreted in _OTHER_TYPES:
        return "organ"
    return _kind_of_name(structure.concept)


def _kind_of_name(name: str) -> Kind:
    said = words(name, _VOCABULARY, signs=True)
    if set(said) & _DERIVED or _has_margin(said):
        return "derived"
    if set(said) & _DOSE and ("v" in said or not set(said) & (_GTV | _LESION)):  # but "GTV 20Gy" is a lesion
        return "derived"
    organs = [i for i, word in enumerate(said) if word in _ORGAN]
    targets = [i for i, word in enumerate(said) if word in _GTV | _LESION | _REGION]
    if not targets:
        return "organ" if organs else "unknown"
    if not organs or targets[0] < organs[0]:
        return "lesion"
    # "Brain met 2" is a lesion; "Brain-GTV", "Brain minus mets", "Brainstem core" and "Normal brain tumor" are not.
    of_organ = said[targets[0]] in _LESION and not {"normal", "healthy"} & set(said)
    return "lesion" if of_organ and not _is_cut_out(name) else "organ"


def _is_gtv_of_organ(name: str) -> bool:
    """Return whether the name is like ``Brain_GTV 1``, which only its type tells from a brain without its GTV."""
    return bool(set(words(name, _VOCABULARY)) & _GTV) and not _is_cut_out(name)


def _is_cut_out(name: str) -> bool:
    said = words(name, _VOCABULARY, signs=True)
    return bool(set(said[1:]) & _MINUS) or re.search(r"\w\s*-\s*[^\W\d]", name) is not None


def _has_margin(said: Sequence[str]) -> bool:
    """Return whether the structure was grown by a margin, or unites several: ``GTV+2``, ``Met 1 + 3``."""
    return any(a == "+" and b.isdigit() for a, b in pairwise(said))


def choose(
    structures: Sequence[Structure],
    wanted: Sequence[str],
    path: Path,
    *,
    segmentation: bool,
    regions: Sequence[str] = (),
) -> tuple[list[int], list[str]]:
    """Return the numbers of the structures that are lesions, or that *wanted* names, and notes on those excluded.

    *wanted* are names as in ``--structures``: upper and lower case are the same, ``*`` stands for anything. The
    segments of a *segmentation* are taken where all names are meaningless ("Segment_1"), and its oedema is a label of
    its own; contours of oedema are excluded beside a lesion. What belongs to one of the *regions* by its name is taken
    as well. Raises InputError with the names when nothing is
    recognised.
    """
    if wanted:
        patterns = [_pattern(name) for name in wanted]
        taken = [s.number for s in structures if any(p.fullmatch(nfc(s.name).strip()) for p in patterns)]
        if not taken:
            raise InputError(
                f"none of its structures is named {', '.join(wanted)}; it has {_listed(structures)}",
                where=path,
                remedy="correct --structures",
            )
        return taken, _excluded(structures, taken, "not asked for")
    kinds = {s.number: kind_of(s) for s in structures}
    taken = [number for number, kind in kinds.items() if kind == "lesion"]
    if not segmentation:
        oedema = [s.number for s in structures if s.number in taken and _is_oedema(s.name)]
        taken = [number for number in taken if number not in oedema] or taken
    asked = {s.number for s in structures if any(_is_asked(s, kinds[s.number], region) for region in regions)}
    taken = [s.number for s in structures if s.number in asked or s.number in taken]
    if not taken and segmentation and all(kind == "unknown" for kind in kinds.values()):
        return list(kinds), []
    if not taken:
        raise InputError(
            f"no structure is recognised as a lesion by its name; it has {_listed(structures)}",
            where=path,
            remedy="say which are lesions with --structures NAME,… (* stands for anything)",
        )
    return taken, _excluded(structures, taken, "not lesions by their names")


def _is_asked(structure: Structure, kind: Kind, region: str) -> bool:
    """Return whether a structure belongs to a region; what is derived, or an organ, by its full name only."""
    named = structure.name.strip().casefold() == region.strip().casefold()
    return named or (kind in ("lesion", "unknown") and belongs(structure.name, region))


def _is_oedema(name: str) -> bool:
    return bool(set(words(name, _VOCABULARY)) & _EDEMA)


def _pattern(name: str) -> re.Pattern[str]:
    parts = (re.escape(part) for part in nfc(name).strip().split("*"))
    return re.compile(".*".join(parts), re.IGNORECASE | re.DOTALL)


def _excluded(structures: Sequence[Structure], taken: Sequence[int], why: str) -> list[str]:
    left = [s for s in structures if s.number not in taken]
    return [f"structures left out, {why}: {_listed(left)}"] if left else []


def _listed(structures: Sequence[Structure]) -> str:
    names = [s.name.strip() or f"number {s.number}" for s in structures]
    return ", ".join(names[:_MANY]) + (f" and {len(names) - _MANY} more" if len(names) > _MANY else "")

"""By which rules cases were scored, in words."""

from __future__ import annotations

from metaseg_cli.core.choices import Protocol

_FOUND = {
    "overlap": "any predicted voxel overlaps it",
    "one-to-one": "it has a partner: pairs one to one, with the largest sum of Dice",
}


def criteria(protocol: Protocol) -> list[tuple[str, str]]:
    """Return name and meaning of each rule of *protocol* that numbers depend on."""
    lesions = f"voxels connected over {protocol.connectivity} neighbours ({protocol.connectivity_2d} in pictures)"
    if protocol.dilation:
        lesions += f"; of the reference, parts that {_steps(protocol.dilation)} of dilation join are one"
    if protocol.smallest_lesion_mm3:
        lesions += f"; those of the reference up to {protocol.smallest_lesion_mm3:g} mm³ are not counted"
    found = _FOUND[protocol.matching]
    if protocol.dilation and protocol.matching == "overlap":  # pairs are those that overlap as they are
        found += f", grown by {_steps(protocol.dilation)}"
    rows = [("rules", protocol.name), ("a lesion", lesions), ("found when", found)]
    if protocol.split_mm3 is not None:
        large = f"from {protocol.split_mm3:g} mm³ on by overlap, smaller ones by detection"
        rows.append(("large and small lesions", f"{large} (a hit: Dice of at least {protocol.hit_dice:g})"))
    surface = "border voxels" if protocol.border_voxels else "surface elements with their area"
    penalty = (
        "the diagonal of the image"
        if protocol.penalty_mm is None
        else f"{protocol.penalty_mm:g} mm (pixels without a spacing)"
    )
    return [*rows, ("surface of a lesion", surface), ("distance to an empty mask", f"in means {penalty}")]


def criteria_line(protocol: Protocol) -> str:
    """Return the rules that decide which lesions are found, in one line."""
    by = {name: text for name, text in criteria(protocol) if name in ("rules", "a lesion", "found when")}
    return f"rules: {by['rules']}; a lesion: {by['a lesion']}; found when {by['found when']}"


def _steps(count: int) -> str:
    return "one step" if count == 1 else f"{count} steps"

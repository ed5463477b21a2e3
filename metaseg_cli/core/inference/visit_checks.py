"""Whether visits are of one patient, in order of time, and can be placed in one head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from metaseg_cli.config import FollowUpConfig
from metaseg_cli.core.images import Alignment
from metaseg_cli.core.inference.visits import Visit
from metaseg_cli.errors import InputError


def check_patient(visits: Sequence[Visit], config: FollowUpConfig) -> list[str]:
    """Return a note where the PatientIDs differ and the user insists. Raises InputError where they do not."""
    known = [visit for visit in visits if visit.identity.patient]
    for visit in known[1:]:
        if visit.identity.patient != known[0].identity.patient:
            what = (
                f"different patients: PatientID {known[0].identity.patient!r} at {known[0].name}, "
                f"{visit.identity.patient!r} at {visit.name}"
            )
            if config.same_patient:
                return [f"{what}; taken as one patient (--same-patient)"]
            raise InputError(
                what,
                where=visit.mask.volume.source,
                remedy="name visits of one patient; if the IDs differ only by pseudonyms, pass --same-patient",
            )
    return []


def in_order(visits: Sequence[Visit], config: FollowUpConfig) -> tuple[list[Visit], list[str]]:
    """Return the visits in order of their StudyDates, and notes. Raises InputError where only some of them have dates.

    Visits without dates stay as they were given, and so do all where the dates that there are agree with that.
    """
    dates = [visit.identity.date for visit in visits if visit.identity.date]
    if all(earlier <= later for earlier, later in pairwise(dates)):
        same = sorted({date for date in dates if dates.count(date) > 1})
        return list(visits), [f"several visits have the StudyDate {date}: in the order given" for date in same]
    if len(dates) == len(visits):
        ordered = sorted(visits, key=lambda visit: visit.identity.date)
        return ordered, [f"put in order of their StudyDates: {', '.join(visit.name for visit in ordered)}"]
    if config.force:
        return list(visits), ["StudyDates contradict the order given, which was kept (--force)"]
    dated = ", ".join(f"{visit.name} {visit.identity.date or 'without a date'}" for visit in visits)
    raise InputError(
        f"the visits are not in order of their StudyDates: {dated}",
        remedy="name the earliest first; --force keeps the order given",
    )


def check_alignment(visit: Visit, alignment: Alignment, config: FollowUpConfig) -> list[str]:
    """Return how *visit* was aligned with the first one. Raises InputError for what is not plausible."""
    how = (
        f"aligned rigidly with the first visit, by {alignment.shift_mm:.1f} mm and {alignment.angle_degrees:.1f}°; "
        f"similarity {alignment.similarity:.2f}"
    )
    doubt = alignment.doubt
    if not doubt:
        return [how]
    if config.force:
        return [f"{how}: {doubt} (--force)"]
    raise InputError(
        f"its alignment with the first visit is doubtful: {doubt} ({how})",
        where=visit.mask.volume.source,
        remedy="check that it is the same patient and sequence, or register the scans first; --force goes on",
    )

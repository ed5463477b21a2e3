"""One name for each MRI sequence, whatever a folder or a scanner calls it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from metaseg_cli.core.words import strip_accents, words

# The names of the BraTS challenges since 2023, in the order in which networks receive them.
KNOWN = ("t1n", "t1c", "t2w", "t2f")
# Names that say nothing about the contrast: they fit any single sequence.
GENERIC = ("image", "grey", "mri", "mr", "volume")

# Pulse sequences that are T1-weighted by themselves, under the names of the vendors.
_T1_TECHNIQUES = {
    "mprage", "spgr", "fspgr", "irspgr", "irfspgr", "efgre3d", "bravo", "tfl", "vibe", "lava", "thrive", "ethrive",
    "tfe", "starvibe", "quick3d", "mp2rage",
}  # fmt: skip
# Words that exclude the four whatever else is said: other contrasts, maps, differences, other regions, set-up scans.
_OTHER = {
    "dwi", "dw", "dti", "dki", "noddi", "diff", "diffusion", "adc", "eadc", "dadc", "trace", "tracew", "tensor",
    "colfa", "ep2d", "epi", "epse", "resolve", "ssdwi", "hardi", "bold", "fmri", "rsfmri", "rest", "resting", "perf",
    "perfusion", "pwi", "dsc", "dce", "dyn", "dynamic", "dynamik", "dynamique", "twist", "grasp", "tricks", "asl",
    "pasl", "casl", "pcasl", "cbf", "cbv", "rcbv", "rcbf", "mtt", "ttp", "tmax", "ktrans", "leakage", "swi", "swan",
    "swip", "venbold", "qsm", "mra", "mrv", "cemra", "angio", "angiography", "tof", "venc", "mrs", "svs", "csi",
    "mrsi", "spectroscopy", "spectro", "spektroskopie", "cest", "apt", "mre", "localizer", "localiser", "localizers",
    "localisers", "localisateur", "lokalizer", "localizador", "loc", "locs", "scout", "aascout", "aahead", "aahscout",
    "survey", "surv", "topogram", "planscan", "reperage", "calibration", "cal", "calib", "shim", "fieldmap", "b0map",
    "b1map", "smartprep", "bolus", "careb", "tracking", "timing", "sub", "subs", "subtraction", "subtract",
    "subtracted", "subtractions", "subtr", "subtraktion", "sottrazione", "sustraccion", "soustraction", "difference",
    "differenz", "mip", "mips", "minip", "vrt", "fusion", "fused", "map", "maps", "mapping", "karte", "relaxometry",
    "rho", "t1rho", "t1map", "t2map", "molli", "inv", "inv1", "inv2", "seg", "segmentation", "segmentations", "mask",
    "overlay", "report", "screenshot", "secondary", "capture", "stir", "dir", "psir", "ciss", "fiesta", "feista",
    "truefisp", "trufi", "trufisp", "bffe", "btfe", "ci3d", "hyce", "spine", "cspine", "tspine", "lspine", "hws",
    "bws", "lws", "wirbelsaule", "rachis", "colonna", "columna", "pet", "ct", "cbct",
}  # fmt: skip
# Gradient echoes: T1-weighted where the text says T1, but T2* where it says T2.
_GRADIENT_ECHOES = {
    "gre", "fgre", "mgre", "gradient", "gradientecho", "ffe", "mffe", "flash", "fl2d", "fl3d", "fl", "medic", "merge",
    "hemo", "haemo", "heme", "hemosiderin", "me2d", "me3d",
}  # fmt: skip
_STAR = {"*", "star", "stern", "etoile", "s"}
_INVERSION = {"tirm", "tir", "ir"}
_PROTON_DENSITY = {"pd", "pdw", "pdt2", "dp", "proton", "dual", "dualecho"}

_AGENTS = {
    "contrast", "contraste", "contrasto", "kontrast", "kontrastmittel", "contr", "cont", "kontr", "wc", "gd", "gad",
    "gado", "gadolinium", "gadolinio", "gadovist", "gadavist", "dotarem", "magnevist", "multihance", "omniscan",
    "prohance", "clariscan", "vueway", "elucirem", "optimark", "ablavar", "primovist", "eovist", "artirem",
    "dotagraf", "dtpa", "gddtpa", "km", "ivkm", "mdc", "pdc", "ce", "civ", "inj", "injection", "iniezione",
    "inyeccion", "enhanced", "enhance", "enhancement", "enh", "rehausse", "增强", "增強", "造影", "造影後", "造影后",
}  # fmt: skip
_AGENT_STEMS = ("gado", "gada", "contrast", "kontrast", "inject", "injekt", "контраст", "гадо")
_NO_AGENT_ENDS = ("siz", "sız", "suz", "süz", "free", "los")  # Turkish "kontrastsız", German "kontrastlos"
_AFTER_NEGATION = {"c", "con", "cm", "mc"}  # the agent too, but only next to "without", "with" and their like
_WITHOUT = {
    "without", "wo", "wout", "ohne", "sans", "senza", "sin", "sem", "zonder", "utan", "uden", "no", "non", "not",
    "un", "pre", "vor", "avant", "before", "prima", "antes", "ante", "fore", "minus", "-", "zero", "bez", "przed",
    "pred", "ilman", "fara", "før", "без", "до",
}  # fmt: skip
_PLAIN = {
    "nativ", "native", "nativa", "nativo", "natif", "natives", "plain", "unenhanced", "nonenhanced", "unenh",
    "noncontrast", "precontrast", "noncon", "precon", "nonce", "nc", "woc", "pregad", "pregd", "pregado", "pre",
    "basale", "нативное", "平扫", "平掃", "造影前", "単純",
}  # fmt: skip
_AFTER = {
    "post", "pos", "apres", "dopo", "nach", "despues", "postcontrast", "postcon", "postgad", "postgd", "postgado",
    "postkm",
}  # fmt: skip
_FILLERS = {
    "i", "v", "iv", "ev", "e", "de", "di", "of", "the", "any", "d", "l", "/", "mezzo", "produit", "medio", "del",
    "dell", "della", "du", "des", "do", "a", "il", "la", "le", "el",
}  # fmt: skip
_WITH = {"w", "with", "mit", "con", "com", "avec", "c"}
_AND = {"and", "und", "et", "e", "y", "en", "og", "och", "/", "+"}
_FULL_NEGATIONS = {
    "without", "wo", "wout", "ohne", "sans", "senza", "sin", "sem", "zonder", "utan", "uden", "bez", "ilman", "без",
}  # fmt: skip
# "Post op" and "pre RT" refer to the treatment.
_TREATMENTS = {
    "op", "operative", "operativ", "operation", "operatoire", "surgery", "surgical", "rt", "xrt", "srs", "radiation",
    "radiotherapy", "tx", "treatment", "therapy", "chemo", "biopsy", "resection", "ablation", "litt",
}  # fmt: skip
_ALONG = {
    "ax", "axial", "axl", "axi", "oax", "sag", "sagittal", "osag", "cor", "coronal", "ocor", "tra", "trans", "2d",
    "3d", "fs", "fatsat", "tse", "fse", "frfse", "brain", "space", "spc", "cube", "vista", "adni", "propeller",
    "blade", "with", "mit", "con", "com", "avec", "and", "und", "ss",
}  # fmt: skip
# The challenges' own names, as words.
_SHORT = {"t1n": ("t1", "native"), "t2f": ("t2", "flair"), "t2fl": ("t2", "flair")}
_WEIGHTS = {"t1", "t2", "w", "wi", "weighted", "wichtung", "image", "images"}
_FLAIR = {"flair", "flairs", "vflair", "darkfluid", "dafl"}
_NAMES = (  # words that may form the name of a sequence on their own
    _WEIGHTS | _T1_TECHNIQUES | _FLAIR | _AGENTS | _WITHOUT | _PLAIN | _AFTER | {"c", "fl", "fla", "2d", "3d", "with"}
)
_VOCABULARY = frozenset(
    (set(_SHORT) | _NAMES | _OTHER | _GRADIENT_ECHOES | _ALONG | {"dark", "fluid", "tirm", "pd", "star"})
    - {"-", "image", "images", "fl", "fla", "un", "no", "sub", "loc", "cal", "rest", "map"}
)


def _words(text: str, *, signs: bool = False) -> tuple[str, ...]:
    return tuple(part for word in words(text, _VOCABULARY, signs=signs) for part in _SHORT.get(word, (word,)))


def known_sequence(text: str) -> str | None:
    """Return the known sequence that *text* names (``T1w-post`` → t1c); None if any word is left over."""
    said = _words(text)
    if said in (("fl",), ("fla",)):
        return "t2f"
    return from_description(text) if said and set(said) <= _NAMES else None


def sequence_name(text: str) -> str:
    """Return the known name where there is one; otherwise *text* in lower case with underscores."""
    return known_sequence(text) or re.sub(r"[\W_]+", "_", strip_accents(text).lower()).strip("_") or "image"


def case_and_sequence(name: str) -> tuple[str, str] | None:
    """Split ``BraTS19_CBICA_AAB_1_t1ce`` into case and t1c; a bare ``t1ce`` has an empty case. None: no known ending.

    The ending begins with the weighting (``p1_T2_FLAIR``), so that ``p1_post_flair`` is the case ``p1_post``; words
    about the contrast may follow a T1 (``p1_T1w_post``). Before a T1, ``post`` may refer to contrast or to surgery:
    None.
    """
    parts = re.split(r"([-_. ]+)", name)
    for count in range(min(5, len(parts)), 0, -2):
        ending, before = parts[-count:], parts[:-count]
        sequence = known_sequence("".join(ending))
        first = set(_words(ending[0]))
        if sequence is None or not first & (_T1_TECHNIQUES | _FLAIR | {"t1", "t2", "fl", "fla"}):
            continue
        if count > 1 and sequence not in ("t1n", "t1c") and "t2" not in first:
            continue  # p1_flair_post
        previous = before[-2].lower() if len(before) > 1 else ""
        if sequence == "t1n" and "t1" in first and previous in _AFTER | _AGENTS:
            return ("".join(before[:-3]), "t1c") if previous in _AGENTS else None
        return "".join(before[:-1]), sequence
    return None


def from_description(text: str, contrast_agent: bool | str = False) -> str | None:
    """Return the sequence that a scanner's free text means (``AX T1 MPRAGE POST GAD``); None where it does not say.

    *contrast_agent* is the header's ContrastBolusAgent: it counts unless the text contradicts it. Inversion-recovery T1
    (``T1 FLAIR``) is T1. A text with both "with" and "without" contrast means nothing unless the header decides.
    """
    said = _words(text, signs=True)
    if _is_other(said):
        return None
    t1 = "t1" in said or bool(_T1_TECHNIQUES & set(said)) or _next_to(said, "mp", "rage")
    t2 = "t2" in said
    flair = bool(_FLAIR & set(said)) or _next_to(said, "dark", "fluid") or _next_to(said, "da", "fl")
    flair = flair or _next_to(said, "fluid", "attenuated")
    if t1 and t2:
        return None
    if t1:
        answers = _contrast(said)
        if answers == {True} or (answers != {False} and _names_agent(contrast_agent)):
            return "t1c"
        return None if len(answers) == 2 or (not answers and not _is_legible(said)) else "t1n"
    if flair:
        return "t2f"
    if not t2 or set(said) & (_GRADIENT_ECHOES | _INVERSION | _PROTON_DENSITY):
        return None
    return "t2w"


def _names_agent(agent: bool | str) -> bool:
    """Return whether the header's field names a contrast agent; some scanners fill it with NONE."""
    if not isinstance(agent, str):
        return bool(agent)
    said = set(words(agent, _VOCABULARY))
    return bool(said) and not said & (
        _WITHOUT | _PLAIN | {"none", "n", "nil", "nein", "false", "keine", "kein", "null"}
    )


def _is_other(said: Sequence[str]) -> bool:
    """Return whether a word says that the series is not one of the four."""
    for i, word in enumerate(said):
        following = said[i + 1] if i + 1 < len(said) else ""
        if word in _OTHER and not (word == "sub" and following.isdigit()):  # sub-01 is a subject
            return True
        if word == "t2" and following in _STAR:
            return True
        if word == "b" and following.isdigit() and int(following) >= 50:  # b1000, a diffusion weighting
            return True
        if (word, following) == ("phase", "contrast"):
            return True
    # Of the images of MP2RAGE only the uniform one is T1-weighted; the others are inversions and a map of T1.
    both = "mp2rage" in said or (_next_to(said, "mp", "2") and "rage" in said)
    return both and not {"uni", "uniden", "unit1"} & set(said)


def _next_to(said: Sequence[str], first: str, second: str) -> bool:
    return any(pair == (first, second) for pair in pairwise(said))


def _is_legible(said: Sequence[str]) -> bool:
    """Return whether all words are known or in Latin letters; others may speak of contrast and are not understood."""
    return all(word in _VOCABULARY or strip_accents(word).isascii() for word in said)


def _is_agent(word: str) -> bool:
    return word in _AGENTS or (word.startswith(_AGENT_STEMS) and not word.endswith(_NO_AGENT_ENDS))


def _is_without_agent(word: str) -> bool:
    return word in _PLAIN or (word.startswith(_AGENT_STEMS) and word.endswith(_NO_AGENT_ENDS))


def _contrast(said: Sequence[str]) -> set[bool]:
    """Return what the words say about contrast agent: {True}, {False}, both, or nothing."""
    said = _without_treatment(said)
    answers: set[bool] = set()
    i = 0
    while i < len(said):
        length = 1
        if negation := _negation(said, i):
            reach = _agent_within(said, i + negation)
            if reach is not None:
                answers.add(False)
                length = reach + 1 - i
            elif said[i] in _PLAIN or negation > 1 or _stands_alone(said, i):  # "T1 PRE", "T1 W/O", "T1 ohne"
                answers.add(False)
                length = negation
        elif _is_without_agent(said[i]) or (
            (_is_agent(said[i]) or said[i] in ("c", "iv")) and said[i + 1 : i + 2] == ["-"]
        ):
            answers.add(False)
        elif said[i] in _AFTER or _is_agent(said[i]) or _is_c(said, i) or _is_both(said, i):
            answers.add(True)
        i += length
    return answers


def _without_treatment(said: Sequence[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word, following in zip(said, [*said[1:], ""], strict=True):
        if word in ("pre", "post") and following in _TREATMENTS:
            skip = True
        elif skip:
            skip = False
        else:
            kept.append(word)
    return kept


def _negation(said: Sequence[str], i: int) -> int:
    """Return how many words from *i* on negate what follows: ``without``, ``w / o``; 0 for none."""
    for pattern in (("w", "/", "o"), ("w", "/", "out"), ("w", "o"), ("s", "/"), ("o",), ("s", "c")):
        if tuple(said[i : i + len(pattern)]) == pattern:
            if pattern in (("o",), ("s", "/")) and _agent_within(said, i + len(pattern)) is None:
                return 0  # only next to an agent do such single letters mean anything
            return 1 if pattern == ("s", "c") else len(pattern)
    return int(said[i] in _WITHOUT)


def _stands_alone(said: Sequence[str], i: int) -> bool:
    """Return whether a "without" ends the text, or is followed by "and with": it then speaks of the contrast."""
    return said[i] in _FULL_NEGATIONS and (i + 1 == len(said) or said[i + 1] in _AND | _WITH)


def _is_both(said: Sequence[str], i: int) -> bool:
    """Return whether *i* begins "with and without contrast"; the second half is read as any other negation."""
    if said[i] not in _WITH:
        return False
    i += 1
    while i < len(said) and said[i] in _AND:
        i += 1
    return i < len(said) and said[i] in _FULL_NEGATIONS | {"w"} and _negation(said, i) > 0


def _agent_within(said: Sequence[str], start: int) -> int | None:
    """Return where an agent follows at *start*, with nothing but fillers (``ohne i.v. KM``) before it."""
    for i in range(start, min(start + 5, len(said))):
        if _is_agent(said[i]) or said[i] in _AFTER_NEGATION:
            followed = i + 1 < len(said) and _is_agent(said[i + 1])
            if said[i] == "con" and followed:  # "senza e con mdc": here it means with
                return None
            return i + 1 if followed else i  # "non contrast enhanced"
        if said[i] not in _FILLERS:
            return None
    return None


def _is_c(said: Sequence[str], i: int) -> bool:
    """Return whether ``c`` or ``+`` at *i* means contrast: T1C, T1 C, +C, C+, T1+; but not in C-spine or C5."""
    before = [word for word in said[:i] if word not in _WEIGHTS - {"t1", "t2"}]
    last, following = (before[-1] if before else ""), said[i + 1] if i + 1 < len(said) else ""
    if said[i] == "+":
        return not following or following in _AFTER_NEGATION | _AGENTS
    if said[i] in ("con", "cm"):
        return not following or last in ("w", "with", "post", "mit", "/")
    return said[i] == "c" and (last in ("t1", "+") or following in ("+", "/") or (not following and not last.isdigit()))


def in_order(names: set[str]) -> tuple[str, ...]:
    """Sort: known sequences first, in their order, then the others by name, whatever order the files came in."""
    return tuple(sorted(names, key=lambda n: (KNOWN.index(n) if n in KNOWN else len(KNOWN), n)))

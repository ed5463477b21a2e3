"""Which structures and segments are lesions: by their names, never an organ and never a margin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import generate_uid

from metaseg_cli.config import PrepareConfig
from metaseg_cli.core.datasets import scans_under
from metaseg_cli.core.images import Volume, read_image, read_mask
from metaseg_cli.core.images.structure_names import Structure, choose, kind_of
from metaseg_cli.errors import ConfigError, InputError
from tests.dicom_files import SHAPE, numbers, square, write_rtstruct, write_series

LESIONS = """GTV|GTV1|GTVp1|gtv_1|GTV_Met1|GTV_MetIA_1|Met1|Met_1|MET 3|Mets 1|METs|BM2|Metastasis_1|Metastase 1
Metastasen|Lesion 2|Tumor|Tumour1
L frontal met|Met cerebellum|GTV_cerebellum|Brain met 2|BrainMet1|brain_met_1|BRAINMETS|brainmets
Cerebellar met|ET|TC|WT|Enhancing|Non-enhancing tumor core|Necrosis|Peritumoral edema|Läsion 1|lésion|Tumeur|METright
GTV R parietal|GTVmet1|Met_T1|GTV-1|Metastasis, left|01 Met frontal|Right temporal lobe lesion|necrotic core
Meta 1|BrM1|GTV Met03 LtFront 20Gy|GTV_20Gy"""
DERIVED = """PTV|PTV_GTV1+2mm|PTV met|CTV_Met1|ITV1|GTV+2mm|GTV1 + 2 mm|GTV_2mm|Met1_3mm|GTV exp|GTV_expand
Met1 margin|Ring|Shell_Met1|Dose 12Gy|20Gy|V12Gy|iso50|PTV-GTV|zPTV_Wall|zGTV1|PTVmet1|GTV1+2|Brainstem_PRV|CTV1cm
Tumor bed|Tumorbett|Brain minus PTV|Mets V12Gy|PTV 20Gy"""
ORGANS = """Brain|Brainstem|BRAINSTEM|OpticChiasm|Optic Chiasm|Lens_L|Eye R|Cochlea_L|Hippocampus_L|OpticNrv_R|Brain-GTV
NormalBrain|Normal Brain|Brain - GTV|External|BODY|CouchSurface|Skull|Ventricles|Parotid_L|SpinalCord|Cord|Brain (1)
BrainstemCore|Brain-Mets|brain_minus_mets|BrainMinusGTV|Hirnstamm|White matter|N.opticus"""
UNKNOWN = "Segment_1|Label 1|1||Structure1|Target"


def names(text: str) -> list[str]:
    return text.replace("\n", "|").split("|")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("lesion", n) for n in names(LESIONS)),
        *(("derived", n) for n in names(DERIVED)),
        *(("organ", n) for n in names(ORGANS)),
        *(("unknown", n) for n in names(UNKNOWN)),
    ],
)
def test_a_structure_is_what_its_name_says(kind: str, name: str) -> None:
    assert kind_of(Structure(number=1, name=name)) == kind


@pytest.mark.parametrize(
    ("name", "interpreted", "kind"),
    [
        ("A", "GTV", "lesion"),
        ("A", "PTV", "derived"),
        ("A", "ORGAN", "organ"),
        ("Met1", "ORGAN", "lesion"),
        ("Met1", "PTV", "derived"),
        ("Brain", "GTV", "organ"),
        ("Brain_GTV 1", "GTV", "lesion"),
        ("GTV+2mm", "GTV", "derived"),
    ],
)
def test_the_type_decides_where_the_name_does_not(name: str, interpreted: str, kind: str) -> None:
    assert kind_of(Structure(number=1, name=name, type=interpreted)) == kind


def test_the_coded_concept_decides_where_name_and_type_do_not() -> None:
    assert kind_of(Structure(number=1, name="Segment_1", concept="Metastasis")) == "lesion"
    assert kind_of(Structure(number=1, name="Segment_1", concept="Brain")) == "organ"


def several(*named: str) -> list[Structure]:
    return [Structure(number=i, name=name) for i, name in enumerate(named, start=1)]


def chosen(*named: str, wanted: tuple[str, ...] = (), segmentation: bool = False) -> list[int]:
    return choose(several(*named), wanted, Path("rt.dcm"), segmentation=segmentation)[0]


def test_with_no_lesion_recognised_nothing_is_taken_and_the_names_are_listed() -> None:
    for named in (["Brain", "Target"], ["PTV1", "CTV1"], ["Target A"]):
        with pytest.raises(InputError, match=named[0]) as caught:
            chosen(*named)
        assert "--structures" in caught.value.remedy


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(("ptv*",), [2, 3]), (("brain", "PTV 1"), [1, 2]), (("*1",), [2]), (("*",), [1, 2, 3]), (("none", "BRAIN"), [1])],
)
def test_structures_are_chosen_by_name_with_wildcards(wanted: tuple[str, ...], expected: list[int]) -> None:
    assert chosen("Brain", "PTV 1", "ptv[2]", wanted=wanted) == expected


def test_a_name_asked_for_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(InputError, match="Brain, Met1"):
        chosen("Brain", "Met1", wanted=("Met2",))
    assert chosen("Met\u00e4 1", wanted=("meta\u0308 1",)) == [1]  # another Unicode form


def test_oedema_is_a_label_of_a_segmentation_and_no_lesion_among_contours() -> None:
    assert chosen("GTV1", "Edema") == [1]
    assert chosen("Tumor", "Edema", segmentation=True) == [1, 2]


def test_segments_that_say_nothing_are_taken_and_anatomy_is_not() -> None:
    assert chosen("Segment_1", "", segmentation=True) == [1, 2]
    assert chosen("Met1", "Brain", "Segment_3", segmentation=True) == [1]
    with pytest.raises(InputError, match="Brain"):
        chosen("Brain", "Segment_2", segmentation=True)


def test_settings_read_names_and_refuse_none(tmp_path: Path) -> None:
    assert PrepareConfig(raw=tmp_path, structures="GTV*, Met 1").structure_names() == ("GTV*", "Met 1")
    with pytest.raises(ConfigError, match="--structures"):
        PrepareConfig(raw=tmp_path, structures=" , ")


# -- files -----------------------------------------------------------------------------------------------------------


def rtstruct(folder: Path, *named: str) -> Volume:
    study = generate_uid()
    paths = write_series(folder / "P1", numbers(), study=study)
    scan = read_image(folder / "P1")
    series = str(pydicom.dcmread(paths[0]).SeriesInstanceUID)
    rois = {name: [square(2.5 + 3 * i, 4.5 + 3 * i, 2)] for i, name in enumerate(named)}
    write_rtstruct(folder / "rt", scan, study, series, rois)
    return scan


def test_an_rtstruct_gives_its_lesions_and_says_what_it_left_out(tmp_path: Path) -> None:
    scan = rtstruct(tmp_path, "Brain", "Met1", "PTV_Met1+2mm")
    mask = read_mask(tmp_path / "rt", scan)
    assert np.argwhere(mask.array[0]).min(axis=0).tolist() == [2, 6, 6]
    assert int(mask.array.sum()) == 4
    assert any("Brain" in note and "PTV_Met1+2mm" in note for note in mask.notes)
    other = read_mask(tmp_path / "rt", scan, ("brain",))
    assert np.argwhere(other.array[0]).min(axis=0).tolist() == [2, 3, 3]


def test_an_rtstruct_without_lesions_is_refused(tmp_path: Path) -> None:
    scan = rtstruct(tmp_path, "Brain", "External")
    with pytest.raises(InputError, match="Brain, External"):
        read_mask(tmp_path / "rt", scan)


def test_the_chosen_structures_reach_the_prepared_folder(tmp_path: Path) -> None:
    from metaseg_cli.commands.prepare import prepare
    from metaseg_cli.core.progress import Silent

    rtstruct(tmp_path / "raw", "Brain", "Target")
    config: dict[str, Any] = {"raw": tmp_path / "raw", "out": tmp_path / "out", "workers": 1, "spacing": "native"}
    with pytest.raises(InputError, match="Brain, Target"):
        prepare(PrepareConfig(**config), Silent())
    result = prepare(PrepareConfig(**config, structures="target"), Silent())
    assert [case.lesion_voxels for case in result.cases] == [(4,)]


def seg_of(tmp_path: Path, *named: str) -> Path:
    highdicom = pytest.importorskip("highdicom")
    from pydicom.sr.codedict import codes

    paths = write_series(tmp_path / "s", numbers())
    headers = [pydicom.dcmread(path) for path in sorted(paths)]
    pixels = np.zeros((len(headers), *SHAPE[1:], len(named)), np.uint8)
    for i in range(len(named)):
        pixels[2, 2 + 3 * i : 4 + 3 * i, 5:9, i] = 1
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=i,
            segment_label=name,
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for i, name in enumerate(named, start=1)
    ]
    seg = highdicom.seg.Segmentation(
        source_images=headers,
        pixel_array=pixels,
        segmentation_type="BINARY",
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
    )
    seg.save_as(tmp_path / "seg.dcm")
    return tmp_path / "seg.dcm"


def test_of_a_seg_with_anatomy_only_lesions_are_taken(tmp_path: Path) -> None:
    mask = read_mask(seg_of(tmp_path, "Brain", "Met1", "Met2"))
    assert {int(v) for v in np.unique(mask.array)} == {0, 2, 3}
    assert any("Brain" in note and "left out" in note for note in mask.notes)


def test_of_a_seg_with_names_that_say_nothing_all_are_taken(tmp_path: Path) -> None:
    path = seg_of(tmp_path, "Segment_1", "Segment_2")
    assert {int(v) for v in np.unique(read_mask(path).array)} == {0, 1, 2}
    assert {int(v) for v in np.unique(read_mask(path, structures=("*_2",)).array)} == {0, 2}


def test_a_seg_that_predict_wrote_is_no_scan(tmp_path: Path) -> None:
    seg = seg_of(tmp_path, "metastasis")
    (tmp_path / "out").mkdir()
    seg.rename(tmp_path / "out" / "s_mask.dcm")
    assert scans_under(tmp_path / "out").cases == ()
    assert [c.first_file.parent.name for c in scans_under(tmp_path).cases] == ["s"]


def seg_nrrd(path: Path, layers: np.ndarray, *segments: tuple[str, int, int], tags: str = "") -> Path:
    """*layers* ``(L, Z, Y, X)``; *segments*: name, layer, label value."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(layers, 0, -1)), isVector=len(layers) > 1)
    if len(layers) == 1:
        image = sitk.GetImageFromArray(layers[0])
    for i, (name, layer, value) in enumerate(segments):
        for key, text in (("ID", f"S{i}"), ("Name", name), ("Layer", str(layer)), ("LabelValue", str(value))):
            image.SetMetaData(f"Segment{i}_{key}", text)
        if tags:
            image.SetMetaData(f"Segment{i}_Tags", tags)
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def merge_config(*boxes: tuple[int, int, int]) -> np.ndarray:
    """(layer, from, value): cubes of 3 voxels."""
    array = np.zeros((max(b[0] for b in boxes) + 1, 4, 12, 14), np.uint8)
    for layer, start, value in boxes:
        array[layer, 1:3, start : start + 3, start : start + 3] = value
    return array


def test_the_layers_of_a_seg_nrrd_are_read_with_their_label_values(tmp_path: Path) -> None:
    layers = merge_config((0, 1, 1), (1, 2, 1), (1, 7, 2))
    path = seg_nrrd(tmp_path / "a.seg.nrrd", layers, ("Met 1", 0, 1), ("Met 2", 1, 1), ("Met 3", 1, 2))
    mask = read_mask(path)
    np.testing.assert_array_equal(mask.array, layers)
    assert any("Met 3" in note for note in mask.notes)


def test_of_a_seg_nrrd_with_anatomy_only_lesions_are_taken(tmp_path: Path) -> None:
    layers = merge_config((0, 1, 1), (1, 2, 1), (1, 7, 2))
    path = seg_nrrd(tmp_path / "a.seg.nrrd", layers, ("Brain", 0, 1), ("Met 2", 1, 1), ("Skull", 1, 2))
    expected = np.zeros_like(layers)
    expected[1] = layers[1] == 1
    np.testing.assert_array_equal(read_mask(path).array, expected)
    skull = read_mask(path, structures=("skull",)).array
    np.testing.assert_array_equal(skull[1], np.where(layers[1] == 2, 2, 0))


def test_one_layer_of_a_seg_nrrd_is_chosen_from_too(tmp_path: Path) -> None:
    layers = merge_config((0, 1, 1), (0, 7, 200))
    path = seg_nrrd(tmp_path / "a.seg.nrrd", layers, ("Brain", 0, 1), ("GTV", 0, 200))
    np.testing.assert_array_equal(read_mask(path).array[0], np.where(layers[0] == 200, 200, 0))


def test_generic_segments_of_slicer_are_all_taken_and_stray_labels_are_said(tmp_path: Path) -> None:
    path = seg_nrrd(tmp_path / "a.seg.nrrd", merge_config((0, 1, 1), (0, 7, 5)), ("Segment_1", 0, 1))
    mask = read_mask(path)
    assert {int(v) for v in np.unique(mask.array)} == {0, 1}
    assert any("5" in note and "no segment" in note for note in mask.notes)


def test_slicers_own_list_axis_is_read(tmp_path: Path) -> None:
    layers = merge_config((0, 1, 1), (1, 7, 1))
    head = (
        "NRRD0004\ntype: unsigned char\ndimension: 4\nspace: left-posterior-superior\nsizes: 2 14 12 4\n"
        "space directions: none (1,0,0) (0,1,0) (0,0,1)\nkinds: list domain domain domain\nencoding: raw\n"
        "space origin: (0,0,0)\nSegment0_Name:=Met 1\nSegment0_Layer:=0\nSegment0_LabelValue:=1\n"
        "Segment1_Name:=Brain\nSegment1_Layer:=1\nSegment1_LabelValue:=1\n\n"
    )
    # The list is the fastest axis: the layers of one voxel lie side by side.
    (tmp_path / "a.seg.nrrd").write_bytes(head.encode() + np.ascontiguousarray(np.moveaxis(layers, 0, -1)).tobytes())
    expected = layers.copy()
    expected[1] = 0
    np.testing.assert_array_equal(read_mask(tmp_path / "a.seg.nrrd").array, expected)


def test_several_layers_without_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 channels"):
        read_mask(seg_nrrd(tmp_path / "a.nrrd", merge_config((0, 1, 1), (1, 7, 1))))


def test_a_header_that_names_more_layers_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more layers"):
        read_mask(seg_nrrd(tmp_path / "a.seg.nrrd", merge_config((0, 1, 1)), ("Met", 3, 1)))


def test_a_segments_concept_is_read_from_slicers_tags(tmp_path: Path) -> None:
    tags = "Segmentation.Status:x|TerminologyEntry:Category and type~SCT^123037004^Anatomical~SCT^12738006^Brain~^^|"
    path = seg_nrrd(tmp_path / "a.seg.nrrd", merge_config((0, 1, 1)), ("Segment_1", 0, 1), tags=tags)
    with pytest.raises(InputError, match="Segment_1"):
        read_mask(path)


def test_one_structure_of_no_name_is_listed_by_its_number() -> None:
    with pytest.raises(InputError, match="number 1"):
        choose([Structure(number=1, name="")], (), Path("rt"), segmentation=False)


def test_a_seg_nrrd_that_was_renamed_is_still_one(tmp_path: Path) -> None:
    layers = merge_config((0, 1, 1), (0, 7, 2))
    path = seg_nrrd(tmp_path / "a.seg.nrrd", layers, ("Brain", 0, 1), ("GTV", 0, 2)).rename(tmp_path / "a-label.nrrd")
    np.testing.assert_array_equal(read_mask(path).array[0], np.where(layers[0] == 2, 2, 0))


@pytest.mark.parametrize("value", [0, 300, -1])
def test_a_segment_whose_label_cannot_be_one_is_refused(tmp_path: Path, value: int) -> None:
    path = seg_nrrd(tmp_path / "a.seg.nrrd", merge_config((0, 1, 1)), ("Met 1", 0, value))
    with pytest.raises(InputError, match="labels from 1 to 255"):
        read_mask(path)

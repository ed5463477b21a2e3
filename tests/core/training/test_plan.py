"""The plan follows from data and device."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from metaseg_cli.core.cache import open_prepared
from metaseg_cli.core.training.plan import DeviceInfo, Plan, PlanOverrides, make_plan


def test_the_plan_is_explained_and_can_be_overridden(prepared: Path) -> None:
    folder = open_prepared(prepared)
    plan = make_plan(folder, folder.cases, model="attention-unet", overrides=PlanOverrides())
    assert plan.dims == 2
    assert plan.patch == (1, 64, 64)
    assert len(plan.reasons) >= 4
    overrides = PlanOverrides(patch=(32,), batch_size=3, widths=(4, 8), context=2, foreground_prior=0.1)
    other = make_plan(folder, folder.cases, model="unet++", overrides=overrides)
    assert (other.patch, other.batch_size, other.widths) == ((1, 32, 32), 3, (4, 8))
    assert (other.context, other.foreground_prior) == (2, 0.1)
    nested = [
        make_plan(folder, folder.cases, model="unet++", device=DeviceInfo(gpu=gpu), overrides=PlanOverrides())
        for gpu in (False, True)
    ]
    assert [each.widths[0] for each in nested] == [16, 32]
    assert any("nested-unet on a processor" in reason for reason in nested[0].reasons)
    small = make_plan(
        folder, folder.cases, model="unet++", device=DeviceInfo(memory_bytes=10_000_000), overrides=PlanOverrides()
    )
    assert small.batch_size < plan.batch_size
    assert any("would not fit" in reason for reason in small.reasons)


def test_small_lesions_in_3d_get_small_patches_and_a_narrow_network(prepared: Path) -> None:
    folder = dataclasses.replace(open_prepared(prepared), kind="volumes")

    def plan(*lesions: int, gpu: bool = False) -> Plan:
        case = dataclasses.replace(
            folder.cases[0], shape=(80, 160, 160), spacing_mm=(1.0, 1.0, 1.0), lesion_voxels=lesions
        )
        return make_plan(folder, [case], model="attention-unet", device=DeviceInfo(gpu=gpu), overrides=PlanOverrides())

    small = plan(4, 14, 60, 200)
    assert (small.patch, small.batch_size, small.widths[0]) == ((32, 32, 32), 4, 16)
    assert any("lesions of up to" in reason for reason in small.reasons)
    for usual in (plan(4, 14, 4000), plan()):
        assert (usual.patch, usual.widths[0]) == ((64, 64, 64), 32)
    assert plan(4, 14, gpu=True).widths[0] == 32


def test_a_coarse_axis_is_pooled_last(prepared: Path) -> None:
    folder = dataclasses.replace(open_prepared(prepared), kind="volumes")

    def plan(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Plan:
        case = dataclasses.replace(folder.cases[0], shape=shape, spacing_mm=spacing)
        return make_plan(folder, [case], model="attention-unet", overrides=PlanOverrides())

    thick = plan((40, 256, 256), (2.5, 1.0, 1.0))
    assert thick.dims == 3
    assert thick.strides[0] == (1, 2, 2)
    assert thick.strides[1] == (2, 2, 2)
    slices = plan((23, 256, 256), (6.5, 0.8, 0.8))
    assert (slices.dims, slices.context) == (2, 1)

"""Grids, exact reorientation and resampling, against closed forms and SimpleITK."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from MedSSLLib.core.errors import InputError
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume, moved, oriented
from Testing.lib.case_helpers import each

Make = Callable[..., Volume]
CODES = [
    a + b + c
    for a, b, c in [
        ("L", "P", "S"),
        ("R", "A", "S"),
        ("P", "I", "R"),
        ("S", "L", "A"),
        ("I", "R", "P"),
    ]
]


def affine(geometry: Geometry, index: tuple[int, int, int]) -> np.ndarray:
    """Position of a voxel by the definition, axis by axis."""
    direction = np.reshape(geometry.direction, (3, 3))
    return np.array(geometry.origin) + sum(
        direction[:, axis] * geometry.spacing[axis] * index[axis] for axis in range(3)
    )


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any size, spacing, origin and orthonormal direction (left-handed ones too)."""
    size = tuple(draw(st.integers(2, 7)) for _ in range(3))
    spacing = tuple(draw(st.floats(0.3, 8.0)) for _ in range(3))
    origin = tuple(draw(st.floats(-300, 300)) for _ in range(3))
    matrix = np.array([draw(st.floats(-1, 1)) for _ in range(9)]).reshape(3, 3) + 2 * np.diag(
        [draw(st.sampled_from([-1, 1])) for _ in range(3)]
    )
    rotation = np.linalg.qr(matrix)[0][:, draw(st.permutations(range(3)))]
    return Geometry(size, spacing, origin, tuple(float(v) for v in rotation.ravel()))


def labelled_noise(geometry: Geometry, seed: int = 0) -> Volume:
    return Volume(
        np.random.default_rng(seed).normal(size=geometry.shape).astype(np.float32), geometry
    )


class TestGeometry:
    @given(geometries(), st.data())
    def test_points_and_indices(self, geometry: Geometry, data: st.DataObject) -> None:
        index = tuple(data.draw(st.integers(0, size - 1)) for size in geometry.size)
        point = geometry.points(np.array(index))
        assert np.allclose(point, affine(geometry, index))
        assert np.allclose(geometry.indices(point), index, atol=1e-6)
        assert np.allclose((geometry.matrix @ [*index, 1])[:3], point)

    def test_close_to(self, geometry: Geometry) -> None:
        shift = 0.05 * min(geometry.spacing)
        near = Geometry(
            geometry.size,
            geometry.spacing,
            (geometry.origin[0] + shift, *geometry.origin[1:]),
            geometry.direction,
        )
        far = Geometry(
            geometry.size,
            geometry.spacing,
            (geometry.origin[0] + 4 * shift, *geometry.origin[1:]),
            geometry.direction,
        )
        assert geometry.close_to(near) and near.close_to(geometry)
        assert not geometry.close_to(far)
        assert "origin" in far.difference(geometry)
        assert "size" in moved(geometry, (0, 0, 0), (3, 3, 3)).difference(geometry)

    def test_a_small_error_that_grows_along_an_axis_counts(self) -> None:
        long = Geometry((400, 4, 4))
        assert "spacing" in Geometry((400, 4, 4), (1.001, 1, 1)).difference(long)
        assert Geometry((40, 4, 4), (1.001, 1, 1)).close_to(Geometry((40, 4, 4)))

    @given(geometries())
    def test_moved_is_the_same_lattice(self, geometry: Geometry) -> None:
        part = moved(geometry, (1, -2, 3), (2, 2, 2))
        assert np.allclose(part.points(np.array([1, 1, 1])), affine(geometry, (2, -1, 4)))


class TestOrient:
    @settings(deadline=None)
    @given(geometries(), st.sampled_from(CODES))
    def test_every_voxel_keeps_value_and_place(self, geometry: Geometry, code: str) -> None:
        volume = labelled_noise(geometry)
        turned = io.orient(volume, code)
        places = {
            tuple(np.round(turned.geometry.points(np.array([i, j, k])), 4)): turned.array[k, j, i]
            for k, j, i in np.ndindex(turned.geometry.shape)
        }
        for k, j, i in np.ndindex(geometry.shape):
            assert (
                places[tuple(np.round(affine(geometry, (i, j, k)), 4) + 0.0)]
                == volume.array[k, j, i]
            )

    @settings(deadline=None)
    @given(geometries(), st.sampled_from(CODES))
    def test_there_and_back_is_exact(self, geometry: Geometry, code: str) -> None:
        volume = labelled_noise(geometry)
        back = io.orient(io.orient(volume, code), geometry.code)
        assert np.array_equal(back.array, volume.array)
        assert back.geometry.size == geometry.size and back.geometry.spacing == geometry.spacing
        assert np.allclose(back.geometry.direction, geometry.direction, atol=0)
        assert np.allclose(back.geometry.origin, geometry.origin, atol=1e-9)

    @each("code", CODES)
    @each("name", ["canonical", "anisotropic", "flipped", "sagittal", "oblique"])
    def test_agrees_with_itk(
        self, grids: dict[str, Geometry], name: str, code: str, make_volume: Make
    ) -> None:
        geometry = grids[name]  # not the left-handed one: ITK's filter may change its handedness
        volume = make_volume(geometry)
        image = sitk.GetImageFromArray(volume.array)
        image.SetSpacing(geometry.spacing)
        image.SetOrigin(geometry.origin)
        image.SetDirection(geometry.direction)
        expected = sitk.DICOMOrient(image, code)
        turned = io.orient(volume, code)
        assert turned.geometry.code == code
        assert np.array_equal(turned.array, sitk.GetArrayFromImage(expected))
        assert np.allclose(turned.geometry.origin, expected.GetOrigin())
        assert np.allclose(turned.geometry.direction, expected.GetDirection())

    @each("code", CODES)
    @each("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
    def test_exactly_between_two_axes_the_choice_does_not_depend_on_the_order(
        self, code: str, order: tuple[int, int, int]
    ) -> None:
        c = np.sqrt(0.5)
        matrix = np.array([[c, -c, 0], [c, c, 0], [0, 0, 1]])[:, list(order)]
        grid = Geometry((2, 3, 4), direction=tuple(float(v) for v in matrix.ravel()))
        assert oriented(oriented(grid, code), grid.code).close_to(grid)

    def test_lps_is_the_identity_direction(self) -> None:
        assert Geometry((2, 2, 2)).code == "LPS"
        assert oriented(Geometry((2, 3, 4)), "LPS") == Geometry((2, 3, 4))

    @each("code", ["LPX", "LLS", "LP", "", "LPSA"])
    def test_unknown_codes(self, code: str) -> None:
        with pytest.raises(InputError, match="orientation"):
            oriented(Geometry((2, 2, 2)), code)


class TestResample:
    @settings(deadline=None, max_examples=30)
    @given(geometries(), st.sampled_from(CODES), st.sampled_from(["linear", "nearest"]))
    def test_onto_a_turned_grid_and_back_is_the_identity(
        self, geometry: Geometry, code: str, how: str
    ) -> None:
        volume = labelled_noise(geometry)
        turned = io.resample_volume(volume, oriented(geometry, code), interpolation=how)
        assert np.allclose(turned.array, io.orient(volume, code).array, atol=1e-4)
        back = io.resample_volume(turned, geometry, interpolation=how)
        assert np.allclose(back.array, volume.array, atol=1e-4)

    def test_directions_with_denormal_numbers(self) -> None:
        tiny = 7.561527177118271e-161
        direction = (-1.0, 2.856e-321, tiny, 0.0, -1.0, tiny / 2, tiny, tiny / 2, 1.0)
        volume = labelled_noise(Geometry((2, 2, 2), direction=direction))
        assert np.allclose(io.resample_volume(volume, volume.geometry).array, volume.array)

    @settings(deadline=None, max_examples=30)
    @given(geometries(), geometries())
    def test_a_linear_field_is_reproduced_inside(self, source: Geometry, target: Geometry) -> None:
        def field(geometry: Geometry) -> np.ndarray:
            k, j, i = np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij")
            return geometry.points(np.stack([i, j, k], axis=-1)) @ np.array([0.3, -0.2, 0.5])

        target = Geometry(target.size, target.spacing, source.origin, target.direction)
        result = io.resample_volume(
            Volume(field(source).astype(np.float64), source), target, outside=-1e6
        ).array
        k, j, i = np.meshgrid(*[np.arange(n) for n in target.shape], indexing="ij")
        places = source.indices(target.points(np.stack([i, j, k], axis=-1)))
        inside = ((places >= 1e-6) & (places <= np.array(source.size) - 1 - 1e-6)).all(axis=-1)
        outside = ((places < -0.51) | (places > np.array(source.size) - 0.49)).any(axis=-1)
        assert np.allclose(result[inside], field(target)[inside], atol=1e-2)
        assert (result[outside] == -1e6).all()

    def test_finer_and_back_keeps_a_smooth_image(self, geometry: Geometry) -> None:
        k, j, i = np.meshgrid(*[np.linspace(0, np.pi, n) for n in geometry.shape], indexing="ij")
        volume = Volume((100 * np.sin(i) * np.sin(j) * np.sin(k)).astype(np.float32), geometry)
        finer = Geometry(
            tuple(2 * n for n in geometry.size),
            tuple(s / 2 for s in geometry.spacing),
            geometry.origin,
            geometry.direction,
        )
        for how, error in (("linear", 1e-3), ("cubic", 0.5)):
            back = io.resample_volume(
                io.resample_volume(volume, finer, interpolation=how), geometry, interpolation=how
            )
            assert np.abs(back.array - volume.array).max() < error

    @each("kind", [np.uint8, np.int16, np.int64, np.float64, bool, np.float16, ">i2"])
    def test_nearest_keeps_values_of_every_type(
        self, geometry: Geometry, make_label: Make, kind: object
    ) -> None:
        label = make_label(geometry)
        label = Volume((label.array > 0).astype(kind), geometry)
        same = io.resample_volume(label, geometry, interpolation="nearest")
        assert np.array_equal(same.array, label.array)

    def test_thin_volumes_fall_back_to_linear(self) -> None:
        volume = labelled_noise(Geometry((8, 8, 2)))
        assert np.allclose(
            io.resample_volume(volume, volume.geometry, interpolation="cubic").array,
            volume.array,
            atol=1e-5,
        )

    def test_unknown_interpolation(self) -> None:
        with pytest.raises(
            InputError, match="interpolation 'bicubic' is unknown. Use linear, nearest, cubic"
        ):
            io.resample_volume(
                labelled_noise(Geometry((2, 2, 2))), Geometry((2, 2, 2)), interpolation="bicubic"
            )

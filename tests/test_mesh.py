"""The one rule of cutting, and the mesh of ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.mesh import AXES, Mesh, balanced, shares


@given(st.integers(0, 1000), st.integers(1, 40))
def test_shares_tile_the_array_and_differ_by_at_most_one(size: int, parts: int) -> None:
    ranges = [balanced(size, parts, i) for i in range(parts)]
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(size))
    sizes = shares(size, parts)
    assert max(sizes) - min(sizes) <= 1
    assert list(sizes) == sorted(sizes, reverse=True)


@pytest.mark.parametrize(("size", "parts", "index"), [(-1, 2, 0), (3, 0, 0), (3, 2, 2), (3, 2, -1)])
def test_there_is_no_such_part(size: int, parts: int, index: int) -> None:
    with pytest.raises(ValueError, match="no part"):
        balanced(size, parts, index)


meshes = st.lists(
    st.tuples(st.sampled_from(AXES), st.integers(1, 4)), max_size=3, unique_by=lambda axis: axis[0]
).map(lambda axes: Mesh(tuple(axes)))


@given(meshes)
def test_ranks_and_coordinates_are_one_to_one(mesh: Mesh) -> None:
    places = [tuple(mesh.coordinates(rank).values()) for rank in range(mesh.size)]
    assert len(set(places)) == mesh.size
    assert places == sorted(places)  # the last axis varies fastest


@given(meshes)
def test_groups_along_an_axis_tile_the_ranks(mesh: Mesh) -> None:
    for axis, degree in mesh.axes:
        groups = {mesh.group(rank, axis) for rank in range(mesh.size)}
        assert {len(group) for group in groups} == {degree}
        assert sorted(rank for group in groups for rank in group) == list(range(mesh.size))


def test_axes_are_ordered_and_serial_is_no_special_case() -> None:
    assert Mesh().size == 1
    assert Mesh().coordinates(0) == {}
    assert Mesh((("tensor", 2),)).with_axis("data", 3).axes == (("data", 3), ("tensor", 2))
    assert Mesh((("data", 2),)).degree("tensor") == 1


@pytest.mark.parametrize("axes", [(("two rows", 2),), (("data", 2), ("data", 2)), (("data", 0),)])
def test_no_such_mesh(axes: tuple[tuple[str, int], ...]) -> None:
    with pytest.raises(ValueError, match=r"axes must be|degrees must be"):
        Mesh(axes)

"""6-D rotations: whatever six numbers come, a rotation; and back and forth without loss."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.errors import DataError
from data.rotations import (
    matrix_of_six,
    matrix_of_vector,
    poses_6d,
    poses_vector,
    six_of_matrix,
    vector_of_matrix,
)  # fmt: skip

NUMBER = st.one_of(st.floats(-1e3, 1e3), st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e-9]))


def assert_rotation(matrix):
    one = np.broadcast_to(np.eye(3), matrix.shape)
    np.testing.assert_allclose(matrix @ np.swapaxes(matrix, -1, -2), one, atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(matrix), 1.0, atol=1e-9)


@settings(max_examples=200, deadline=None)
@given(arrays(np.float64, (2, 6), elements=NUMBER))
def test_any_six_numbers_are_a_rotation(six):
    assert_rotation(matrix_of_six(six))


@settings(max_examples=200, deadline=None)
@given(arrays(np.float64, (2, 3), elements=st.floats(-7, 7)), st.floats(0.01, 100), st.floats(-5, 5))
def test_round_trips(vector, scale, shear):
    matrix = matrix_of_vector(vector)
    assert_rotation(matrix)
    six = six_of_matrix(matrix)
    np.testing.assert_array_equal(six[0, :3], matrix[0, 0])  # rows, as pytorch3d has them
    np.testing.assert_allclose(matrix_of_six(six), matrix, atol=1e-12)
    np.testing.assert_allclose(matrix_of_vector(vector_of_matrix(matrix)), matrix, atol=1e-6)
    # Lengths, and how much of the first the second holds, do not matter
    bent = np.concatenate([scale * six[:, :3], six[:, 3:] + shear * six[:, :3]], -1)
    np.testing.assert_allclose(matrix_of_six(bent), matrix, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2), st.integers(0, 4), st.integers(0, 1 << 30))
def test_poses_of_arms(n_arms, n, seed):
    actions = np.random.default_rng(seed).normal(size=(n, 7 * n_arms))
    six = poses_6d(actions)
    assert six.shape == (n, 10 * n_arms)
    back, arms = poses_vector(six).reshape(n, n_arms, 7), actions.reshape(n, n_arms, 7)
    np.testing.assert_allclose(back[..., [0, 1, 2, 6]], arms[..., [0, 1, 2, 6]])
    np.testing.assert_allclose(matrix_of_vector(back[..., 3:6]), matrix_of_vector(arms[..., 3:6]), atol=1e-9)


def test_a_known_one():
    quarter = matrix_of_vector(np.array([0.0, 0.0, np.pi / 2]))  # x goes to y
    np.testing.assert_allclose(quarter @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(six_of_matrix(quarter), [0, -1, 0, 1, 0, 0], atol=1e-12)
    with pytest.raises(DataError, match="10 numbers per arm, got 9"):
        poses_vector(np.zeros(9))

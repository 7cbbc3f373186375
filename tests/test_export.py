"""Exports of degenerate scenes."""

import numpy as np

from sdlab.export.writers import write_ply
from sdlab.types import RawSplats


def test_gaussians_that_are_not_finite_are_left_out_alone(tmp_path):
    n = 5
    s = RawSplats(
        np.zeros((n, 3), np.float32),
        np.tile(np.float32([1, 0, 0, 0]), (n, 1)),
        np.zeros((n, 3), np.float32),
        np.float32([0, np.nan, 0, np.inf, 0]),
        np.full((n, 3), 0.5, np.float32),
    )
    assert write_ply(tmp_path / "x.ply", s) == 3
    assert b"element vertex 3\n" in (tmp_path / "x.ply").read_bytes()

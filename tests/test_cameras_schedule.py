"""Cameras, view words, backgrounds, timesteps and weights."""

import math

import pytest
import torch

from sdlab.cameras import CameraSettings, look_at, sample_background, sample_cameras, turntable, view_word
from sdlab.rng import StepRng
from sdlab.schedule import ScheduleSettings, range_at, sample_t, weight


def test_the_front_camera_sees_the_front_with_up_upwards():
    cams = look_at(torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([3.0]), 40.0, 32, 32)
    V = cams.viewmats[0]
    front = V @ torch.tensor([1.0, 0, 0, 1])  # the point nearest to the camera
    assert front[2] == pytest.approx(2.0, abs=1e-5)
    up = V @ torch.tensor([0.0, 0, 1, 1])
    assert up[1] == pytest.approx(-1.0, abs=1e-5)  # y points down
    left = V @ torch.tensor([0.0, 1, 0, 1])  # azimuth is counter-clockwise, so +y is on the viewer's right
    assert left[0] == pytest.approx(1.0, abs=1e-5)
    assert torch.linalg.det(V[:3, :3]) == pytest.approx(1.0, abs=1e-5)


def test_anywhere_on_the_orbit_the_camera_stands_where_it_says_and_looks_at_the_origin_upright():
    azimuth, elevation = torch.tensor([30.0, -120.0, 179.0, 77.0]), torch.tensor([20.0, -15.0, 70.0, 90.0])
    distance = torch.tensor([2.0, 3.0, 2.5, 4.0])
    V = look_at(azimuth, elevation, distance, 40.0, 32, 32).viewmats.double()
    R, eye = V[:, :3, :3], torch.linalg.inv(V)[:, :3, 3]
    a, e = torch.deg2rad(azimuth.double()), torch.deg2rad(elevation.double().clamp(max=89.9))
    stands = distance.double()[:, None] * torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], 1)
    assert torch.allclose(eye, stands, atol=1e-5)
    assert torch.allclose(R @ R.transpose(1, 2), torch.eye(3).double().expand(4, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.det(R), torch.ones(4).double(), atol=1e-6)
    assert torch.allclose(V[:, :3, 3], torch.stack([0 * distance, 0 * distance, distance], 1).double(), atol=1e-6)
    assert R[:, 0, 2].abs().max() < 1e-6  # the horizon is level,
    assert (R[:, 1, 2] < 0).all()  # and up is up


def test_focal_length_follows_the_field_of_view():
    cams = look_at(torch.tensor([10.0]), torch.tensor([5.0]), torch.tensor([3.0]), 40.0, 64, 64)
    assert cams.Ks[0, 1, 1] == pytest.approx(32 / math.tan(math.radians(20)), rel=1e-5)


def test_sampled_cameras_keep_their_ranges_and_are_spread_around():
    s = CameraSettings(views=4, elevation_min=-10, elevation_max=50, distance_min=2, distance_max=3)
    for step in range(50):
        cams = sample_cameras(s, StepRng(1, step), 32)
        assert ((cams.elevation >= -10.01) & (cams.elevation <= 50.01)).all()
        assert ((cams.distance >= 2) & (cams.distance <= 3)).all()
        quarters = ((cams.azimuth.sort().values.diff() - 90).abs() <= 90.01).all()
        assert quarters
    again = sample_cameras(s, StepRng(1, 49), 32)
    assert torch.equal(cams.viewmats, again.viewmats)


def test_azimuths_cover_the_circle_evenly():
    azimuths = torch.cat([sample_cameras(CameraSettings(), StepRng(0, i), 8).azimuth for i in range(2000)])
    counts = torch.histc(azimuths, 8, -180, 180) / len(azimuths)
    assert ((counts - 1 / 8).abs() < 0.02).all()


@pytest.mark.parametrize(
    ("azimuth", "elevation", "word"),
    [
        (0, 0, "front view"),
        (44, 10, "front view"),
        (-44, 10, "front view"),
        (359, 0, "front view"),
        (90, 0, "side view"),
        (-90, 0, "side view"),
        (180, 0, "back view"),
        (-136, 0, "back view"),
        (0, 61, "overhead view"),
    ],
)
def test_view_words(azimuth, elevation, word):
    assert view_word(azimuth, elevation) == word


def test_the_turntable_starts_at_the_front_and_goes_once_around():
    cams = turntable(8, CameraSettings(), 16)
    assert cams.azimuth[0] == 0
    assert len(set(cams.azimuth.tolist())) == 8


def test_backgrounds():
    for kind, value in (("white", 1.0), ("black", 0.0), ("gray", 0.5)):
        assert (sample_background(CameraSettings(background=kind), StepRng(0, 0)) == value).all()
    s = CameraSettings(views=4, background="mixed")
    white = torch.cat([(sample_background(s, StepRng(0, i)) == 1).all(-1) for i in range(300)]).float().mean()
    assert 0.42 < white < 0.58


def test_uniform_timesteps_keep_their_range_and_fill_it():
    s = ScheduleSettings(t_min=0.1, t_max=0.6)
    t = torch.cat([sample_t(s, StepRng(0, i), 4, 0.3) for i in range(500)])
    assert t.min() >= 100
    assert t.max() <= 600
    assert abs(t.float().mean() - 350) < 15


def test_linear_and_two_stage_schedules():
    s = ScheduleSettings(kind="linear", t_max=0.98, t_end=0.5)
    assert sample_t(s, StepRng(0, 0), 2, 0.0).tolist() == [980, 980]
    assert sample_t(s, StepRng(0, 0), 2, 1.0).tolist() == [500, 500]
    assert sample_t(s, StepRng(0, 0), 1, 0.5).item() == pytest.approx(740, abs=1)
    s = ScheduleSettings(kind="two-stage", t_end=0.5, switch=0.4)
    early = torch.cat([sample_t(s, StepRng(0, i), 4, 0.39) for i in range(100)])
    late = torch.cat([sample_t(s, StepRng(0, i), 4, 0.4) for i in range(100)])
    assert early.max() > 700
    assert late.max() <= 500


def test_shrinking_and_double_ranges():
    """ISM: U[20, 500 + 480 r], r from 1 to 0 over the first 1500 of 5000 steps. MVDream: .98 to .02 and .98 to .50
    over the first 8000 of 10 000."""
    ism = ScheduleSettings(kind="shrinking", switch=0.3)
    for progress, top in ((0.0, 980), (0.15, 740), (0.3, 500), (0.9, 500)):
        t = torch.cat([sample_t(ism, StepRng(0, i), 8, progress) for i in range(200)])
        assert 20 <= t.min() <= 40
        assert top - 20 <= t.max() <= top
    mvdream = ScheduleSettings(kind="double", switch=0.8)
    for progress, low, top in ((0.0, 0.98, 0.98), (0.4, 0.5, 0.74), (0.8, 0.02, 0.5), (1.0, 0.02, 0.5)):
        assert range_at(mvdream, progress) == pytest.approx((low, top))


def test_hifa_falls_as_the_root():
    s = ScheduleSettings(kind="hifa")
    assert [int(sample_t(s, StepRng(0, 0), 1, p)) for p in (0, 0.25, 1)] == [980, 500, 20]


@pytest.mark.slow
def test_dreamtime_spends_the_run_by_its_weight():
    """Compare with the definition, solved by hand: steps at t proportional to W(t), from the top down."""
    n = 20_000
    t = [int(sample_t(ScheduleSettings(kind="dreamtime"), StepRng(0, 0), 1, (i + 0.5) / n)) for i in range(n)]
    assert t == sorted(t, reverse=True)
    assert t[0] == 980

    def w(u):
        if u > 800:
            return math.exp(-((u - 800) ** 2) / (2 * 300**2))
        return 1.0 if u >= 500 else math.exp(-((u - 500) ** 2) / (2 * 100**2))

    total = sum(w(u) for u in range(20, 981))
    for low, high in ((20, 400), (400, 500), (500, 650), (650, 800), (800, 981)):
        share = sum(w(u) for u in range(low, high)) / total
        assert sum(low <= u < high for u in t) / n == pytest.approx(share, abs=2e-3)


def test_weights():
    alpha, sigma = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    expected = {"1-alphabar": 0.36, "uniform": 1.0, "fantasia3d": 0.8 * 0.36, "sigma/alpha": 0.75}
    for kind, value in expected.items():
        assert weight(ScheduleSettings(weight=kind), alpha, sigma).item() == pytest.approx(value)


def test_streams_are_independent_and_repeatable():
    def draw(seed, step, stream):
        return torch.randn(4, generator=StepRng(seed, step)(stream))

    assert torch.equal(draw(1, 2, "t"), draw(1, 2, "t"))
    others = [draw(1, 2, "noise"), draw(1, 3, "t"), draw(2, 2, "t"), draw(12, 0, "t"), draw(1, 20, "t")]
    assert all(not torch.equal(draw(1, 2, "t"), o) for o in others)

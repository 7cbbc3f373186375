"""What a step does to a loss's gradient before the backward pass."""

import pytest
import torch

from sdlab.live.messages import Failed, Stop
from sdlab.live.session import Session
from sdlab.optim import OptimSettings
from sdlab.settings import preset
from sdlab.step import rescale_and_clip


def test_gradients_are_scaled_and_clipped():
    grad = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])
    assert torch.equal(rescale_and_clip(grad, OptimSettings()), grad)
    torch.testing.assert_close(rescale_and_clip(grad, OptimSettings(grad_rms=0.5)), grad * 0.5 / 2.5)
    assert rescale_and_clip(grad, OptimSettings(grad_clip=3.5)).flatten().tolist() == [3.0, -3.5, 0.0, 0.0]
    both = rescale_and_clip(grad, OptimSettings(grad_rms=5.0, grad_clip=7.0))
    assert both.flatten().tolist() == [6.0, -7.0, 0.0, 0.0], "scaled first, then clipped"
    assert torch.equal(rescale_and_clip(torch.zeros(1, 1, 2, 2), OptimSettings(grad_rms=1.0)), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("loss", ["sds", "sbp"])
def test_a_step_with_a_set_size_has_that_size(loss):
    s = preset("mixture").patch_all([("active", loss), ("optim.grad_rms", 0.25), ("scene.n_init", 50)])
    session = Session(s)
    session.run(until=2)
    assert float(session.report.stats["grad_rms"]) == pytest.approx(0.25, rel=1e-4)


def test_too_little_memory_on_the_way_back_says_what_to_lower(monkeypatch, quick):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    session = Session(quick)
    session.run(until=1)
    session.listen(lambda event: session.send(Stop()) if isinstance(event, Failed) else None)
    monkeypatch.setattr(torch.autograd, "backward", full)
    session.run(until=2)
    (failure,) = (e for e in session.events.since()[0] if isinstance(e, Failed))
    assert "out of memory: the backward pass from 2 images" in failure.reason
    assert "camera.views" in failure.reason

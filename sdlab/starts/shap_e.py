"""Shap-E (Jun and Nichol 2023, arXiv 2305.02463): text to a coarse coloured mesh, with the diffusers pipeline.

DreamMapping and other Gaussian methods start from it. Its meshes have z up; objects with a front mostly face -y, which
is therefore treated as the front.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdlab.errors import first_line, is_out_of_memory, memory_explained
from sdlab.meshes.parts import Part
from sdlab.priors import Progress, silent
from sdlab.priors.hub import PROGRESS_EVERY, downloading
from sdlab.starts.placing import turned
from sdlab.starts.points import sampled
from sdlab.types import Cloud

REPOSITORY = "openai/shap-e"
STEPS, GUIDANCE = 64, 15.0  # defaults of the released text-to-3D configuration
FRONT = 90.0  # degrees from -y to +x
WITHOUT = "Free memory by closing other programs, or choose another start (scene.start)"


_kept: dict[tuple[str, int, str, str, int], Part] = {}  # cached meshes, so that a reset is fast
_KEPT = 2
_lock = threading.Lock()  # guards _kept; not held during generation, which would silently block other runs


def shap_e_points(
    prompt: str,
    n: int,
    rng: np.random.Generator,
    device: torch.device,
    model: str,
    steps: int,
    progress: Progress = silent,
) -> Cloud:
    """Generate a mesh of `prompt` with Shap-E and sample n points uniformly on it.

    `model` is a folder in the layout of diffusers' ShapEPipeline, or a Hub repository, downloaded on first use.
    `progress` is called with status messages. Raises RuntimeError, with advice, if the model is unavailable or
    generates an empty mesh.
    """
    if not model:
        raise RuntimeError(
            "scene.shap_e is empty: set it to a folder or repository of Shap-E, or choose another start (scene.start)"
        )
    key = (prompt, int(rng.integers(2**31)), str(device), model, steps)
    with _lock:
        mesh = _kept.get(key)
    if mesh is None:
        mesh = _mesh(*key, progress)
    with _lock:
        _kept.pop(key, None)
        _kept[key] = mesh  # least recently used first
        for oldest in list(_kept)[:-_KEPT]:
            del _kept[oldest]
    at, rgbs = sampled([mesh], n, rng, f"Shap-E's mesh of {prompt!r}")
    cloud = turned(Cloud(at.astype(np.float32), rgbs.astype(np.float32)), FRONT)
    assert isinstance(cloud, Cloud)
    return cloud


def _mesh(prompt: str, seed: int, device: str, model: str, steps: int, progress: Progress) -> Part:
    with memory_explained(f"Shap-E ({model})", torch.device(device), advice=WITHOUT):
        pipeline = _pipeline(model, torch.device(device), progress)
    # replaces the console progress bar
    pipeline.progress_bar = lambda timesteps: _told(timesteps, progress)
    try:
        with memory_explained("Shap-E's denoising", torch.device(device), advice=WITHOUT):
            made = pipeline(
                prompt,
                generator=torch.Generator().manual_seed(seed),
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                output_type="mesh",
            ).images[0]
    except ValueError as e:  # raised by the pipeline if its field has no surface
        raise RuntimeError(
            f"Shap-E generated no surface for {prompt!r} ({first_line(e, 100)}): try other words (scene.start_text) or "
            "another start (scene.start)"
        ) from e
    rgbs = torch.stack([made.vertex_channels[c] for c in "RGB"], 1).float().clamp(0, 1).cpu().numpy()
    faces = made.faces.cpu().numpy().astype(np.int32)
    vertices = made.verts.double().cpu().numpy()
    return Part(vertices, faces, rgbs[faces], np.zeros((len(faces), 3, 2), np.float32))


def _told(timesteps: Tensor, progress: Progress) -> Iterator[Tensor]:
    """Iterate over the timesteps; report every second how many are done and the time left."""
    started = said = time.monotonic()
    for done, t in enumerate(timesteps):
        now = time.monotonic()
        if done and now >= said + PROGRESS_EVERY:
            said = now
            left = (now - started) / done * (len(timesteps) - done)
            progress(f"Shap-E: step {done} of {len(timesteps)}, {left:.0f} s left")
        yield t
    progress("Shap-E: extracting the mesh")


def _pipeline(model: str, device: torch.device, progress: Progress) -> Any:
    """Load the pipeline from safetensors only, since loading pickles can execute code."""
    from diffusers import ShapEPipeline

    dtype = torch.float16 if device.type == "cuda" else torch.float32
    folder = Path(model).expanduser()
    local = folder.is_dir()

    def load() -> Any:
        place = folder if local else model
        return ShapEPipeline.from_pretrained(place, dtype=dtype, use_safetensors=True, local_files_only=local)

    progress(f"loading Shap-E ({model})")
    try:
        if local:
            pipeline = load()
        else:
            pipeline = downloading(load, model, lambda gigabytes: progress(f"downloading Shap-E ({gigabytes:.1f} GB)"))
    except Exception as e:  # the Hub client's HTTP library, and so its errors, depend on its version
        if is_out_of_memory(e):
            raise
        raise RuntimeError(
            f"scene.shap_e = {model!r} cannot be loaded ({first_line(e, 200)}). It must be a folder or a reachable "
            "repository of diffusers' ShapEPipeline in safetensors. Convert a pickled one with "
            f"ShapEPipeline.from_pretrained({model!r}).save_pretrained(FOLDER). Starting from a ball, an object or a "
            "file does not need Shap-E (scene.start)"
        ) from e
    return pipeline.to(device)

"""Small meshes made with trimesh, for tests and as examples of files that a gallery or a scene can take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial

# world (+x front, +z up) to glTF (+z front, +y up)
TO_GLTF = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])


def painted(mesh: Any, rgb: tuple[int, int, int]) -> Any:
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=np.tile((*rgb, 255), (len(mesh.vertices), 1)))
    return mesh


def box(rgb: tuple[int, int, int], sides: tuple[float, float, float], at: tuple[float, float, float]) -> Any:
    mesh = trimesh.creation.box(sides)
    mesh.apply_translation(at)
    return painted(mesh, rgb)


def ball(rgb: tuple[int, int, int], radius: float, at: tuple[float, float, float]) -> Any:
    mesh = trimesh.creation.icosphere(subdivisions=2, radius=radius)
    mesh.apply_translation(at)
    return painted(mesh, rgb)


def panel(image: np.ndarray, width: float, height: float, at: tuple[float, float, float]) -> Any:
    """Return an upright rectangle that faces +x and shows an image [H, W, 3] as read from there."""
    y, z = width / 2, height / 2
    corners = np.array([(0, -y, -z), (0, y, -z), (0, y, z), (0, -y, z)]) + at
    mesh = trimesh.Trimesh(corners, [(0, 1, 2), (0, 2, 3)], process=False)
    material = PBRMaterial(baseColorTexture=Image.fromarray(image), roughnessFactor=1.0)
    mesh.visual = trimesh.visual.TextureVisuals(uv=[(0, 0), (1, 0), (1, 1), (0, 1)], material=material)
    return mesh


def dial() -> np.ndarray:
    """Return the picture on the robot's chest: a yellow square with red in its upper left and green in its lower right
    corner."""
    image = np.full((64, 64, 3), (250, 210, 60), np.uint8)
    image[:32, :32], image[32:, 32:] = (220, 40, 40), (40, 160, 60)
    return image


def robot() -> trimesh.Scene:
    """Return a toy robot with a face, a textured chest, a red left and a green right arm, and a dark box on its back.

    In the world's frame: +x is its front, +z up; about 2 units tall.
    """
    blue, grey, dark, white = (60, 110, 200), (170, 175, 185), (45, 45, 60), (245, 245, 245)
    antenna = trimesh.creation.cylinder(radius=0.03, height=0.25, sections=12)
    antenna.apply_translation((0, 0, 1.82))
    parts = [
        box(blue, (0.6, 0.9, 0.9), (0, 0, 0.6)),
        box(grey, (0.5, 0.6, 0.5), (0, 0, 1.42)),
        *(ball(white, 0.1, (0.26, side * 0.14, 1.5)) for side in (-1, 1)),
        *(ball(dark, 0.05, (0.35, side * 0.14, 1.5)) for side in (-1, 1)),
        box((200, 60, 50), (0.05, 0.3, 0.06), (0.26, 0, 1.28)),
        panel(dial(), 0.55, 0.55, (0.31, 0, 0.65)),
        box((200, 50, 50), (0.22, 0.2, 0.75), (0, 0.58, 0.65)),
        box((60, 160, 80), (0.22, 0.2, 0.75), (0, -0.58, 0.65)),
        *(box(grey, (0.3, 0.26, 0.35), (0, side * 0.24, 0.0)) for side in (-1, 1)),
        box(dark, (0.25, 0.6, 0.6), (-0.42, 0, 0.65)),
        painted(antenna, grey),
        ball((230, 60, 60), 0.08, (0, 0, 1.98)),
    ]
    scene = trimesh.Scene()
    for part in parts:
        scene.add_geometry(part)
    return scene


def write_robot(path: Path) -> Path:
    """Write the robot as a GLB, which is upright and has these colours in any viewer."""
    scene = robot()
    scene.apply_transform(TO_GLTF)
    for part in scene.geometry.values():
        if part.visual.kind == "vertex":  # glTF's vertex colours are linear
            shares = part.visual.vertex_colors / 255
            linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
            part.visual.vertex_colors = np.rint(255 * linear).astype(np.uint8)
    path.write_bytes(scene.export(file_type="glb"))
    return path

"""Score Distillation Lab: watch losses of score distillation shape a 3D object, and change them while they run.

Importing this package loads neither gradio, viser, diffusers nor any accelerator library: the outer shells
(`sdlab.ui`, `sdlab.viewport`, `sdlab.cli`) and the priors import what they need when they are used.
"""

__version__ = "0.1.0"

"""Score Distillation Lab: watch score-distillation losses shape a 3D object, and change them while they run.

Importing this package does not load gradio, viser, diffusers or any accelerator library. The user interfaces
(`sdlab.ui`, `sdlab.viewport`, `sdlab.cli`) and the priors import these when they are used.
"""

__version__ = "0.1.0"

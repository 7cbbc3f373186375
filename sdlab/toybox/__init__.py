"""The toybox: a procedural world of captioned pictures, and the small prior that is trained on it.

The world: `words` (captions), `solids`, `animals`, `things`, `relations`, `objects` (what there is), `raytrace`,
`filters`, `pictures` (drawing it). The prior: `model` builds, saves and loads the networks, `reading` teaches the text
encoder, `train` trains, `sample` samples. What it is worth: `judge`, a classifier of true pictures, and `figures`,
which reads samples with it. `cli` holds the commands. Nothing is imported here: the modules need numba, diffusers and
transformers.
"""

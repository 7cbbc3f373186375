"""The toybox: a procedural world of captioned images, and a small diffusion prior trained on it.

World: `words` (captions), `solids`, `animals`, `things`, `relations`, `objects` (what can appear), and `raytrace`,
`filters`, `pictures` (how it is rendered). Prior: `model` builds, saves and loads the networks, `reading` pre-trains
the text encoder, `train` trains, `sample` samples. Evaluation: `judge` is a classifier of ground-truth images,
`figures` scores the prior's samples with it. Commands: `cli`. This package imports none of them by itself, because they
need numba, diffusers and transformers.
"""

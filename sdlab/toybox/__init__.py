"""The toybox: a procedural world of captioned images, and the networks of a small diffusion prior for it.

World: `words` (captions), `solids`, `animals`, `things`, `relations`, `objects` (what can appear), and `raytrace`,
`filters`, `pictures` (how it is rendered). Prior: `model` builds, saves and loads the networks, `sample` samples;
`sdlab.training` trains them. Evaluation: `judge` is a classifier of ground-truth images, `figures` scores the prior's
samples with it. This package imports none of them by itself, because they need numba, diffusers and transformers.
"""

SCALE = 7.0  # guidance scale with the highest judge accuracy for the embedded prior (see its model card)

"""The toybox: procedural captioned pictures of sixteen objects and the training of the small prior on them.

`pictures` (with `objects` and `raytrace`) draws the data, `model` builds, saves and loads the networks, `train`
trains, `sample` samples, `cli` holds the commands. Nothing is imported here: the modules need numba, diffusers and
transformers.
"""

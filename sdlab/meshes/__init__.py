"""Files of meshes and points that are not trusted, and triangle meshes, rendered.

`kinds` recognises formats, `modest` measures files, `ply` and `gltf` read tables and trees, `parts` and `colours` have
what files hold, and `read` brings these together. `surface` makes one coloured mesh of it, which `draw` renders.
"""

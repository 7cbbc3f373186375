"""Triangle meshes: read from untrusted files, and rendered.

`read` parses files safely, `surface` turns what they hold into coloured triangles, `draw` renders those.
"""

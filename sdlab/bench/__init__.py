"""Measurements that print a table and write JSON: `raster` (the rasteriser alone) and `step` (one live step)."""

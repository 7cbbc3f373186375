"""Measurements that print a table and write JSON.

Of speed: `raster` (the rasteriser alone), `network` (the network alone), `step` (one live step), `losses` (a step of
every loss). Of what comes out, as the judge reads it: `objects`, `six` (losses beside each other), `janus_losses`.
"""

"""Benchmarks of speed. Each prints a table and writes JSON.

`raster` (the rasteriser alone), `network` (the network alone), `step` (one live step), `losses` (a step of every loss),
`sessions` (several sessions that share a prior), `page` (the page in a browser), `gpu` (the size of Stable Diffusion).
"""

"""Training of the toybox's network, and its commands.

`reading` pre-trains the text encoder, `train` trains, `cli` holds the commands that train, sample and judge. The world
itself is `sdlab.toybox`. This package imports nothing by itself, because training needs numba, diffusers and
transformers.
"""

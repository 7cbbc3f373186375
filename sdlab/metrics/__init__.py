"""Metrics as functions of arrays: images, features, probabilities or similarities in, numbers out.

`images`     saturation and sharpness; PSNR is `sdlab.pictures.psnr`
`entropies`  entropy; Inception Quality and Variety
`fronts`     how many views around an object show a front, and on how many sides (the Janus problem)
`distances`  FID and KID of features
`diversity`  how far results of several seeds are apart
`text`       CLIP score and R-precision of similarities
`t3bench`    cameras, smoothing and scales of T3Bench
`networks`   networks that the functions take their features, probabilities and similarities from

`python -m sdlab metrics` applies them to runs (`sdlab.experiments.measure`).
"""

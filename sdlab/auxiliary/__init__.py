"""The models that losses train alongside the scene: score networks and VDM's operator, with their optimisers."""

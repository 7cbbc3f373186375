"""What a loss trains beside the scene: score networks, the operator of VDM, and their optimisers."""

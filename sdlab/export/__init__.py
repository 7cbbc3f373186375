"""Export for other programs: Gaussians, turntables and meshes."""

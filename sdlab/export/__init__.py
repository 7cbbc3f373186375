"""What a run leaves behind for other programs: Gaussians, turntables and meshes."""

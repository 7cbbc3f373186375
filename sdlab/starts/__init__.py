"""Starting points of a 3D scene: files of meshes, points or Gaussians, and Shap-E."""

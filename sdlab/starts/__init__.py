"""What a 3D scene can start from: files of points, Gaussians and meshes, and Shap-E."""

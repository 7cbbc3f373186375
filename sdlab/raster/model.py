"""The image model that all back-ends share, with the constants of gsplat 1.5.3.

Sources  [EWA]  Zwicker, Pfister, van Baar, Gross, "EWA Volume Splatting", 2001: the local affine approximation J of
                the projection, and the low-pass filter added to the projected covariance.
         [3DGS] Kerbl, Kopanas, Leimkuehler, Drettakis, "3D Gaussian Splatting for Real-Time Radiance Field
                Rendering", 2023.
         [SUP]  Ye, Kanazawa, "Mathematical Supplement for the gsplat Library", arXiv:2312.02121.

For one Gaussian with mean mu, rotation R, scales s, opacity o, colour c, and one camera x -> W x + d with focal
lengths fx, fy and principal point cx, cy:

    t   = W mu + d                        camera space; drawn if t_z > NEAR
    mu' = (fx t_x / t_z + cx, fy t_y / t_z + cy)
    J   = d mu' / d t, with t_x / t_z and t_y / t_z clamped to CLAMP_MARGIN beyond the image
    M   = J W R diag(s)   (2 x 3)         the Gaussian's axes on the screen, in pixels
    S'  = M M^T + LOW_PASS I              its screen-space covariance                           [3DGS eq. 5 and 6]

and for a pixel with centre x, the Gaussians i = 1, 2, ... sorted by t_z:

    alpha = min(o exp(-(x - mu')^T S'^-1 (x - mu') / 2), ALPHA_MAX), and 0 below ALPHA_MIN
    T_1 = 1,  T_{i+1} = T_i (1 - alpha_i)
    C = sum_i T_i alpha_i c_i + T_end background                                                [3DGS eq. 3]
    alpha_out = 1 - T_end,  depth = sum_i T_i alpha_i t_z,i

where the sum stops before the Gaussian that would bring T to T_STOP or below.
"""

from __future__ import annotations

NEAR = 0.01  # world units
CLAMP_MARGIN = 0.15  # fraction of the image's width or height, on either side
LOW_PASS = 0.3  # pixels^2
ALPHA_MIN = 1 / 255
ALPHA_MAX = 0.999
T_STOP = 1e-4

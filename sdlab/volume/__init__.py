"""Volumes of density and colour, seen along rays (NeRF): planes, rays, empty space, surfaces."""

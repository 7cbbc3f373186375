"""Frames to viser, and viser through the one port of the page."""

"""Grading: hand-ins repeated bit for bit, and what they say compared with what comes out."""

"""Experiments that reproduce figures and tables of papers, or distil the whole toybox. Each prints a table and writes
its results."""

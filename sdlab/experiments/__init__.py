"""Experiments that reproduce figures and tables of the papers; each prints a table and writes its results."""

"""Hand-ins: what a student did, as one ZIP file that can be repeated bit for bit.

`archive` reads and writes the file, `history` the stretches of runs in it, `facts` what the bits depend on besides.
"""

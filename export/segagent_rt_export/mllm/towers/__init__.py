"""Vision towers, one file per family: from weights to a graph over packed patches.

Everything that depends on the picture's grid (patch order, rotary angles, position taps, windows)
is computed by the runtime in NumPy and comes in as an input; the graphs have no control flow.
"""

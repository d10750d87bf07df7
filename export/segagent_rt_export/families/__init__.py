"""One folder per family: its configuration, weight names, graphs, and its reference in torch."""

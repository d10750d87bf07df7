"""Families of MLLMs, a module each. One class runs them all; the settings of a part say how."""

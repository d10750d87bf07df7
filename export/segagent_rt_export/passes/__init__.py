"""Transformations of graphs; each is written once and knows no family."""

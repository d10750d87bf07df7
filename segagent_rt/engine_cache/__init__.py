"""Engines that this machine built, and how one of them is chosen and verified."""

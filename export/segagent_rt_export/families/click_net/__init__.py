"""The demo bundle's segmenter, a small promptable convolutional net."""

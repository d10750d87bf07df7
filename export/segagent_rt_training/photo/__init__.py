"""Training of the segmenter for photos: EfficientNet-Lite0, a feature pyramid, a click decoder."""

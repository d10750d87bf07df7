"""The segmenter for photos: EfficientNet-Lite0, a feature pyramid, and a click decoder."""

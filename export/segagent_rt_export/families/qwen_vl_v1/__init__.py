"""The first Qwen-VL, which SegAgent was published with."""

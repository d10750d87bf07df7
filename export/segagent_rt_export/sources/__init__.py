"""Where checkpoints come from: folders, hubs, safetensors, pickles, adapters, quantised weights."""

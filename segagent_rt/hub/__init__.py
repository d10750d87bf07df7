"""Models and bundles on Hugging Face and ModelScope, through the hubs' own clients."""

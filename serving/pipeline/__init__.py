"""From an admitted image to its scores: admission control, batching, the runtime, and reloading."""

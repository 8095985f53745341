"""From an admitted image to its scores: admission, batching, the runtime, and reloading it."""

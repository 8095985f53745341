"""From an image file to pixels: limits before decoding, and the one preprocessing."""

"""Small networks, stand-ins for other libraries, and the official code's formulas."""

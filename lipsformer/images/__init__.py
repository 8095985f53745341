"""Opening images within limits, and the preprocessing that every part shares."""

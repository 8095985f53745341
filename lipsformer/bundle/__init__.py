"""What an export writes and every consumer checks: the manifest, class names and the places a bundle is found."""

"""The parity gate, which compares every exported file with the checkpoint."""

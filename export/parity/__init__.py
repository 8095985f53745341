"""The parity gate: every exported file is compared with the checkpoint."""

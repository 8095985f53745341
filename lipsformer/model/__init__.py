"""The network: configurations, variants, the two architectures and their layers."""

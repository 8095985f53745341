"""Helpers that several test files share: fixtures, makers of odd files, clients and stand-ins."""

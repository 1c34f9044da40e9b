"""Measures this library against stock google-adk, side by side. `python -m bench --help` says how."""

"""Launchers: absl flags and one call each; `python -m experiments.train --help`."""

"""The literature as runnable claims and figures: `python -m experiments --help`."""

"""The report of a run, or of several side by side: what it did, on one page that opens offline."""

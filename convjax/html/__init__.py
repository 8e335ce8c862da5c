"""Pages that open offline: what all of them share, their look and their scripts."""

"""The story of a network for one image, as a page that opens offline: `explain`."""

"""Roads to and from other libraries."""

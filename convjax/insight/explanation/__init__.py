"""Why a network votes as it does, for one image at a time."""

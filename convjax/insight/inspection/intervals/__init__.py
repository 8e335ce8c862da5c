"""Which rows of an image the numbers of every array in a program depend on."""

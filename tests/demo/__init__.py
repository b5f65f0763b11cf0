"""The demo behind `make demo`: ordinary programs on a mounted filesystem, with an account."""

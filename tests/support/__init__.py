"""What tests of several packages share: a drive in memory, a checker, small filesystems to start from."""

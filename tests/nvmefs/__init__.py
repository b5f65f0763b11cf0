"""Tests of the filesystem; each mirrors the module it tests."""

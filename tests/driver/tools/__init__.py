"""The command line on the driver alone."""

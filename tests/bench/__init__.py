"""nvmefs beside other filesystems, in one run on one disk (`make bench`)."""

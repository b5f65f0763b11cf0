"""POSIX and Linux to the letter: one file for each system call or subject, assertions in tables.

Every assertion runs in three places: on the host's own filesystem (ext4 or xfs), which is the oracle (an
assertion that fails there is wrong), and on mounts with each front end. What the kernel's FUSE makes impossible
says so where it is asserted, with the reason:

    def test_x(checks: Checks) -> None:                    the working directory is fresh, and open to all users
        checks.fails(ENOENT, os.unlink, "absent")
        checks.fails(EACCES, os.unlink, "d/f", user=ALICE)
        checks.gives(3, lambda: os.stat("d").st_nlink)
        checks.gives(3, look, fuse=2, why="FUSE ...")      another answer on a mount, and why

The first wrong answers of a table do not hide the others: all are told at the end of the test.

    make posix                       everything, on all three
    make test T=tests/posix          what is marked quick, on the mounts
"""

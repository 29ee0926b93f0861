"""The command where no file may be larger than the first argument says, in bytes: ``run_forked("tests.execution.little_disk", ...)``."""

import resource
import signal
import sys

from mmq_sweeps.__main__ import main

if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
    main()

"""Run the command with a limit on file sizes, its first argument, in bytes: for ``run_forked``."""

import resource
import signal
import sys

from mmq_sweeps.__main__ import main

if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
    main()

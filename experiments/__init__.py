"""Programs: each parses flags and calls the library once."""

import os as _os
import signal as _signal
import sys as _sys

# transformers would announce that it found no PyTorch, which nothing here needs.
_os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

# While a program's libraries are imported, nothing can be lost, and an interrupt that is raised
# inside one of their callbacks would be ignored: Ctrl-C ends the process. `program.run` then
# installs the handlers of a run.
if _sys.argv[0] == "-m" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, lambda signum, frame: _os._exit(128 + signum))

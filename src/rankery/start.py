"""How the processes that rankery starts begin: a path for modules on which nothing of the current folder is.

    python .../rankery/start.py VERB ...

Contract: what is imported is what is installed, or what PYTHONPATH names; a file accelerate.py in the folder that a command is given
in stays a file. Runs before anything else is imported, so it may import nothing that is not there when Python starts. Cost: none.
Rejected: `python -m rankery.cli`, which puts the current folder first, and `python -P`, which Python 3.10 lacks.
"""

import os
import sys


def leave_folders(*folders: str) -> None:
    """Takes folders off the path of modules, and whatever means the current folder, wherever that is."""
    gone = {os.path.realpath(folder) for folder in folders}
    sys.path[:] = [path for path in sys.path if path and os.path.realpath(path) not in gone]


if __name__ == "__main__":
    # The folder of this file, too, which Python has put first: its modules have the names of others.
    leave_folders(os.path.dirname(os.path.abspath(__file__)))
    from rankery.cli import main

    sys.exit(main())

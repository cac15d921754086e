"""The script that `accelerate launch` runs: the same as `rankery train`."""

import sys

from rankery.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

"""`python -m launch JOB CONFIG [key=value ...]`: the same jobs on Ray."""

import argparse
import sys

from launch.mad_sweep import execute
from search.cli import add_mad, main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m launch", description="Runs a job on Ray.", allow_abbrev=False)
    add_mad(parser.add_subparsers(dest="job", required=True, metavar="JOB"))
    sys.exit(main(parser, execute))

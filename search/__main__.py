"""`python -m search JOB CONFIG [key=value ...]`: the jobs in this process."""

import argparse
import sys

from search.backend import HERE
from search.cli import add_jobs, add_mad, main
from search.describe import add_check, add_show
from search.kernels import add_kernels
from search.schema import add_schema

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m search", description="Runs a job in this process.", allow_abbrev=False)
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    for add in (add_jobs, add_mad, add_check, add_show, add_kernels, add_schema):
        add(jobs)
    sys.exit(main(parser, HERE))

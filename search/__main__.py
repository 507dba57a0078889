"""`python -m search JOB CONFIG [key=value ...]`: the jobs in this process."""

import argparse
import sys

from search.cli.kernels import add_kernels
from search.cli.run import add_jobs, add_mad, main
from search.cli.schema import add_schema
from search.cli.show import add_check, add_show
from search.jobs.in_process import HERE

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m search", description="Runs a job in this process.", allow_abbrev=False)
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    for add in (add_jobs, add_mad, add_check, add_show, add_kernels, add_schema):
        add(jobs)
    sys.exit(main(parser, HERE))

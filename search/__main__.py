"""`python -m search JOB CONFIG [key=value ...]`: the jobs in this process."""

import argparse
import sys

from search.cli.main import add_jobs, add_mad, add_tools, main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m search", description="Runs a job in this process.", allow_abbrev=False)
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    for add in (add_jobs, add_mad, add_tools):
        add(jobs)
    sys.exit(main(parser, "search.jobs.in_process:HERE"))

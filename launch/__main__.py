"""`python -m launch JOB CONFIG [key=value ...]`: the same jobs on Ray."""

import argparse
import sys

from search.cli.main import add_jobs, add_mad, main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m launch", description="Runs a job on Ray.", allow_abbrev=False)
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    for add in (add_jobs, add_mad):
        add(jobs)
    sys.exit(main(parser, "launch.backend:ON_RAY"))

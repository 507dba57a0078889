"""`python -m search JOB CONFIG [key=value ...]`: the jobs in this process."""

import sys

from search.runs.interruption import interruptible


def search() -> int:
    """Parse the command line and run what it asks for; an interruption of its imports is told, too."""
    import argparse  # noqa: PLC0415

    from search.cli.main import add_jobs, add_mad, add_tools, main  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="python -m search", description="Runs a job in this process.", allow_abbrev=False)
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    for add in (add_jobs, add_mad, add_tools):
        add(jobs)
    return main(parser, "search.jobs.in_process:HERE")


if __name__ == "__main__":
    sys.exit(interruptible(search))

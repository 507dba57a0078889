"""`python -m launch JOB CONFIG [key=value ...]`: the same jobs on Ray."""

import sys

from search.runs.interruption import interruptible


def launch() -> int:
    """Parse the command line and run the job that it asks for; an interruption of its imports is told, too."""
    import argparse  # noqa: PLC0415

    from search.cli.main import add_jobs, add_mad, main  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="python -m launch", description="Runs a job on Ray.", allow_abbrev=False)
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    for add in (add_jobs, add_mad):
        add(jobs)
    return main(parser, "launch.backend:ON_RAY")


if __name__ == "__main__":
    sys.exit(interruptible(launch))

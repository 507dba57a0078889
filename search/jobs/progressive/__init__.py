"""A rack that grows stack by stack: the job, its stages, and the data that they train on."""

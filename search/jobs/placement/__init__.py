"""The job `placement`: which layer gets which mixer, under a budget."""

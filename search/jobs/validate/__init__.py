"""The job `validate`: does the search find the truth? Every placement of a small space, trained from scratch."""

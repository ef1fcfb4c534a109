"""`make bench`: what the pipeline costs, each time against a baseline of the same run."""

"""What the ranks record, as steps: of one rank, from the reports of nodes those of the job, and their metrics."""

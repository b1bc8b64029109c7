"""Many requests from a file, answered into a file; a run that was killed goes on where it was."""

from slmq.batch.run import Job, Summary, run_batch

__all__ = ["Job", "Summary", "run_batch"]

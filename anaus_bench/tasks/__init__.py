"""What every protocol of a task shares: prediction formats and scoring."""

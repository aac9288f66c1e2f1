"""Lightning callbacks: checkpoints, progress bar, sample sheets, results page, summary, and a stop on NaN or Inf."""

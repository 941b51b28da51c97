"""The checks of `utsuwad check`, one module per subject, which return verdicts for the host's facts."""

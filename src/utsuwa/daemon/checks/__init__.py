"""What `utsuwad check` judges, a module a subject: each gives verdicts from the host's facts."""

"""The library: kinds of task, layers, files, steps. It knows no setting, no flag and no task script."""

"""Studies: an experiment's models trained with all data, and measurements on them, in the folders of one trial."""
